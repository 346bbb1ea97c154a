"""The closed form, against the ceiling, its limits and what it cannot be given for."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from gradinv.errors import ConfigError
from gradinv.evaluation.certificates import bayes_ceiling
from gradinv.evaluation.closed_form import closed_form, sensitivity_of
from gradinv.federated import Clip, Noise, parse_defense
from tests.evaluation.test_certificates import normal
from tests.outside import Rounded


@pytest.mark.parametrize("seed", range(100))
def test_never_below_the_ceiling(seed):
    """Candidates' updates of at most C, luck 1/N: both hold, the ceiling knows more."""
    chance = np.random.default_rng(seed)
    count, width = int(chance.integers(2, 20)), int(chance.integers(1, 30))
    norm, sigma = float(chance.uniform(0.1, 3)), float(10 ** chance.uniform(-1.5, 1.5))
    rounds = int(chance.integers(1, 5))
    means = normal(count, width, seed=seed)
    radius = torch.linspace(float(chance.uniform(0, 1)), 1, count, dtype=torch.float64)
    means *= (norm * radius / means.norm(dim=1))[:, None]
    ceiling = bayes_ceiling(means, sigma, rounds=rounds, draws=4000)
    bound = closed_form(1 / count, sensitivity=2 * norm, sigma=sigma, rounds=rounds)
    assert ceiling.interval[0] <= bound
    assert ceiling.rate <= bound + 0.01


def test_two_opposite_candidates_reach_it():
    """Phi(Delta / 2 sigma) is the ceiling, below Phi(Delta / sigma): the bound is not tight."""
    means = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    bound = closed_form(0.5, sensitivity=2.0, sigma=2.0)
    assert bound == pytest.approx(stats.norm.cdf(1))
    assert bayes_ceiling(means, 2.0).rate == pytest.approx(stats.norm.cdf(0.5), abs=0.01)


def test_limits():
    assert closed_form(0.1, sensitivity=2.0, sigma=math.inf) == pytest.approx(0.1)
    assert closed_form(0.1, sensitivity=0.0, sigma=1.0) == pytest.approx(0.1)
    assert closed_form(1.0, sensitivity=2.0, sigma=1.0) == 1
    assert closed_form(1 / 16, sensitivity=2.0, sigma=0.1) == pytest.approx(1)
    assert closed_form(0.1, sensitivity=1.0, sigma=3.0, rounds=9) == pytest.approx(
        closed_form(0.1, sensitivity=1.0, sigma=1.0)
    )


def test_meaningless():
    for kappa in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match=r"expected a probability in \(0, 1\] as luck"):
            closed_form(kappa, sensitivity=1.0, sigma=1.0)
    for sensitivity in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="expected a sensitivity of 0 or more, got"):
            closed_form(0.1, sensitivity=sensitivity, sigma=1.0)
    with pytest.raises(ConfigError, match="expected noise with a sigma above 0, got 0"):
        closed_form(0.1, sensitivity=1.0, sigma=0.0)
    with pytest.raises(ConfigError, match="expected 1 round or more, got -1"):
        closed_form(0.1, sensitivity=1.0, sigma=1.0, rounds=-1)


@pytest.mark.parametrize(
    ("spec", "sensitivity"),
    [
        ("clip:1+noise:0.1", 2.0),
        ("clip:0.5+sparsify:0.9+noise:0.1", 1.0),
        ("clip:3+clip:2+noise:1", 4.0),
        ("clip:1+clip:5+noise:1", 2.0),
        ("clip:1", 2.0),
        ("noise:1", None),
        ("sparsify:0.9+noise:1", None),
        ("noise:1+clip:1", None),
        ("none", None),
    ],
)
def test_sensitivity(spec, sensitivity):
    assert sensitivity_of(parse_defense(spec)) == sensitivity


def test_sensitivity_holds():
    """Of two gradients, whatever they are; opposite long ones reach it."""
    defenses = parse_defense("clip:0.5+sparsify:0.5+noise:1")
    sent = []
    for gradient in (normal(50), -normal(50), normal(50, seed=3), 1e-3 * normal(50)):
        update = {"a": gradient}
        for defense in defenses[:-1]:
            update = defense.apply(update, None)
        sent.append(update["a"])
    apart = [(a - b).norm().item() for a, b in itertools.combinations(sent, 2)]
    assert 0.8 < max(apart) <= 1.0


def test_sensitivity_of_what_is_not_known():
    assert sensitivity_of([Clip(1.0), Rounded(0.1), Noise(1.0)]) is None
