"""The library's epsilon against the analytic formula of the Gaussian mechanism."""

import math
import sys
import time
from typing import cast

import pytest
from scipy import optimize, stats

from gradinv.errors import ConfigError
from gradinv.evaluation.accounting import MISSING, epsilon_of, epsilon_or_reason


def exact(apart: float, delta: float) -> float:
    """Returns the least epsilon (Balle and Wang 2018, theorem 8), with apart = Delta / sigma."""

    def excess(epsilon: float) -> float:
        far = stats.norm.logcdf(-apart / 2 - epsilon / apart)
        near = stats.norm.cdf(apart / 2 - epsilon / apart)
        return float(near - math.exp(epsilon + far) - delta)

    if excess(0) <= 0:
        return 0.0
    return cast("float", optimize.brentq(excess, 0, apart**2 / 2 + 40 * apart))


@pytest.mark.parametrize("delta", [0.5, 1e-3, 1e-5, 1e-10])
@pytest.mark.parametrize("apart", [1e-6, 0.01, 0.1, 1.0, 5.0, 20.0, 333.0, 1e4])
def test_never_below_the_exact_one(apart, delta):
    found = epsilon_of(sensitivity=apart, sigma=1.0, delta=delta)
    assert found >= exact(apart, delta) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("apart", "above"), [(0.01, 0.14), (1.0, 0.09), (20.0, 0.04), (1 / 0.003, 0.004)]
)
def test_near_the_exact_one(apart, above):
    found = epsilon_of(sensitivity=apart, sigma=1.0)
    assert found <= exact(apart, 1e-5) * (1 + above)


def test_hardly_any_noise_has_a_huge_epsilon_at_once():
    begin = time.perf_counter()
    assert epsilon_of(sensitivity=1.0, sigma=0.003) == pytest.approx(57_000, rel=0.01)
    assert epsilon_of(sensitivity=2.0, sigma=0.003) == pytest.approx(225_500, rel=0.01)
    assert epsilon_of(sensitivity=1.0, sigma=1e-60) == pytest.approx(5e119)
    assert epsilon_of(sensitivity=1e200, sigma=1e-200) == math.inf
    assert time.perf_counter() - begin < 30  # the import of opacus among it


def test_hardly_any_sensitivity_has_none():
    assert epsilon_of(sensitivity=1e-9, sigma=1.0, delta=1e-3) == 0
    assert epsilon_of(sensitivity=1e-200, sigma=1e100) == 0


def test_rounds_are_less_noise():
    """Adaptively composed, T Gaussian mechanisms are one with sigma / sqrt(T)."""
    many = epsilon_of(sensitivity=2.0, sigma=4.0, rounds=16)
    assert many == pytest.approx(epsilon_of(sensitivity=2.0, sigma=1.0))
    assert many >= exact(2.0, 1e-5)


def test_units_cancel():
    assert epsilon_of(sensitivity=2e-3, sigma=1e-3) == pytest.approx(
        epsilon_of(sensitivity=2.0, sigma=1.0)
    )


@pytest.mark.parametrize("function", [epsilon_of, epsilon_or_reason])
def test_meaningless(function):
    for sensitivity in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="expected a sensitivity above 0 for an epsilon, got"):
            function(sensitivity=sensitivity, sigma=1.0)
    with pytest.raises(ConfigError, match=r"expected a sigma above 0 for an epsilon, got 0\.0"):
        function(sensitivity=1.0, sigma=0.0)
    with pytest.raises(ConfigError, match="expected 1 round or more, got 0; give"):
        function(sensitivity=1.0, sigma=1.0, rounds=0)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match=r"expected a delta in \(0, 1\), got"):
            function(sensitivity=1.0, sigma=1.0, delta=delta)


def test_with_a_reason():
    assert epsilon_or_reason(sensitivity=2.0, sigma=1.0, rounds=3) == (
        epsilon_of(sensitivity=2.0, sigma=1.0, rounds=3),
        None,
    )


def test_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.delitem(sys.modules, "opacus.accountants.analysis", raising=False)
    with pytest.raises(ConfigError, match=r"expected opacus for an epsilon, got '.*'; pip install"):
        epsilon_of(sensitivity=1.0, sigma=1.0)
    assert epsilon_or_reason(sensitivity=1.0, sigma=1.0) == (None, MISSING)
