"""The bootstrap interval against an exact enumeration and against scipy."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from gradinv.errors import DataError
from gradinv.evaluation.bootstrap import bootstrap_ci


def test_against_all_resamples():
    """Five values have 3,125 equally likely resamples: no chance is needed."""
    values = [10.0, 12.5, 13.0, 17.0, 30.0]
    means = [np.mean(drawn) for drawn in product(values, repeat=5)]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_ci(values, resamples=200_000) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_against_scipy(confidence):
    values = np.random.default_rng(1).normal(20, 3, 12)
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, method="percentile", rng=2
    ).confidence_interval
    got = bootstrap_ci(values.tolist(), confidence=confidence)
    assert got == pytest.approx(tuple(expected), abs=0.1)


def test_covers_the_mean_about_as_often_as_it_says():
    chance = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        interval = bootstrap_ci(chance.normal(5, 1, 30).tolist(), resamples=500)
        assert interval is not None
        hits += interval[0] <= 5 <= interval[1]
    assert 0.89 <= hits / 300 <= 0.98


def test_seed_decides():
    values = [1.0, 2.0, 5.0, 9.0, 3.3]
    assert bootstrap_ci(values, seed=1) == bootstrap_ci(values, seed=1)
    assert bootstrap_ci(values, seed=1, resamples=50) != bootstrap_ci(values, seed=2, resamples=50)


def test_one_batch_has_no_interval():
    assert bootstrap_ci([21.3]) is None


def test_equal_batches_have_no_width():
    assert bootstrap_ci([4.0, 4.0, 4.0]) == (4.0, 4.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [1.0, float("inf")]])
def test_refused(values):
    with pytest.raises(DataError, match="expected one finite value for each batch, got"):
        bootstrap_ci(values)
