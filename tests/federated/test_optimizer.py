"""Local training against plain PyTorch, its derivative against finite differences, texts."""

import copy

import pytest
import torch
from torch import nn

from gradinv.data import ClientBatch
from gradinv.errors import ConfigError, ObservationError
from gradinv.federated.client import local_update
from gradinv.federated.loss import Loss
from gradinv.federated.observation import Observation
from gradinv.federated.observing import observe
from gradinv.federated.optimizer import LocalOptimizer, parse_optimizer
from gradinv.federated.protocol import FedAvg, FedSGD

OPTIMIZERS = [
    LocalOptimizer(momentum=0.9, weight_decay=5e-4),
    LocalOptimizer(momentum=0.9, dampening=0.3),
    LocalOptimizer(momentum=0.9, nesterov=True, weight_decay=0.1),
    LocalOptimizer("adam", weight_decay=0.01),
    LocalOptimizer("adamw", weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6),
]


def torch_optimizer(optimizer: LocalOptimizer, parameters, lr: float) -> torch.optim.Optimizer:
    if optimizer.kind == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=optimizer.momentum,
            dampening=optimizer.dampening,
            nesterov=optimizer.nesterov,
            weight_decay=optimizer.weight_decay,
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer.kind]
    return kind(
        parameters,
        lr=lr,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
    )


def smooth() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(27, 5)
    ).double()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_is_what_plain_pytorch_does(optimizer, batch):
    model = smooth()
    trained = copy.deepcopy(model)
    images, lr = batch.images.double(), 0.05
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    stepper = torch_optimizer(optimizer, trained.parameters(), lr)
    for _ in range(3):
        stepper.zero_grad()
        criterion(trained(images), batch.labels).backward()
        stepper.step()
    protocol = FedAvg(local_epochs=3, lr=lr, loss=Loss(smoothing=0.1), optimizer=optimizer)
    update = local_update(model, images, batch.labels, protocol, protocol.order(3, None))
    for (name, start), end in zip(model.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(update[name], (start - end) / lr, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_derivative_in_the_images(optimizer, batch):
    model = smooth()
    protocol = FedAvg(local_epochs=2, lr=0.05, loss=Loss(smoothing=0.1), optimizer=optimizer)
    order = protocol.order(2, None)

    def update(images):
        return tuple(
            local_update(
                model, images, batch.labels[:2], protocol, order, create_graph=True
            ).values()
        )

    images = batch.images[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(update, (images,), fast_mode=True, atol=1e-4)


def test_an_unused_weight_leaves_adam_differentiable(batch):
    model = smooth()
    model.idle = nn.Linear(2, 2).double()
    used = nn.Sequential(*[model.get_submodule(str(place)) for place in range(4)])
    model.forward = used.__call__
    protocol = FedAvg(local_epochs=2, lr=0.05, optimizer=LocalOptimizer("adam"))
    images = batch.images.double().requires_grad_()
    update = local_update(
        model, images, batch.labels, protocol, protocol.order(3, None), create_graph=True
    )
    (slope,) = torch.autograd.grad([value.sum() for value in update.values()], images)
    assert torch.isfinite(slope).all()
    assert not update["idle.weight"].any()


def test_a_file_keeps_loss_and_optimizer(model, batch, tmp_path):
    protocol = FedAvg(
        2, loss=Loss(smoothing=0.1), optimizer=LocalOptimizer(momentum=0.9, weight_decay=5e-4)
    )
    observe(model, batch, protocol=protocol).save(tmp_path / "u.safetensors")
    assert Observation.load(tmp_path / "u.safetensors").protocol == protocol


def test_the_usual_ones_are_not_written(model, batch, tmp_path):
    observe(model, batch).save(tmp_path / "u.safetensors")
    content = (tmp_path / "u.safetensors").read_bytes()
    assert b"optimizer" not in content
    assert b"loss" not in content
    assert Observation.load(tmp_path / "u.safetensors").protocol == FedSGD()


def test_one_logit_head_has_two_classes(batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 1)).eval()
    pairs = ClientBatch(batch.images, torch.tensor([1, 0, 1]), (0, 1, 2))
    observed = observe(model, pairs, protocol=FedSGD(loss=Loss("bce")))
    assert observed.num_classes == 2
    reference = nn.BCEWithLogitsLoss()(model(batch.images)[:, 0], pairs.labels.float())
    expected = torch.autograd.grad(reference, list(model.parameters()))
    for value, own in zip(observed.gradient.values(), expected, strict=True):
        torch.testing.assert_close(value, own)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_text_and_back(optimizer):
    assert parse_optimizer(str(optimizer)) == optimizer


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adma", "expected an optimiser among sgd, adam, adamw, got 'adma'"),
        ("adam:momentum=0.9", "expected settings of adam, got momentum; leave it out"),
        ("sgd:momentum=1", r"expected momentum in \[0, 1\), got 1.0"),
        ("sgd:weight-decay=-1", "expected a weight decay of at least 0, got -1.0"),
        ("sgd:momentum=0.9,dampening=2", r"expected dampening in \[0, 1\], got 2.0"),
        ("sgd:nesterov", "expected momentum without dampening for nesterov"),
        ("sgd:nesterov=1", "expected nesterov or nesterov=false in"),
        ("adam:eps=0", "expected eps above 0 and finite, got 0.0"),
    ],
)
def test_wrong_texts(spec, message, without_type_checks):
    with pytest.raises(ConfigError, match=message):
        parse_optimizer(spec)


def test_momentum_is_given_once():
    with pytest.raises(ConfigError, match="expected the momentum in the optimiser's settings"):
        FedAvg(momentum=0.9, optimizer=LocalOptimizer("adam"))


def test_length_of_an_update_in_gradients():
    same = FedAvg(3, optimizer=LocalOptimizer(momentum=0.9)).gradients(2)
    assert same == FedAvg(3, momentum=0.9).gradients(2)
    # 1, then 0.9 + 0.5, then 0.9 * 1.4 + 0.5.
    damped = FedAvg(3, optimizer=LocalOptimizer(momentum=0.9, dampening=0.5)).gradients(2)
    assert damped == pytest.approx(1 + 1.4 + 1.76)
    # 1 + 0.9 * 1, then 1 + 0.9 * 1.9.
    ahead = FedAvg(2, optimizer=LocalOptimizer(momentum=0.9, nesterov=True)).gradients(2)
    assert ahead == pytest.approx(1.9 + 2.71)
    with pytest.raises(ConfigError, match="expected SGD for an update that is read as one"):
        FedAvg(3, optimizer=LocalOptimizer("adam")).gradients(2)


def test_an_unreadable_optimizer_of_a_file(model, batch, tmp_path, without_type_checks):
    protocol = FedAvg(2, optimizer=LocalOptimizer("adam"))
    path = tmp_path / "u.safetensors"
    observe(model, batch, protocol=protocol).save(path)
    path.write_bytes(path.read_bytes().replace(b'"adam\\"', b'"adma\\"'))
    with pytest.raises(ObservationError, match="expected an optimiser among"):
        Observation.load(path)
