"""Layers that are called twice or go by two names, and branches that never reach the logits."""

import pytest
import torch
from torch import nn

from gradinv.attacks.search.regularizers import BatchNormMatching
from gradinv.engine import PlainDoubleBackward, engine_for
from gradinv.engine.distances import Cosine
from tests.engine.networks import guesses, relative, shake, update


class TwoNames(nn.Module):
    """One batch norm that is called twice, the second time by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.norm
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.again(self.second(x)))
        return self.head(x.mean((2, 3)))


class Auxiliary(nn.Module):
    """A second classifier, which the loss does not look at, beside the one that it does."""

    def __init__(self, *, norm: bool, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.beside = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.Flatten(),
            nn.Linear(64, width),
            nn.ReLU(),
            nn.Linear(width, width),
        )
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        beside = self.beside(x)
        return self.head(x.mean((2, 3))), beside


def built(make, mode: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        shake(model)
    return model.double().train(mode == "train")


def compared(model, way: str, regularizers=()):
    """Returns the engine, and how far its derivative is from double backward's."""
    observation, images = update(model), guesses(model)
    settings = {"distance": Cosine(), "regularizers": regularizers}
    engine = engine_for(model, observation, way=way, **settings)
    found = engine.evaluate(images)
    expected = PlainDoubleBackward(model, observation, **settings).evaluate(images)
    torch.testing.assert_close(found.cost, expected.cost)
    return engine, relative(found.gradient, expected.gradient)


WAYS = {"exact": 1e-9, "frozen-pattern": 1e-4}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("way", WAYS)
def test_of_a_norm_that_is_called_twice_the_last_call_has_the_statistics(way, mode):
    """As the client's recorder has it, which plain double backward differentiates through."""
    _, error = compared(built(TwoNames, mode), way, (BatchNormMatching(0.3),))
    assert error < WAYS[way]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("width", [4, 4000], ids=["small", "large"])
def test_a_branch_beside_the_logits_is_left_out(width, way, mode):
    """Of a large layer the exact way keeps products in place of a gradient, which has to be had."""
    model = built(lambda: Auxiliary(norm=False, width=width), mode)
    _, error = compared(model, way, (BatchNormMatching(0.3),))
    assert error < WAYS[way]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_norm_beside_the_logits_counts_where_statistics_are_matched(mode):
    model = built(lambda: Auxiliary(norm=True, width=4), mode)
    engine, error = compared(model, "auto")
    assert engine.way == "exact"
    assert error < WAYS["exact"]
    engine, error = compared(model, "auto", (BatchNormMatching(0.3),))
    assert error == 0
    assert (
        engine.reason == "no rule for statistics of a layer that the logits do not need (beside.1)"
    )
