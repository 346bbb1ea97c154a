"""Losses other than the mean cross entropy: the cost's derivative, whatever the engine."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradinv.data import ClientBatch
from gradinv.engine import engine_for
from gradinv.engine.distances import SquaredL2
from gradinv.errors import AttackError
from gradinv.federated.loss import Loss
from gradinv.federated.observing import observe
from gradinv.federated.optimizer import LocalOptimizer
from gradinv.federated.protocol import FedAvg, FedSGD

LOSSES = [Loss(smoothing=0.1), Loss(reduction="sum", scale=0.5), Loss("bce")]


def victim() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(27, 4)
    ).double()


def client() -> ClientBatch:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return ClientBatch(images.double(), torch.tensor([3, 0]), (0, 1))


def check(observed) -> None:
    engine = engine_for(victim().eval(), observed, distance=SquaredL2())
    images = client().images[None].clone()
    assert engine.evaluate(images).matching.item() < 1e-20
    trial = torch.rand(images.shape, generator=torch.Generator().manual_seed(2)).double()
    along = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)).double()
    step = 1e-5
    rise = engine.matching(trial + step * along) - engine.matching(trial - step * along)
    slope = (engine.evaluate(trial).gradient * along).sum()
    torch.testing.assert_close(slope, rise[0] / (2 * step), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_of_one_gradient(loss):
    observed = observe(victim().eval(), client(), protocol=FedSGD(loss=loss))
    check(observed)
    reason = engine_for(victim().eval(), observed, distance=SquaredL2()).reason
    assert reason is not None
    assert f"the loss {loss}" in reason


@pytest.mark.parametrize("loss", LOSSES, ids=str)
# Adam with its usual eps is nearly a sign, too steep where a gradient is small for a difference.
@pytest.mark.parametrize(
    "optimizer",
    [LocalOptimizer(momentum=0.9, weight_decay=0.01), LocalOptimizer("adam", eps=1e-2)],
    ids=str,
)
def test_of_local_training(loss, optimizer):
    protocol = FedAvg(2, lr=0.01, loss=loss, optimizer=optimizer)
    observed = observe(victim().eval(), client(), protocol=protocol)
    check(replace(observed, order=protocol.order(2, None)))


def test_the_exact_way_refuses_another_loss():
    observed = observe(victim().eval(), client(), protocol=FedSGD(loss=Loss("bce")))
    with pytest.raises(AttackError, match="got none for the loss bce; use way='auto'"):
        engine_for(victim().eval(), observed, distance=SquaredL2(), way="exact")
