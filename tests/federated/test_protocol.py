"""Protocols and threat models are values; meaningless ones are refused."""

from typing import Any

import pytest
import torch

from gradinv.errors import ConfigError
from gradinv.federated.protocol import FedAvg, FedSGD, Reveal


def test_values():
    assert FedSGD() == FedSGD(mode="eval") != FedSGD(mode="train")
    assert Reveal() == Reveal(labels=True, bn_statistics="none", clients=1)
    assert len({FedSGD(), FedSGD("eval"), Reveal(), Reveal(clients=2)}) == 3
    assert FedAvg() == FedAvg(5, None, 0.01, 0.0, "eval") != FedAvg(mode="train")


@pytest.mark.usefixtures("without_type_checks")
def test_unknown_values():
    unknown: Any = "test"
    with pytest.raises(ConfigError, match="expected mode 'eval' or 'train', got 'test'; choose"):
        FedSGD(mode=unknown)
    with pytest.raises(ConfigError, match="expected mode 'eval' or 'train', got 'test'; choose"):
        FedAvg(mode=unknown)
    with pytest.raises(
        ConfigError, match="bn_statistics among none, running, exact, got 'test'; choose one"
    ):
        Reveal(bn_statistics=unknown)


def test_an_order_of_nothing():
    with pytest.raises(ConfigError, match="expected revealed labels with a revealed order, got"):
        Reveal(labels=False, order=True)


def test_nobody():
    with pytest.raises(ConfigError, match="expected at least 1 client, got 0; give the number"):
        Reveal(clients=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_epochs": 0}, "expected at least 1 local epoch, got 0; one epoch"),
        ({"batch_size": 0}, "expected at least 1 image in a local step, got 0; leave it out"),
        ({"lr": 0.0}, "learning rate above 0 and finite, got 0.0; try 0.01"),
        ({"lr": float("inf")}, "learning rate above 0 and finite, got inf"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\), got 1.0; try 0.9"),
        ({"momentum": -0.1}, r"momentum in \[0, 1\), got -0.1"),
    ],
)
def test_local_training_without_meaning(settings, message):
    with pytest.raises(ConfigError, match=message):
        FedAvg(**settings)


@pytest.mark.parametrize(
    ("batch_size", "count", "sizes"),
    [(None, 5, [5]), (2, 5, [2, 2, 1]), (5, 5, [5]), (8, 5, [5]), (1, 3, [1, 1, 1])],
)
def test_an_epoch_uses_every_image_once(batch_size, count, sizes, generator):
    protocol = FedAvg(local_epochs=3, batch_size=batch_size)
    order = protocol.order(count, generator)
    assert [len(step) for step in order] == sizes * 3
    assert len(order) == protocol.steps(count)
    assert protocol.splits(count) == (len(sizes) > 1)
    for epoch in range(3):
        steps = order[epoch * len(sizes) : (epoch + 1) * len(sizes)]
        assert sorted(image for step in steps for image in step) == list(range(count))


def test_every_epoch_has_an_order_of_its_own():
    def order(seed: int):
        return FedAvg(2, 1).order(20, torch.Generator().manual_seed(seed))

    assert order(0) == order(0) != order(1)
    assert order(0)[:20] != order(0)[20:]


def test_nothing_is_drawn_where_nothing_is_split(generator):
    before = generator.get_state()
    FedAvg(local_epochs=4, batch_size=3).order(3, generator)
    assert torch.equal(generator.get_state(), before)
    assert FedAvg(local_epochs=1).order(2, None) == ((0, 1),)
    with pytest.raises(
        ConfigError, match=r"expected a torch\.Generator for the order of the local"
    ):
        FedAvg(batch_size=2).order(3, None)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_gradients_in_an_update(momentum):
    """Against SGD whose gradient is 1 wherever it is."""
    protocol = FedAvg(local_epochs=2, batch_size=2, lr=0.1, momentum=momentum)
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=momentum)
    for _ in range(protocol.steps(5)):
        weight.grad = torch.ones_like(weight)
        sgd.step()
    assert protocol.gradients(5) == pytest.approx(-weight.item() / 0.1, rel=1e-12)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_an_order_that_no_machine_can_hold(batch_size, generator):
    protocol = FedAvg(local_epochs=10**12, batch_size=batch_size)
    with pytest.raises(
        ConfigError,
        match=r"expected an order of local steps that fits into .*; lower the local epochs \(--lo",
    ):
        protocol.order(3, generator)
