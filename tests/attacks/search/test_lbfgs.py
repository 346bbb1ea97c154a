import numpy as np
import pytest
import scipy.optimize
import torch

from gradinv.attacks.search.lbfgs import LBFGS
from tests.attacks.landscapes import Landscape, on, position, rosenbrock


def run(cost, settings, steps, generator):
    stepper = settings.open(cost.space, generator)
    return stepper, torch.stack([stepper.step(cost, 1.0) for _ in range(steps)])


def test_it_finds_the_minimum_that_scipy_finds(generator):
    starts = torch.randn((3, 3), generator=generator, dtype=torch.float64)
    cost = on(Landscape(rosenbrock), starts)
    _, history = run(cost, LBFGS(), 80, generator)
    assert torch.allclose(position(cost), torch.ones_like(starts), atol=1e-6)
    assert (history[1:] <= history[:-1]).all()
    theirs = scipy.optimize.minimize(
        lambda x: float(rosenbrock(torch.from_numpy(x)[None])), starts[0].numpy(), method="BFGS"
    )
    assert np.allclose(position(cost)[0].numpy(), theirs.x, atol=1e-4)


def test_the_direction_is_that_of_dense_bfgs(generator):
    starts = torch.randn((2, 5), generator=generator, dtype=torch.float64)
    cost = on(Landscape(rosenbrock), starts)
    stepper, _ = run(cost, LBFGS(), 9, generator)
    for restart in range(2):
        s = stepper.s[-9:, restart].numpy()
        y = stepper.y[-9:, restart].numpy()
        inverse = np.eye(5) * (s[-1] @ y[-1]) / (y[-1] @ y[-1])
        for step, change in zip(s, y, strict=True):
            left = np.eye(5) - np.outer(step, change) / (step @ change)
            inverse = left @ inverse @ left.T + np.outer(step, step) / (step @ change)
        expected = -inverse @ stepper.gradient[restart].numpy()
        assert np.allclose(stepper._direction()[restart].numpy(), expected, rtol=1e-8)


def test_it_needs_few_evaluations_and_none_once_it_has_settled(generator):
    landscape = Landscape(lambda x: (x.square() * torch.tensor([1.0, 10.0, 100.0])).sum(1))
    cost = on(landscape, torch.tensor([[3.0, 2.0, 1.0]]))
    stepper, _ = run(cost, LBFGS(), 40, generator)
    assert position(cost).abs().max() < 1e-5
    assert stepper.settled.all()
    spent = landscape.evaluations
    assert spent < 120
    stepper.step(cost, 1.0)
    assert landscape.evaluations == spent


def narrow(x):
    """Falls with slope 1 to a kink at 0, and rises fifty times as steeply behind it."""
    return torch.where(x > 0, 50 * x, -x).sum(1)


@pytest.mark.parametrize(
    ("function", "start", "steps"),
    [
        (rosenbrock, [-1.2, 1.0], 12),
        (rosenbrock, [0.999, 0.9], 6),
        (narrow, [-1.6], 1),
        (narrow, [-40.0], 1),
    ],
)
def test_every_step_meets_both_wolfe_conditions(function, start, steps, generator):
    """Nocedal & Wright 2006, eq. 3.6, of the points alone: s has the sign of the direction."""
    cost = on(Landscape(function), torch.tensor([start], dtype=torch.float64))
    stepper = LBFGS().open(cost.space, generator)

    def at(x):
        x = x.detach().requires_grad_()
        value = function(x).sum()
        return value.detach(), torch.autograd.grad(value, x)[0]

    for _ in range(steps):
        before = position(cost).clone()
        stepper.step(cost, 1.0)
        s = position(cost) - before
        (value, gradient), (there, ahead) = at(before), at(position(cost))
        slope = (gradient * s).sum()
        assert slope < 0
        assert there <= value + 1e-4 * slope
        assert (ahead * s).sum() >= 0.9 * slope


def test_a_line_search_that_finds_nothing_is_tried_anew_down_the_slope(generator):
    """A wall that the step learned from the history jumps into, and a plain one does not."""

    def walled(x):
        return torch.where(x < -5, 0.05 * x.square(), torch.inf).sum(1)

    cost = on(Landscape(walled), torch.tensor([[-10.0]], dtype=torch.float64))
    stepper = LBFGS(probes=1).open(cost.space, generator)
    seen = []
    for _ in range(3):
        stepper.step(cost, 1.0)
        seen.append(position(cost).item())
    # The slope is x / 10: 1 down it; then 10 times the slope of 0.9, which is refused; then 0.9.
    assert seen == pytest.approx([-9.0, -9.0, -8.1])


def test_a_pair_of_negative_curvature_is_not_learned_from(generator):
    cost = on(Landscape(lambda x: -x.square().sum(1)), torch.tensor([[0.3, -0.2]]))
    stepper, _ = run(cost, LBFGS(probes=3), 1, generator)
    gradient = -2 * position(cost)
    assert gradient.abs().sum() > 1  # the hill has been left some way
    torch.testing.assert_close(stepper._direction(), -gradient / gradient.abs().sum())


def test_a_point_without_a_finite_gradient_is_not_stepped_on(generator):
    cost = on(Landscape(lambda x: x.square().sqrt().sum(1)), torch.tensor([[1.0]]))
    stepper, _ = run(cost, LBFGS(), 1, generator)  # the first try is 0, where sqrt has no slope
    assert 0 < position(cost).item() < 0.01
    for value in stepper.tensors().values():
        assert torch.isfinite(value).all()


def test_a_point_moved_by_others_is_left_down_its_own_slope(generator):
    cost = on(Landscape(rosenbrock), torch.tensor([[-1.0, 2.0]], dtype=torch.float64))
    stepper, _ = run(cost, LBFGS(), 5, generator)
    with torch.no_grad():
        next(cost.space.parameters()).fill_(2.0)
    stepper.step(cost, 1.0)
    step = (position(cost) - 2.0)[0]
    gradient = torch.tensor([1602.0, -400.0], dtype=torch.float64)  # at (2, 2), by hand
    cosine = (step @ gradient) / (step.norm() * gradient.norm())
    assert cosine.item() == pytest.approx(-1)


def test_restarts_do_not_see_each_other(generator):
    starts = torch.randn((3, 4), generator=generator, dtype=torch.float64)
    together = on(Landscape(rosenbrock), starts)
    _, costs = run(together, LBFGS(history=3), 15, generator)
    for index in range(3):
        alone = on(Landscape(rosenbrock), starts[index : index + 1])
        _, own = run(alone, LBFGS(history=3), 15, generator)
        assert torch.allclose(own[:, 0], costs[:, index], rtol=1e-9)


def test_a_restart_that_is_not_finite_stands_still(generator):
    cost = on(Landscape(rosenbrock), torch.tensor([[0.5, 0.5], [torch.nan, 0.0]]))
    _, costs = run(cost, LBFGS(), 30, generator)
    assert torch.isnan(costs[:, 1]).all()
    assert torch.allclose(position(cost)[0], torch.ones(2), atol=1e-2)
    assert position(cost)[1, 1] == 0


def test_a_wall_of_infinity_is_backed_away_from(generator):
    def walled(x):
        return torch.where(x.sum(1) < 0.5, (x - 0.4).square().sum(1), torch.inf)

    cost = on(Landscape(walled), torch.tensor([[-30.0]]))
    run(cost, LBFGS(), 20, generator)
    assert position(cost).item() == pytest.approx(0.4, abs=1e-3)


def test_a_point_moved_by_others_is_evaluated_anew(generator):
    cost = on(Landscape(rosenbrock), torch.tensor([[-1.0, 2.0]], dtype=torch.float64))
    stepper, _ = run(cost, LBFGS(), 5, generator)
    with torch.no_grad():
        next(cost.space.parameters()).fill_(2.0)
    assert stepper.step(cost, 1.0).item() == rosenbrock(torch.full((1, 2), 2.0)).item()


def test_state_survives_as_tensors(generator):
    starts = torch.randn((2, 4), generator=generator)
    whole = on(Landscape(rosenbrock), starts)
    run(whole, LBFGS(history=4), 12, generator)
    first = on(Landscape(rosenbrock), starts)
    stepper, _ = run(first, LBFGS(history=4), 5, generator)
    state = {name: value.clone() for name, value in stepper.tensors().items()}
    rest = on(Landscape(rosenbrock), position(first))
    resumed = LBFGS(history=4).open(rest.space, generator)
    resumed.load(state)
    for _ in range(7):
        resumed.step(rest, 1.0)
    assert torch.equal(position(rest), position(whole))
