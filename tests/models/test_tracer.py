"""A trace leaves nothing behind on the network."""

import pytest
import torch
from torch import nn

from gradinv.attacks.recursion.chain import chain_of
from gradinv.engine import engine_for
from gradinv.engine.distances import Cosine
from gradinv.errors import AttackError
from gradinv.models.tracer import Tracer
from tests.engine.networks import guesses, update


class Literal(nn.Module):
    """Makes a tensor in its forward, which torch.fx keeps on the network."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3, stride=2)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = torch.relu(self.inner(x) + torch.tensor(0.25))
        return self.fc(x.mean((2, 3))) * torch.tensor([1.0, 2.0, 3.0, 4.0])


class Keeping(Literal):
    """Keeps its features, as many do that are looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = None
        self.pool = KeepingPool()

    def forward(self, x):
        self.kept = self.inner(x)
        return self.fc(self.pool(self.kept))


class KeepingPool(nn.Module):
    def forward(self, x):
        self.pooled = x.mean((2, 3))
        return self.pooled


class Failing(Literal):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x + torch.tensor(1.0)


def test_constants_are_the_tracers():
    model = Literal()
    before = dict(vars(model))
    tracer = Tracer()
    graph = tracer.trace(model)
    assert vars(model) == before
    read = [node.target for node in graph.nodes if node.op == "get_attr"]
    assert [tracer.constants[name].tolist() for name in read] == [0.25, [1, 2, 3, 4]]


def test_what_a_network_keeps_is_no_proxy_afterwards():
    model = Keeping()
    Tracer().trace(model)
    assert model.kept is None
    assert not hasattr(model.pool, "pooled")
    model(torch.zeros(1, 3, 9, 9))
    kept = model.kept
    Tracer().trace(model)
    assert model.kept is kept
    assert model.pool.pooled.shape == (1, 4)


def test_what_a_network_counts_is_not_counted_by_a_trace():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 4)
            self.seen = nn.Buffer(torch.tensor(0))

        def forward(self, x):
            self.seen.add_(1)
            return self.head(x.mean((2, 3)))

    model = Counting()
    seen = model.seen
    Tracer().trace(model)
    assert model.seen is seen
    assert int(model.seen) == 0


@pytest.mark.parametrize("kind", [Literal, Failing])
def test_a_network_that_is_attacked_again_and_again_stays_as_it_is(kind):
    model = kind().double().eval()
    observation, before = update(model, bn="none"), dict(vars(model))
    engines = [engine_for(model, observation, distance=Cosine()) for _ in range(2)]
    assert [engine.way for engine in engines] == ["exact" if kind is Literal else "plain"] * 2
    first, second = (engine.evaluate(guesses(model)).gradient for engine in engines)
    assert torch.equal(first, second)
    with pytest.raises(AttackError):
        chain_of(model, (3, 9, 9))
    assert vars(model) == before
