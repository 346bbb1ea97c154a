from dataclasses import replace

import pytest
import torch

from gradinv.engine import Evaluated
from gradinv.errors import ConfigError, PriorError
from gradinv.metalearning.costs import LocalCosts, Problem
from gradinv.metalearning.learner import Learner, LearningConfig, Outer
from gradinv.priors.whitened import Whitened

CONFIG = LearningConfig(steps=4, tasks=3, weight_steps=3, latent_steps=2, seed=5, decay=False)


class Broken:
    """Costs whose tasks of given numbers are not finite."""

    def __init__(self, costs, numbers):
        self.costs, self.numbers = costs, numbers

    def evaluate(self, tasks, images):
        return [
            Evaluated(each.cost * torch.nan, each.matching * torch.nan, each.gradient * torch.nan)
            if number in self.numbers
            else each
            for number, each in zip(tasks, self.costs.evaluate(tasks, images), strict=True)
        ]


@pytest.fixture
def learner(tasks, prior):
    def make(config=CONFIG, broken=()):
        costs = Broken(LocalCosts(Problem(tasks, config.tv)), broken)
        return Learner(Whitened.of(prior), tasks, costs, config)

    return make


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("rate", [1.0, 0.3, 1e-3])
def test_reptile_goes_that_part_of_the_way_to_the_adapted_weights(rate):
    weights = [torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.zeros(1))]
    adapted = [torch.tensor([3.0, 2.0]), torch.tensor([-4.0])]
    Outer(weights, replace(CONFIG, rate=rate)).step(adapted)
    assert torch.allclose(weights[0], torch.tensor([1 + 2 * rate, 2.0]))
    assert torch.allclose(weights[1], torch.tensor([-4.0 * rate]))


def test_adam_moves_every_weight_by_its_own_step_towards_the_adapted_ones():
    weights = [torch.nn.Parameter(torch.tensor([1.0, 2.0, 5.0]))]
    Outer(weights, replace(CONFIG, outer="adam", lr_outer=0.01)).step(
        [torch.tensor([3.0, 1.99999, 5.0])]
    )
    assert torch.allclose(weights[0], torch.tensor([1.01, 1.99, 5.0]), atol=1e-4)


@pytest.mark.parametrize("outer", ["reptile", "adam"])
def test_an_outer_step_moves_w_towards_what_fits_the_tasks(outer, learner, monkeypatch):
    seen = {}
    original = Outer.step

    def spy(self, adapted):
        seen["before"], seen["adapted"] = flat(self.weights), flat(adapted)
        original(self, adapted)
        seen["after"] = flat(self.weights)

    monkeypatch.setattr(Outer, "step", spy)
    own = learner(replace(CONFIG, outer=outer, rate=0.5, lr_outer=1e-4))
    start = flat(own.weights)
    own.step()
    assert torch.equal(seen["before"], start)  # the inner steps were taken back
    wanted, moved = seen["adapted"] - seen["before"], seen["after"] - seen["before"]
    assert wanted.norm() > 0
    assert torch.cosine_similarity(wanted, moved, dim=0) > 0.5
    if outer == "reptile":
        assert torch.allclose(moved, 0.5 * wanted, atol=1e-6)
    assert (seen["adapted"] - seen["after"]).norm() < wanted.norm()
    assert torch.equal(flat(own.weights), seen["after"])


@pytest.mark.parametrize(
    "change",
    [{}, {"remember": False}, {"joint": False}, {"keep_moments": False, "latent_steps": 0}],
    ids=["ours", "fresh latents", "latents first", "fresh moments"],
)
def test_learning_lowers_the_matching_cost_of_the_updates(change, learner):
    own = learner(replace(CONFIG, tasks=6, lr_weights=5e-3, **change))
    images = own.prior(own.memory.latents).detach().split(2)
    untrained = sum(each.matching.item() for each in own.costs.evaluate(range(6), images)) / 6
    costs = [own.step().cost for _ in range(6)]
    assert costs[-1] < 0.7 * untrained
    assert costs[-1] < costs[0]


def test_a_step_with_weights_alone_follows_the_gradient_of_the_mean_cost(learner, tasks):
    """Against Adam's first step, written out: every weight moves by lr against its sign."""
    own = learner(replace(CONFIG, latent_steps=1, weight_steps=1, joint=False, lr_latents=1e-12))
    before = [weight.detach().clone() for weight in own.weights]
    order = torch.Generator()
    order.set_state(own.source.get_state())
    chosen = torch.randperm(6, generator=order).tolist()[:3]
    images = own.prior(torch.cat([own.memory.latents[2 * task : 2 * task + 2] for task in chosen]))
    evaluated = own.costs.evaluate(chosen, list(images.detach().split(2)))
    surrogate = (images * torch.cat([each.gradient[0] for each in evaluated])).sum()
    gradients = torch.autograd.grad(surrogate, own.weights)
    own.step()
    for weight, start, gradient in zip(own.weights, before, gradients, strict=True):
        large = gradient.abs() > 1e-5
        expected = -CONFIG.lr_weights * gradient[large].sign()
        assert torch.allclose((weight - start)[large], expected, rtol=0.01, atol=1e-6)


def test_latents_are_found_again_at_the_next_visit_with_their_moments(learner):
    own = learner(replace(CONFIG, tasks=6))
    first = own.memory.latents.clone()
    own.step()
    between = own.memory.latents.clone()
    assert (between != first).all()
    assert own.memory.counts.tolist() == [5.0] * 6
    own.step()
    assert own.memory.counts.tolist() == [10.0] * 6
    z, adam = own.memory.recall([3], lr=0.1)
    assert torch.equal(z[0], own.memory.latents[6:8])
    assert torch.equal(adam.state[z[0]]["exp_avg_sq"], own.memory.moments[1, 6:8])


def test_fresh_latents_do_not_depend_on_the_last_visit(learner):
    own = learner(replace(CONFIG, tasks=6, remember=False, latent_steps=1, lr_latents=1e-12))
    own.step()
    first = own.memory.latents.clone()
    own.step()
    assert not torch.allclose(own.memory.latents, first, atol=0.1)
    assert own.memory.counts.tolist() == [4.0] * 6


def test_every_task_comes_before_any_comes_again(learner):
    own = learner(replace(CONFIG, tasks=4))
    drawn = [own._draw() for _ in range(6)]
    assert all(len(set(chosen)) == 4 for chosen in drawn)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=6)
    assert counts.tolist() == [4] * 6


def test_step_sizes_fall_over_the_last_third(learner):
    own = learner(replace(CONFIG, steps=30, decay=True))
    factors = []
    for own.count in (0, 20, 25, 30):
        factors.append(own._factor())
    assert factors == pytest.approx([1, 1, 10**-0.5, 0.1])
    assert learner()._factor() == 1


def test_a_task_that_is_not_finite_moves_nothing(learner, tasks):
    own = learner(replace(CONFIG, tasks=6), broken={2})
    before = own.memory.latents.clone()
    result = own.step()
    assert result.skipped == 5
    assert result.cost > 0
    assert torch.isfinite(flat(own.weights)).all()
    moved = (own.memory.latents - before).abs()
    assert moved[:4].max() > 0.1
    # Only the term on its norm is left, which draws it to zero.
    assert (own.memory.latents[4:6].norm() < before[4:6].norm()).item()


def test_when_nothing_is_finite_the_learning_ends(learner):
    with pytest.raises(PriorError, match="expected costs and weights that stay finite"):
        learner(broken=set(range(6))).step()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tasks": 0}, "expected tasks above 0 and finite, got 0"),
        ({"lr_weights": float("nan")}, "expected lr_weights above 0 and finite, got nan"),
        ({"weight_steps": 0}, "expected at least 1 step on the weights"),
        ({"latent_steps": 0, "joint": False}, "expected steps on the latents, got none"),
    ],
)
def test_settings_without_meaning(settings, words):
    with pytest.raises(ConfigError, match=words):
        replace(CONFIG, **settings)
