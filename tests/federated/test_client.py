"""The client's gradient: against .backward(), against finite differences, without side effects."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradinv.errors import ModelError
from gradinv.federated.client import logits, loss_gradient
from gradinv.models.convnet import ConvNet
from gradinv.models.resnet import ResNet18
from gradinv.models.weights import fingerprint


def smooth_victim() -> nn.Module:
    """No ReLU, so that finite differences cross no kink; batch norm and a linear head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, bias=False),
        nn.BatchNorm2d(3),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(27, 5),
    ).double()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("victim", ["convnet", "resnet18"])
def test_equals_backward(victim, mode, model, batch):
    if victim == "resnet18":
        torch.manual_seed(0)
        model = ResNet18(5, channels=2)
    model.train(mode == "train")
    reference = copy.deepcopy(model)
    functional.cross_entropy(reference(batch.images), batch.labels).backward()
    gradient = loss_gradient(model, batch.images, batch.labels)
    assert list(gradient) == [name for name, _ in reference.named_parameters()]
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, msg=name)
        assert gradient[name].abs().max() > 0, name


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_equals_finite_differences(mode, batch):
    model = smooth_victim().train(mode == "train")
    images = batch.images.double()
    generator = torch.Generator().manual_seed(2)
    direction = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in model.named_parameters()
    }

    def loss(step: float) -> Tensor:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, value in moved.named_parameters():
                value.add_(direction[name], alpha=step)
            return functional.cross_entropy(moved(images), batch.labels)

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    gradient = loss_gradient(model, images, batch.labels)
    expected = sum((gradient[name] * direction[name]).sum() for name in gradient)
    torch.testing.assert_close(slope, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_differentiable_in_images_and_soft_labels(mode, batch):
    model = smooth_victim().train(mode == "train")
    soft = torch.rand(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def all_gradients(images: Tensor, free: Tensor) -> tuple[Tensor, ...]:
        return tuple(loss_gradient(model, images, free.softmax(dim=1), create_graph=True).values())

    images = batch.images[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(all_gradients, (images, soft.requires_grad_()))


def test_one_hot_labels_are_the_classes(model, batch):
    hot = functional.one_hot(batch.labels, 5).float()
    soft = loss_gradient(model, batch.images, hot)
    for name, value in loss_gradient(model, batch.images, batch.labels).items():
        torch.testing.assert_close(soft[name], value)


@pytest.mark.parametrize("create_graph", [False, True])
def test_train_mode_changes_nothing(model, batch, create_graph):
    model.train()
    before = fingerprint(model)
    loss_gradient(model, batch.images, batch.labels, create_graph=create_graph)
    logits(model, batch.images)
    assert fingerprint(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    model(batch.images)  # the same call without the copies does change them
    assert fingerprint(model) != before


def test_one_layer_in_train_mode_changes_nothing_either(model, batch):
    model.blocks.block2.bn.train()
    before = fingerprint(model)
    loss_gradient(model, batch.images, batch.labels)
    assert fingerprint(model) == before


def test_modes_differ(model, batch):
    evaluated = loss_gradient(model, batch.images, batch.labels)
    trained = loss_gradient(model.train(), batch.images, batch.labels)
    assert not torch.allclose(evaluated["head.weight"], trained["head.weight"])


def test_graph_only_on_demand(model, batch):
    images = batch.images.clone().requires_grad_()
    kept = loss_gradient(model, images, batch.labels, create_graph=True)
    assert all(value.requires_grad for value in kept.values())
    dropped = loss_gradient(model, images, batch.labels)
    assert not any(value.requires_grad for value in dropped.values())


def test_works_inside_no_grad(model, batch):
    expected = loss_gradient(model, batch.images, batch.labels)
    with torch.no_grad():
        gradient = loss_gradient(model, batch.images, batch.labels)
    assert all(torch.equal(gradient[name], value) for name, value in expected.items())


def test_frozen_parameters_are_left_out_and_unreached_ones_are_zero(model, batch):
    model.blocks.requires_grad_(False)
    model.idle = nn.Linear(2, 2)
    gradient = loss_gradient(model, batch.images, batch.labels)
    assert list(gradient) == ["head.weight", "head.bias", "idle.weight", "idle.bias"]
    assert torch.equal(gradient["idle.weight"], torch.zeros(2, 2))


def test_nothing_to_train(model, batch):
    with pytest.raises(ModelError, match="expected at least one parameter with requires_grad"):
        loss_gradient(model.requires_grad_(False), batch.images, batch.labels)


def test_a_network_that_detaches(batch):
    class Detaching(ConvNet):
        def forward(self, images):
            return super().forward(images).detach()

    with pytest.raises(ModelError, match="got logits without a gradient; take no_grad and detach"):
        loss_gradient(Detaching(5, 2, 8).eval(), batch.images, batch.labels)
