"""Control over TF32: what is set while an engine computes, and that nothing is left of it."""

from contextlib import contextmanager
from operator import attrgetter

import pytest
import torch
from torch import nn

from gradinv.engine import ExactROperator, PlainDoubleBackward, engine_for, evaluate_together
from gradinv.engine.distances import Cosine
from gradinv.engine.graphs import full_precision, lower_precision
from tests.engine.networks import guesses, update

NEWER = {
    "cuda.matmul.fp32_precision": "none",
    "cudnn.conv.fp32_precision": "tf32",
    "cudnn.rnn.fp32_precision": "tf32",
}
OLDER = {"cuda.matmul.allow_tf32": False, "cudnn.allow_tf32": True}

pytestmark = pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"),
    reason="this PyTorch has the older flags alone",
)


def read(name: str):
    try:
        return attrgetter(name)(torch.backends)
    except RuntimeError:
        return "flags that disagree"


def write(name: str, value: object) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(attrgetter(owner)(torch.backends) if owner else torch.backends, attribute, value)


def flags() -> dict:
    try:
        named = torch.get_float32_matmul_precision()
    except RuntimeError:
        named = "flags that disagree"
    return {name: read(name) for name in (*NEWER, *OLDER)} | {"named": named}


# What programs write at their beginning: nothing, the older flags, the newer ones, the named one.
PROGRAMS = {
    "nothing": {},
    "older-off": {"cuda.matmul.allow_tf32": False, "cudnn.allow_tf32": False},
    "older-on": {"cuda.matmul.allow_tf32": True, "cudnn.allow_tf32": True},
    "newer-products": {"cuda.matmul.fp32_precision": "tf32"},
    "newer-convolutions": {"cudnn.conv.fp32_precision": "ieee"},
    "newer-all": {"fp32_precision": "tf32"},
    "newer-all-off": {"fp32_precision": "ieee"},
    "high": {"named": "high"},
    "medium": {"named": "medium"},
}


@pytest.fixture(params=PROGRAMS, ids=lambda name: name)
def program(request):
    """Sets what a program would, and afterwards what PyTorch begins with."""
    with restored():
        for name, value in PROGRAMS[request.param].items():
            torch.set_float32_matmul_precision(value) if name == "named" else write(name, value)
        yield request.param


@contextmanager
def restored():
    products = read("mkldnn.matmul.fp32_precision")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        write("mkldnn.matmul.fp32_precision", products)
        write("fp32_precision", "none")
        for name, value in (OLDER | NEWER).items():
            write(name, value)


@pytest.mark.parametrize(
    ("context", "precision"),
    [(full_precision, "ieee"), (lambda: lower_precision(True), "tf32")],
    ids=["full", "lower"],
)
def test_flags_are_set_and_then_what_they_were(context, precision, program):
    before, inside = flags(), {}

    def failing():
        with context():
            inside.update(flags())
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert [inside[name] for name in NEWER] == [precision] * 3
    # Older code, within PyTorch too, raises where it finds that flags disagree.
    assert [inside[name] for name in OLDER] == [precision == "tf32"] * 2
    assert flags() == before


class Watched(nn.Module):
    """A network that notes the precision that it computes in."""

    def __init__(self, seen: list) -> None:
        super().__init__()
        self.seen = seen
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        self.seen.append(flags())
        return self.fc(torch.sigmoid(self.conv(x)).mean((2, 3)))


def test_double_backward_computes_in_full_precision(program):
    seen = []
    model = Watched(seen).eval()
    engine = PlainDoubleBackward(model, update(model, bn="none"), distance=Cosine())
    for compute in (engine.evaluate, engine.matching):
        seen.clear()
        compute(guesses(model))
        assert [each[name] for each in seen for name in NEWER] == ["ieee"] * 6


def test_the_exact_way_alone_and_together_computes_in_full_precision(program, monkeypatch):
    seen = []
    model = Watched([]).eval()
    engines = [engine_for(model, update(model, bn="none"), distance=Cosine()) for _ in range(2)]
    images = guesses(model)
    for engine in engines:
        assert isinstance(engine, ExactROperator)
        forward = engine.program.nodes[0].op.forward
        monkeypatch.setattr(
            engine.program.nodes[0].op,
            "forward",
            lambda *inputs, forward=forward: seen.append(flags()) or forward(*inputs),
        )
        engine.fitting(images)
    for compute in (
        lambda: engines[0].evaluate(images),
        lambda: engines[0].matching(images),
        lambda: evaluate_together(engines, images),
    ):
        seen.clear()
        compute()
        assert seen
        assert {each[name] for each in seen for name in NEWER} == {"ieee"}
