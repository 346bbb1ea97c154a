import numpy as np
import torch

from gradinv.attacks.search.evolution import CMA
from tests.attacks.landscapes import Landscape, on, position, rosenbrock


def bowl(x):
    return (x - 1.5).square().sum(1)


def run(cost, settings, steps, seed=0):
    stepper = settings.open(cost.space, torch.Generator().manual_seed(seed))
    return stepper, torch.stack([stepper.step(cost, 1.0) for _ in range(steps)])


def test_it_finds_the_minimum_without_a_gradient():
    cost = on(Landscape(rosenbrock), torch.zeros((2, 3)))
    _, least = run(cost, CMA(sigma=0.5), 150)
    assert torch.allclose(position(cost), torch.ones((2, 3)), atol=1e-2)
    assert least.shape == (150, 2)


def test_the_whole_population_is_one_batch_and_the_best_point_is_kept():
    sizes = []
    seen: list[torch.Tensor] = []

    def watched(x):
        sizes.append(len(x))
        seen.append(x.clone())
        return bowl(x)

    cost = on(Landscape(watched), torch.zeros((2, 4)))
    run(cost, CMA(population=6), 5)
    assert sizes == [12] * 5
    for restart in range(2):
        own = torch.cat([x[6 * restart : 6 * (restart + 1)] for x in seen])
        assert torch.equal(position(cost)[restart], own[bowl(own).argmin()])


def test_restarts_from_one_point_draw_populations_of_their_own():
    seen: list[torch.Tensor] = []

    def watched(x):
        seen.append(x.clone())
        return bowl(x)

    run(on(Landscape(watched), torch.zeros((3, 4))), CMA(population=6), 1)
    assert len(seen[0].unique(dim=0)) == 3 * 6


def test_the_best_point_of_all_populations_stays_when_later_ones_are_worse():
    seen = []

    def rising(x):
        seen.append(x.clone())
        return bowl(x) + 100.0 * len(seen)

    cost = on(Landscape(rising), torch.zeros((1, 4)))
    run(cost, CMA(population=6), 4)
    assert torch.equal(position(cost)[0], seen[0][bowl(seen[0]).argmin()])


def test_from_the_mean_the_first_population_is_a_draw_from_the_prior():
    seen = []

    def watched(x):
        seen.append(x)
        return bowl(x)

    start = torch.full((1, 4), 50.0)
    run(on(Landscape(watched), start), CMA(population=2000), 1)
    assert abs(seen[0].mean().item()) < 0.1
    assert abs(seen[0].std().item() - 1) < 0.1
    run(on(Landscape(watched), start), CMA(population=2000, from_mean=False), 1)
    assert abs(seen[1].mean().item() - 50) < 0.1


def test_resuming_repeats_the_search_from_its_costs_alone():
    settings = CMA(sigma=0.7)
    whole = on(Landscape(rosenbrock), torch.zeros((2, 4)))
    _, costs = run(whole, settings, 30)
    first = on(Landscape(rosenbrock), torch.zeros((2, 4)))
    stepper, _ = run(first, settings, 12)
    landscape = Landscape(rosenbrock)
    rest = on(landscape, position(first))
    resumed = settings.open(rest.space, torch.Generator().manual_seed(0))
    resumed.load(stepper.tensors())
    assert landscape.evaluations == 0
    again = torch.stack([resumed.step(rest, 1.0) for _ in range(18)])
    assert torch.equal(again, costs[12:])
    assert torch.equal(position(rest), position(whole))


def test_points_that_are_not_finite_rank_last():
    def holed(x):
        return torch.where(x[:, 0] > 0, bowl(x), torch.nan)

    cost = on(Landscape(holed), torch.zeros((1, 3)))
    _, least = run(cost, CMA(), 60)
    assert torch.isfinite(least[-1]).all()
    assert torch.allclose(position(cost), torch.full((1, 3), 1.5), atol=0.05)
    hopeless = on(Landscape(lambda x: x.sum(1) + torch.nan), torch.zeros((1, 3)))
    _, least = run(hopeless, CMA(), 3)
    assert torch.isinf(least).all()


def test_the_package_is_told_finite_numbers_alone(monkeypatch):
    """It computes with them; infinity less infinity is a number no more."""
    stepper = CMA().open(on(Landscape(bowl), torch.zeros((1, 3))).space, torch.Generator())
    (strategy,) = stepper.strategies
    told, tell = [], strategy.tell
    monkeypatch.setattr(strategy, "tell", lambda points, row: told.append(row) or tell(points, row))
    holed = Landscape(lambda x: torch.where(x[:, 0] > 0, bowl(x), torch.nan))
    stepper.step(on(holed, torch.zeros((1, 3))), 1.0)
    assert np.isfinite(told).all()
    assert max(told[0]) > 1e20 > min(told[0])


def test_chance_comes_from_the_source_alone():
    before = np.random.get_state(legacy=False)
    found = [position_after(seed) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert str(np.random.get_state(legacy=False)) == str(before)


def position_after(seed):
    cost = on(Landscape(bowl), torch.zeros((1, 3)))
    run(cost, CMA(), 5, seed)
    return position(cost)
