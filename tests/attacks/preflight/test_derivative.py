import pytest
import torch
from torch import nn

from gradinv.attacks import preset
from gradinv.attacks.preflight import Kind, preflight_derivative
from gradinv.attacks.preflight.derivative import derivative_findings
from gradinv.engine import PlainDoubleBackward
from gradinv.engine.distances import Cosine, SquaredL2
from tests.attacks.preflight.networks import Front
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_victim

COSINE = Cosine()


def looked(front, *, defense="none", distance=COSINE):
    model = Front(front, tiny_victim(channels=2)).eval()
    observation = tiny_observation(model, tiny_batch(channels=2), defense=defense)
    return derivative_findings(observation, model, distance=distance)


BLIND = {
    "rounds": lambda x: (x * 255).round() / 255,
    "detaches": lambda x: x.detach(),
    "casts to bytes": lambda x: (x * 255).byte().float() / 255,
    "casts to integers": lambda x: (x * 255).int() / 255.0,
}


@pytest.mark.parametrize("defense", ["none", "noise:0.1", "sparsify:0.95", "clip:0.1"])
@pytest.mark.parametrize("front", BLIND.values(), ids=BLIND)
def test_a_network_without_a_derivative_is_told_from_one_that_ignores_its_image(front, defense):
    (found,) = looked(front, defense=defense)
    assert found.kind is Kind.NO_DERIVATIVE
    (found,) = looked(lambda x: x * 0, defense=defense)
    assert found.kind is Kind.NO_DEPENDENCE


@pytest.mark.parametrize("distance", [Cosine(), SquaredL2()])
def test_nothing_is_found_where_nothing_is_wrong(distance):
    assert looked(lambda x: x, distance=distance) == []
    assert looked(lambda x: x.half().float(), distance=distance) == []


def test_a_channel_without_a_derivative_is_named_and_a_border_that_nobody_sees_is_noted():
    (found,) = looked(lambda x: torch.cat([x[:, :1], (x[:, 1:] * 16).round() / 16], dim=1))
    assert found.kind is Kind.PART_WITHOUT_DERIVATIVE
    assert found.detail == "50 % of its values: channel 1"
    inside = torch.arange(8).lt(6).float().view(1, 1, 8, 1)
    (found,) = looked(lambda x: x * inside)
    assert (found.kind, found.detail) == (Kind.PART_UNSEEN, "25 % of its values: rows 6 to 7")


class Backwards(torch.autograd.Function):
    """Computes x and says that it was -x."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        return -gradient


def test_a_cost_that_does_not_fall_along_its_derivative():
    (found,) = looked(lambda x: Backwards.apply(x))
    assert found.kind is Kind.COST_STANDS_STILL


def test_a_derivative_that_is_nowhere_finite():
    (found,) = looked(lambda x: x + (x - x).sqrt() * 1e-3)
    assert found.kind is Kind.NOT_FINITE


def test_each_distance_is_looked_at_once_and_closed_forms_not_at_all():
    model = Front(BLIND["rounds"], tiny_victim()).eval()
    observation = tiny_observation(model, tiny_batch())
    found = preflight_derivative(observation, model, [preset("gi-x"), preset("dlg")])
    assert [finding.kind for finding in found.findings] == [Kind.NO_DERIVATIVE]
    assert not found.can_carry
    assert preflight_derivative(observation, model, [preset("r-gap")]).can_carry


def test_the_plain_way_gives_zero_where_the_image_is_detached():
    model = Front(lambda x: x.detach(), nn.Sequential(nn.Flatten(), nn.Linear(64, 4))).eval()
    engine = PlainDoubleBackward(model, tiny_observation(model, tiny_batch()), distance=Cosine())
    assert not engine.evaluate(torch.rand(1, 2, 1, 8, 8)).gradient.any()
