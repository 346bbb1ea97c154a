"""With one image the last layer's gradient tells its target, and so its loss and weights."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradinv.attacks.preflight import Kind, preflight
from gradinv.federated import loss_gradient, parse_defense
from gradinv.models import build_model
from tests.attacks.preflight.networks import images, mlp, seen, trained

SGD = torch.optim.SGD
SMOOTH = partial(functional.cross_entropy, label_smoothing=0.1)


def kinds(update, batch, model, *, hide=False, defenses=()) -> set[Kind]:
    observation = replace(seen(update, batch, hide=hide), defenses=defenses)
    return {one.kind for one in preflight(observation, model).findings}


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_another_last_layer_is_named_whatever_lies_before_it(hide, sigmoid):
    """Laws of the layers in front need ReLUs and say nothing of sigmoids."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 10))
    model = (model if sigmoid else mlp()).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        list(other.parameters())[-2].mul_(-1)
    batch = images(1)
    update = {k: v.detach() for k, v in loss_gradient(other, batch.images, batch.labels).items()}
    assert kinds(update, batch, model, hide=hide) == {Kind.OTHER_WEIGHTS}
    assert kinds(update, batch, other, hide=hide) == set()


@pytest.mark.parametrize("hide", [False, True])
def test_a_smoothed_label_is_named_with_its_amount(hide):
    model, batch = mlp(), images(1)
    update = trained(model, batch, SGD, lr=1.0, loss=SMOOTH)
    (finding,) = preflight(seen(update, batch, hide=hide), model).findings
    assert finding.kind is Kind.SMOOTHED
    assert finding.numbers["smoothing"] == pytest.approx(0.1, rel=1e-2)


def test_behind_a_clip_too_where_the_probabilities_differ():
    model, batch = mlp(), images(1)
    with torch.no_grad():
        list(model.parameters())[-2].mul_(5)  # as of a network that has learned something
    clip = parse_defense("clip:0.01")
    smooth = clip[0].apply(trained(model, batch, SGD, lr=1.0, loss=SMOOTH), None)
    honest = clip[0].apply(trained(model, batch, SGD, lr=1.0), None)
    assert kinds(smooth, batch, model, defenses=clip) == {Kind.SMOOTHED}
    assert kinds(honest, batch, model, defenses=clip) == set()


def test_more_steps_or_images_are_not_taken_for_one():
    model, batch = mlp(), images(2)
    update = trained(model, batch, SGD, lr=1.0, loss=SMOOTH)
    assert Kind.SMOOTHED not in kinds(update, batch, model)
    one = images(1)
    several = trained(model, one, SGD, lr=1e-3, steps=3)
    assert Kind.SMOOTHED not in kinds(several, one, model)


def test_adam_with_another_loss_sum_is_told_from_another_loss():
    """Its steps undo each other in many entries, but not in all of any tensor."""
    model = build_model("lenet", num_classes=10, channels=1, image_size=8, seed=0)
    batch = images(8)
    update = trained(model, batch, torch.optim.Adam, lr=0.02, steps=3)
    assert kinds(update, batch, model) == {Kind.ADAPTIVE}
