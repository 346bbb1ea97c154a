"""Local training: against torch.optim.SGD, against one gradient, against finite differences."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradinv.errors import ModelError
from gradinv.federated.client import local_update, loss_gradient
from gradinv.federated.protocol import FedAvg, Order
from gradinv.models.weights import fingerprint
from tests.federated.test_client import smooth_victim


def chunks(order: Order, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for step in order:
        yield torch.stack([images[i] for i in step]), torch.stack([labels[i] for i in step])


def by_hand(model: nn.Module, images: Tensor, labels: Tensor, protocol: FedAvg, order: Order):
    """The weights that torch's own SGD leaves behind, in a copy of the model."""
    trained = copy.deepcopy(model)
    sgd = torch.optim.SGD(
        [p for p in trained.parameters() if p.requires_grad],
        lr=protocol.lr,
        momentum=protocol.momentum,
    )
    for x, y in chunks(order, images, labels):
        sgd.zero_grad()
        functional.cross_entropy(trained(x), y).backward()
        sgd.step()
    start = dict(model.named_parameters())
    return {
        name: (start[name] - value).detach() / protocol.lr
        for name, value in trained.named_parameters()
        if value.requires_grad
    }


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_equals_torchs_sgd(batch_size, momentum, mode, create_graph, batch, generator):
    model = smooth_victim().train(mode == "train")
    images = torch.cat([batch.images, 1 - batch.images]).double()
    labels = torch.cat([batch.labels, batch.labels])
    protocol = FedAvg(2, batch_size, lr=0.3, momentum=momentum, mode=mode)
    order = protocol.order(6, generator)
    expected = by_hand(model, images, labels, protocol, order)
    update = local_update(model, images, labels, protocol, order, create_graph=create_graph)
    assert list(update) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(update[name].detach(), value, rtol=1e-9, atol=1e-12)
    if protocol.steps(6) > 1:
        apart = loss_gradient(model, images, labels)["4.bias"] * protocol.gradients(6)
        assert not torch.allclose(update["4.bias"].detach(), apart, rtol=1e-2)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_step_is_the_gradient(momentum, mode, batch):
    model = smooth_victim().train(mode == "train")
    images = batch.images.double()
    protocol = FedAvg(local_epochs=1, lr=0.01, momentum=momentum, mode=mode)
    update = local_update(model, images, batch.labels, protocol, protocol.order(3, None))
    for name, value in loss_gradient(model, images, batch.labels).items():
        torch.testing.assert_close(update[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_its_gradient_is_the_finite_difference(momentum, mode, batch, generator):
    model = smooth_victim().train(mode == "train")
    images = torch.cat([batch.images, 1 - batch.images]).double()
    soft = torch.rand((6, 5), generator=generator, dtype=torch.float64).softmax(dim=1)
    protocol = FedAvg(2, 4, lr=0.5, momentum=momentum, mode=mode)
    order = protocol.order(6, generator)
    weights = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in model.named_parameters()
    }

    def projected(x: Tensor, y: Tensor, *, create_graph: bool = False) -> Tensor:
        update = local_update(model, x, y, protocol, order, create_graph=create_graph)
        return torch.stack([(update[name] * weights[name]).sum() for name in weights]).sum()

    x, y = images.clone().requires_grad_(), soft.clone().requires_grad_()
    slopes = torch.autograd.grad(projected(x, y, create_graph=True), (x, y))
    step = 1e-5
    for place, point in enumerate((images, soft)):
        for _ in range(3):
            direction = torch.randn(point.shape, generator=generator, dtype=point.dtype)
            ahead, behind = [images, soft], [images, soft]
            ahead[place] = point + step * direction
            behind[place] = point - step * direction
            expected = (projected(*ahead) - projected(*behind)).item() / (2 * step)
            found = (slopes[place] * direction).sum().item()
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_model_is_as_it_was(model, batch, generator, create_graph):
    model.train()
    before = fingerprint(model)
    protocol = FedAvg(2, 2, lr=0.1, momentum=0.9, mode="train")
    order = protocol.order(3, generator)
    local_update(model, batch.images, batch.labels, protocol, order, create_graph=create_graph)
    assert fingerprint(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.is_leaf for parameter in model.parameters())


class Counting(nn.Module):
    """Each call in train mode doubles what the next one returns."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(128, 5)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x.flatten(1)) * self.scale.clone()
        if self.training:
            self.scale.mul_(2)
        return out


def test_buffers_live_on_from_step_to_step(batch):
    torch.manual_seed(0)
    model = Counting().double().train()
    protocol = FedAvg(local_epochs=3, lr=0.1, mode="train")
    order = protocol.order(3, None)
    images = batch.images.double()
    update = local_update(model, images, batch.labels, protocol, order)
    with torch.no_grad():
        before = model.linear.weight.clone()
    for scale in (1.0, 2.0, 4.0):
        out = model.linear(images.flatten(1)) * scale
        gradients = torch.autograd.grad(
            functional.cross_entropy(out, batch.labels), list(model.linear.parameters())
        )
        with torch.no_grad():
            for parameter, gradient in zip(model.linear.parameters(), gradients, strict=True):
                parameter.sub_(0.1 * gradient)
    expected = (before - model.linear.weight.detach()) / 0.1
    torch.testing.assert_close(update["linear.weight"], expected, rtol=1e-9, atol=1e-12)
    assert model.scale.item() == 1


def test_frozen_parameters_stay_and_are_left_out(model, batch):
    model.blocks.requires_grad_(False)
    protocol = FedAvg(local_epochs=2, lr=0.1)
    order = protocol.order(3, None)
    update = local_update(model, batch.images, batch.labels, protocol, order)
    assert list(update) == ["head.weight", "head.bias"]
    expected = by_hand(model, batch.images, batch.labels, protocol, order)
    torch.testing.assert_close(update["head.weight"], expected["head.weight"])
    with pytest.raises(ModelError, match="expected at least one parameter with requires_grad"):
        local_update(model.requires_grad_(False), batch.images, batch.labels, protocol, order)


def test_works_inside_no_grad_and_keeps_no_graph(model, batch):
    protocol = FedAvg(local_epochs=2, lr=0.1)
    order = protocol.order(3, None)
    expected = local_update(model, batch.images, batch.labels, protocol, order)
    with torch.no_grad():
        found = local_update(model, batch.images, batch.labels, protocol, order)
        images = batch.images.clone().requires_grad_()
        kept = local_update(model, images, batch.labels, protocol, order, create_graph=True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not any(value.requires_grad for value in expected.values())
    assert all(value.requires_grad for value in kept.values())
