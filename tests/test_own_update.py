"""An update that plain PyTorch made is attacked as well as one that gradinv simulated."""

import copy

import pytest
import torch
from torch import nn

import gradinv
from gradinv.attacks.preflight import Kind, preflight
from gradinv.data import load_images
from gradinv.federated import LocalOptimizer, Loss
from gradinv.models import build_model

LR, STEPS, SMOOTHING = 0.01, 3, 0.1
OPTIMIZERS = {
    "sgd": (
        lambda parameters: torch.optim.SGD(parameters, LR, momentum=0.9, weight_decay=5e-4),
        LocalOptimizer(momentum=0.9, weight_decay=5e-4),
        {Kind.WEIGHT_DECAY, Kind.TOO_LONG},
    ),
    "adam": (
        lambda parameters: torch.optim.Adam(parameters, LR),
        LocalOptimizer("adam"),
        {Kind.ADAPTIVE},
    ),
}


def plain_training(model, images, labels, optimizer):
    """Twenty lines of a client that knows nothing of gradinv."""
    model = copy.deepcopy(model)
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    stepper = optimizer(model.parameters())
    for _ in range(STEPS):
        stepper.zero_grad()
        criterion(model(images), labels).backward()
        stepper.step()
    return model.state_dict()


@pytest.fixture(params=OPTIMIZERS)
def case(request):
    optimizer, stated, kinds = OPTIMIZERS[request.param]
    model = build_model("lenet", num_classes=10, channels=1, image_size=32, seed=0)
    images = load_images(None)
    (batch,) = images.batches(batch_size=1, count=1, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = plain_training(model, batch.images, batch.labels, optimizer)

    def imported(**protocol):
        return gradinv.from_state_dicts(
            before, after, model, lr=LR, image_shape=(1, 32, 32), num_classes=10, batch_size=1,
            labels=batch.labels, **protocol,
        )  # fmt: skip

    protocol = gradinv.FedAvg(
        local_epochs=STEPS, lr=LR, loss=Loss(smoothing=SMOOTHING), optimizer=stated
    )
    return model, batch, imported, protocol, kinds


def quality(update, model, batch):
    found = gradinv.invert(
        update,
        model,
        attack="gi-x:steps=250:lr=0.1:tv=0.01:signed=yes:schedule=step",
        seed=0,
        progress=False,
    )
    return float(-10 * (found.images - batch.images).square().mean().log10())


def test_it_is_the_simulations_update_and_inverted_as_well(case):
    model, batch, imported, protocol, _ = case
    ours = gradinv.observe(model, batch, protocol=protocol)
    theirs = imported(protocol=protocol)
    for name, value in ours.gradient.items():
        # A difference of float32 weights divided by lr.
        allowed = 4e-7 * float(model.get_parameter(name).detach().abs().max()) / LR + 1e-4
        assert (value - theirs.gradient[name]).abs().max() <= allowed, name
    assert abs(quality(theirs, model, batch) - quality(ours, model, batch)) < 0.3


def test_what_is_missing_is_named_where_it_is_not_given(case):
    model, _, imported, protocol, kinds = case
    found = {finding.kind for finding in preflight(imported(), model).findings}
    assert kinds <= found
    assert preflight(imported(protocol=protocol), model).findings == ()
