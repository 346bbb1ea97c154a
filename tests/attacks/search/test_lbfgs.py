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
