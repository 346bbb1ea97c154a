"""Adam as attacks use it, against the algorithm of Kingma and Ba (2015) on plain numbers."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from gradinv.attacks.search.cost import StageCost
from gradinv.attacks.search.optimizers import Adam, AdamStepper
from gradinv.attacks.search.spaces import SearchSpace

STARTS = [[0.5, -2.0, 3.0], [40.0, 0.0, -0.01]]  # of two restarts
SLOPES = torch.tensor([[3.0, 0.2, -7.0], [-0.001, 5.0, 1.0]])


class Points(SearchSpace):
    """Parameters that are given; there are no images."""

    def __init__(self, **parameters):
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, value)


class Given(StageCost):
    """A cost whose value and gradients are functions of the step's number."""

    def __init__(self, value, **gradients):
        vars(self).update(given=value, gradients=gradients, step=itertools.count(1))

    def evaluate(self, point=None):
        step = next(vars(self)["step"])
        found = {name: gradient(step) for name, gradient in vars(self)["gradients"].items()}
        return vars(self)["given"](step), found


def finite(_step):
    return torch.ones(2)


def turning(step):
    """A gradient whose signs and sizes change from step to step."""
    return SLOPES * math.cos(step) / step


def adam(starts, gradients, rates):
    """Algorithm 1 of the paper, one number at a time."""
    points = [[*row] for row in starts]
    for row, start in enumerate(starts):
        for column in range(len(start)):
            first = second = 0.0
            for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
                g = gradient[row][column]
                first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
                m, v = first / (1 - 0.9**t), second / (1 - 0.999**t)
                points[row][column] -= rate * m / (math.sqrt(v) + 1e-8)
    return torch.tensor(points)


def run(settings, cost, steps, factor=lambda _step: 1.0, **parameters) -> Any:
    space = Points(**parameters)
    stepper = AdamStepper(settings, space, torch.Generator().manual_seed(4))
    for step in range(1, steps + 1):
        stepper.step(cost, factor(step))
    return space


@pytest.mark.parametrize("signed", [False, True])
def test_signed_adam_is_fed_the_sign_of_the_gradient_and_adam_the_gradient(signed):
    space = run(
        Adam(0.1, signed=signed), Given(finite, u=turning), 6, u=nn.Parameter(torch.tensor(STARTS))
    )
    seen = [turning(step) for step in range(1, 7)]
    # Geiping et al. 2020 give Adam nothing of the gradient but its sign.
    fed = [[[math.copysign(1, x) for x in row] for row in g.tolist()] for g in seen]
    expected = adam(STARTS, fed if signed else [g.tolist() for g in seen], [0.1] * 6)
    torch.testing.assert_close(space.u.detach(), expected, rtol=1e-5, atol=1e-5)


def test_the_schedule_scales_the_rate_of_z_and_of_w():
    factors = [1.0, 0.5, 0.25]
    z, w = nn.Parameter(torch.tensor(STARTS)), nn.ParameterList([torch.tensor(STARTS)])
    cost = Given(finite, z=turning, **{"w.0": turning})
    space = run(Adam(0.1, lr_weights=0.002), cost, 3, lambda t: factors[t - 1], z=z, w=w)
    seen = [turning(step).tolist() for step in (1, 2, 3)]
    for found, lr in ((space.z, 0.1), (space.w[0], 0.002)):
        expected = adam(STARTS, seen, [lr * factor for factor in factors])
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    w = nn.ParameterList([torch.tensor(STARTS)])
    same = run(Adam(0.1), Given(finite, **{"w.0": turning}), 3, w=w)
    torch.testing.assert_close(same.w[0].detach(), adam(STARTS, seen, [0.1] * 3))


def test_a_restart_whose_cost_is_not_finite_is_fed_zeros_and_spoils_no_other():
    def lost(step):
        return torch.tensor([math.nan if step > 1 else 1.0, 1.0])

    def gradient(step):
        slopes = SLOPES.clone()
        if step > 1:
            slopes[0] = math.nan
        return slopes

    space = run(Adam(0.1), Given(lost, u=gradient), 4, u=nn.Parameter(torch.tensor(STARTS)))
    fed = [SLOPES.tolist(), *[[[0.0] * 3, SLOPES[1].tolist()]] * 3]
    torch.testing.assert_close(space.u.detach(), adam(STARTS, fed, [0.1] * 4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_noise_is_in_learning_rates_of_each_step(noise):
    """Yin et al. 2021, eq. 13: the learning rate that noise is measured in is the present one."""
    nothing = torch.zeros(2, 40_000)
    space = run(
        Adam(0.1, noise=noise), Given(finite, u=lambda _: nothing), 2, lambda t: [3.0, 4.0][t - 1],
        u=nn.Parameter(nothing.clone()),
    )  # fmt: skip
    # A gradient of zero moves nothing: sqrt(3^2 + 4^2) rates of noise are all there is.
    assert space.u.std().item() == pytest.approx(noise * 0.1 * 5, rel=0.02)
    assert abs(space.u.mean().item()) < 0.02 * max(noise, 1e-9)


def test_what_is_not_searched_does_not_move():
    held = nn.Parameter(torch.tensor(STARTS), requires_grad=False)
    space = run(Adam(0.1), Given(finite, u=turning), 2, u=nn.Parameter(torch.zeros(2, 3)), v=held)
    assert space.v.tolist() == torch.tensor(STARTS).tolist()
    assert bool((space.u != 0).all())
