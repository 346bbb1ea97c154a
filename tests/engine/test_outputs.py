"""Networks that return more than logits: the same update, the same engine, the same derivative."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gradinv.attacks.evidence.head import find_head
from gradinv.attacks.recursion.ranks import rank_analysis
from gradinv.data import ClientBatch
from gradinv.engine import engine_for
from gradinv.engine.distances import SquaredL2
from gradinv.federated.observing import observe


class Wrapped(nn.Sequential):
    def __init__(self, wrap) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, 3, 3, stride=2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(27, 4)
        )
        self.wrap = wrap

    def forward(self, input):
        return self.wrap(super().forward(input))


WRAPS = {
    "tuple": lambda logits: (logits, None),
    "dict": lambda logits: {"logits": logits, "loss": None},
    "object": lambda logits: SimpleNamespace(logits=logits),
}


@pytest.fixture
def client() -> ClientBatch:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return ClientBatch(images, torch.tensor([3, 0]), (0, 1))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_is_the_network_inside(wrap, client):
    plain, wrapped = Wrapped(lambda logits: logits).eval(), Wrapped(wrap).eval()
    updates = [observe(model, client) for model in (plain, wrapped)]
    for name, value in updates[0].gradient.items():
        assert torch.equal(updates[1].gradient[name], value)
    trial = torch.rand(1, 2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    engines = [
        engine_for(model, update, distance=SquaredL2())
        for model, update in zip((plain, wrapped), updates, strict=True)
    ]
    assert engines[1].way == "exact"
    found = [engine.evaluate(trial).gradient for engine in engines]
    assert torch.equal(*found)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_closed_forms_see_it_too(wrap):
    wrapped = Wrapped(wrap).eval()
    assert find_head(wrapped, torch.rand(2, 1, 8, 8)).weight_name == "3.weight"
    plain = rank_analysis(Wrapped(lambda logits: logits).eval(), (1, 8, 8))
    assert rank_analysis(wrapped, (1, 8, 8)) == plain
