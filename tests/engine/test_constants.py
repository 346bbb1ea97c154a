"""Numbers and tensors in a network's arithmetic, in the type that PyTorch computes with."""

import pytest
import torch
from torch import nn

from gradinv.engine import PlainDoubleBackward, engine_for
from gradinv.engine.distances import Cosine
from gradinv.models import Normalize
from tests.engine.networks import guesses, relative, update


class Arithmetic(nn.Module):
    """A small network with arithmetic behind its logits, or before its activation.

    The first parameter is a single number, whose type says less than a vector's.
    """

    def __init__(self, *, inner=None, outer=None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.slope = nn.PReLU(1)
            self.conv = nn.Conv2d(3, 4, 3, stride=2)
            self.fc = nn.Linear(4, 4)
        self.register_buffer("wide", torch.linspace(0.3, 1.7, 4, dtype=torch.float64))
        self.register_buffer("wide_number", torch.tensor(0.3, dtype=torch.float64))
        self.register_buffer("whole", torch.arange(1, 5))
        self.inner = inner or (lambda model, x: x)
        self.outer = outer or (lambda model, x: x)

    def forward(self, x):
        x = self.inner(self, self.conv(x))
        return self.outer(self, self.fc(self.slope(x).mean((2, 3))))


def compared(model, *, way="auto"):
    """Returns the engine, and how far its derivative is from double backward's."""
    observation = update(model, bn="none")
    images = guesses(model)
    engine = engine_for(model, observation, distance=Cosine(), way=way)
    expected = PlainDoubleBackward(model, observation, distance=Cosine()).evaluate(images)
    return engine, relative(engine.evaluate(images).gradient, expected.gradient)


NUMBERS = {
    "add": lambda model, x: x + 0.1,
    "subtract": lambda model, x: 1 / 3 - x,
    "multiply": lambda model, x: x * 0.1,
    "divide": lambda model, x: x / 0.3,
    "logical": lambda model, x: x * True,
}


@pytest.mark.parametrize("arithmetic", NUMBERS.values(), ids=NUMBERS)
def test_a_number_has_all_the_digits_of_the_network(arithmetic):
    engine, error = compared(Arithmetic(inner=arithmetic).double().eval())
    assert engine.way == "exact"
    assert error < 1e-13


def test_a_normalisation_of_another_type_has_all_the_digits_of_the_network():
    normalize = Normalize([0.4, 0.5, 0.6], [0.21, 0.25, 0.3], buffers=False)
    engine, error = compared(nn.Sequential(normalize, Arithmetic().double()).eval())
    assert normalize.std.dtype == torch.float32
    assert engine.way == "exact"
    assert error < 1e-13


WIDER = {
    "buffer": lambda model, x: x * model.wide,
    "buffer-first": lambda model, x: model.wide - x,
    "divisor": lambda model, x: x / model.wide,
    "literal": lambda model, x: x + torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64),
    "complex": lambda model, x: (x * (1 + 1j)).real,
}


@pytest.mark.parametrize("arithmetic", WIDER.values(), ids=WIDER)
def test_a_constant_that_widens_what_follows_falls_back(arithmetic):
    engine, error = compared(Arithmetic(outer=arithmetic).eval())
    assert engine.reason is not None
    assert engine.reason.startswith("no rule for arithmetic with a constant of ")
    assert error == 0


NOT_WIDER = {
    "number": lambda model, x: x * model.wide_number,
    "whole": lambda model, x: x / model.whole,
    "mask": lambda model, x: x * (model.whole > 2),
    "literal": lambda model, x: x + torch.tensor(0.1, dtype=torch.float64),
}


@pytest.mark.parametrize("arithmetic", NOT_WIDER.values(), ids=NOT_WIDER)
def test_a_constant_that_widens_nothing_is_taken_over(arithmetic):
    engine, error = compared(Arithmetic(outer=arithmetic).eval())
    assert engine.way == "exact"
    assert error < 1e-5
