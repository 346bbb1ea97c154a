"""The interval of a mean over batches against scipy, a table, and its own promise."""

import numpy as np
import pytest
from scipy import stats

from gradinv.errors import DataError
from gradinv.evaluation.intervals import mean_interval


def test_two_batches_say_little():
    """12.706 is the quantile of one degree of freedom in any table."""
    assert mean_interval([19.0, 21.0]) == pytest.approx((20 - 12.706, 20 + 12.706), abs=1e-3)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_against_scipy(confidence):
    values = np.random.default_rng(1).normal(20, 3, 12)
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert mean_interval(values.tolist(), confidence=confidence) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("batches", [2, 3, 8])
def test_covers_the_mean_as_often_as_it_says(batches):
    chance = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        interval = mean_interval(chance.normal(5, 1, batches).tolist())
        assert interval is not None
        hits += interval[0] <= 5 <= interval[1]
    assert 0.93 <= hits / 1000 <= 0.97


def test_one_batch_has_no_interval():
    assert mean_interval([21.3]) is None


def test_equal_batches_have_no_width():
    assert mean_interval([4.0, 4.0, 4.0]) == (4.0, 4.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [1.0, float("inf")]])
def test_refused(values):
    with pytest.raises(DataError, match="expected one finite value for each batch, got"):
        mean_interval(values)
