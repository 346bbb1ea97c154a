"""Ceilings against simulated attackers, against each other, and where they must not be given."""

import math
import time

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from gradinv.errors import ConfigError, DataError
from gradinv.evaluation.certificates import (
    ABOVE_LUCK,
    DROPOUT,
    Ceiling,
    bayes_ceiling,
    bayes_ceiling_of_gram,
    ceiling_sentence,
    excluding_sigma,
    gram_of,
    mean_ceiling,
    refusal,
)
from gradinv.evaluation.closed_form import (
    NO_CLIP,
    closed_form_sentence,
    refusal_closed_form,
)
from gradinv.federated import Clip, Noise, parse_defense
from gradinv.federated.channel import NO_NOISE, NOT_LAST, doubtful
from tests.outside import Laplace, Rounded


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hits(means: Tensor, sigma: float, updates: int, *, rounds: int = 1, seed: int = 1) -> float:
    """Returns how often the nearest candidate to (the mean of) noisy updates is the true one."""
    generator = torch.Generator().manual_seed(seed)
    right = 0
    for _ in range(updates):
        true = int(torch.randint(len(means), (), generator=generator))
        noise = torch.randn(rounds, means.shape[1], generator=generator, dtype=torch.float64)
        update = (means[true] + sigma * noise).mean(0)
        right += int((means - update).square().sum(1).argmin()) == true
    return right / updates


class TestCeiling:
    @pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0, 10.0])
    @pytest.mark.parametrize("candidates", [2, 16])
    def test_a_brute_force_attacker_of_1000_updates(self, sigma, candidates):
        means = normal(candidates, 40)
        ceiling = bayes_ceiling(means, sigma)
        spread = 4 * math.sqrt(ceiling.rate * (1 - ceiling.rate) / 1000)
        found = hits(means, sigma, 1000)
        assert ceiling.interval[0] - spread <= found <= ceiling.interval[1] + spread

    @pytest.mark.parametrize("rounds", [1, 4])
    def test_two_candidates_have_a_formula(self, rounds):
        """The likelier of two is right with Phi(sqrt(T) |m_1 - m_2| / 2 sigma)."""
        means = torch.tensor([[0.0, 1.0], [0.6, 0.2]], dtype=torch.float64)
        expected = stats.norm.cdf(math.sqrt(rounds) * 1.0 / (2 * 1.5))
        ceiling = bayes_ceiling(means, 1.5, rounds=rounds)
        assert ceiling.interval[0] <= expected <= ceiling.interval[1]
        assert ceiling.interval[1] - ceiling.interval[0] < 0.02

    def test_equally_distant_candidates_have_an_integral(self):
        """N orthogonal candidates: the true one's score is the largest of N normal ones."""
        count, sigma = 10, 0.7
        expected, _ = integrate.quad(
            lambda x: stats.norm.pdf(x - 1 / sigma) * stats.norm.cdf(x) ** (count - 1), -9, 12
        )
        ceiling = bayes_ceiling(torch.eye(count, dtype=torch.float64), sigma)
        assert ceiling.rate == pytest.approx(expected, abs=0.005)
        assert ceiling.interval[0] <= expected <= ceiling.interval[1]

    def test_the_interval_holds_as_often_as_it_says(self):
        means = normal(4, 3)
        truth = bayes_ceiling(means, 2.0, draws=400_000).rate
        inside = [
            low <= truth <= high
            for low, high in (
                bayes_ceiling(means, 2.0, draws=200, seed=seed).interval for seed in range(300)
            )
        ]
        assert np.mean(inside) >= 0.95

    def test_a_rare_event_widens_the_interval(self):
        """All posteriors near 1: their spread is nothing, which proves nothing."""
        ceiling = bayes_ceiling(normal(8, 50), 0.05, draws=1000)
        assert ceiling.rate == pytest.approx(1)
        assert ceiling.interval[0] < 0.995
        assert ceiling.interval[1] == 1

    def test_luck_is_the_least_and_certainty_the_most(self):
        means = normal(8, 20)
        assert bayes_ceiling(means, 1e9).rate == pytest.approx(1 / 8, abs=1e-6)
        assert bayes_ceiling(means, 1e9).rate >= 1 / 8
        assert bayes_ceiling(means, math.inf).interval == (1 / 8, 1 / 8)
        for sigma in (1e-3, 1e-150, 1e-300):
            assert bayes_ceiling(means, sigma).rate == pytest.approx(1)
        assert bayes_ceiling(means[:1], 1.0).rate == 1

    def test_more_noise_never_helps(self):
        rates = [bayes_ceiling(normal(8, 20), sigma).rate for sigma in (0.1, 0.5, 2.0, 5.0, 50.0)]
        assert rates == sorted(rates, reverse=True)

    def test_rounds_are_less_noise(self):
        means = normal(12, 30)
        many, less = bayes_ceiling(means, 6.0, rounds=9), bayes_ceiling(means, 2.0)
        assert many.rate == pytest.approx(less.rate, abs=1e-12)
        assert (many.rounds, many.sigma, many.candidates) == (9, 6.0, 12)
        assert hits(means, 6.0, 1000, rounds=9) == pytest.approx(many.rate, abs=0.06)

    def test_deterministic_by_seed(self):
        means = normal(5, 20)
        assert bayes_ceiling(means, 3.0, seed=1) == bayes_ceiling(means, 3.0, seed=1)
        assert bayes_ceiling(means, 3.0, seed=1) != bayes_ceiling(means, 3.0, seed=2)

    @pytest.mark.parametrize("sigma", [1e-6, 1e-3, 0.05])
    def test_equal_candidates_share(self, sigma):
        """Of 6 candidates 3 are one: a sixth each for the others, a sixth for one of the 3."""
        means = normal(6, 33)
        means[3] = means[1]
        means[5] = means[1]
        assert bayes_ceiling(means, sigma).rate == pytest.approx(4 / 6)

    def test_all_equal(self):
        assert bayes_ceiling(normal(1, 33).expand(7, 33), 1e-9).interval == (1 / 7, 1 / 7)

    def test_what_all_share_changes_nothing(self):
        """In float32, without differences first, a common part of 1000 hides them."""
        away, common = 1e-3 * normal(8, 200), 1e3 * normal(200, seed=1)
        alone = bayes_ceiling(away, 0.02)
        together = bayes_ceiling(away + common, 0.02)
        assert 0.2 < alone.rate < 0.9
        assert together.rate == pytest.approx(alone.rate, abs=1e-6)
        blurred = (away + common).float()
        naive = (blurred @ blurred.T).double()
        own = naive.diagonal()
        distances = (own[:, None] + own - 2 * naive)[0, 1:]
        true = (away[1:] - away[0]).square().sum(1)
        assert ((distances - true).abs() > 10 * true).any()

    def test_float32_updates_are_taken_in_float64(self):
        """The mean over candidates of what they share is not rounded to float32."""
        away, common = 1e-3 * normal(8, 200), normal(200, seed=1)
        updates = (away + common).float()
        ceiling = bayes_ceiling(updates, 0.02)
        assert ceiling.rate == bayes_ceiling(updates.double(), 0.02).rate
        assert ceiling.rate == pytest.approx(bayes_ceiling(away, 0.02).rate, abs=1e-3)

    @pytest.mark.parametrize(("candidates", "seconds"), [(64, 3), (256, 20)])
    def test_seconds(self, candidates, seconds):
        gram = gram_of([{"": row} for row in normal(candidates, 300)])
        begin = time.perf_counter()
        bayes_ceiling_of_gram(gram, 5.0)
        assert time.perf_counter() - begin < seconds

    @pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
    def test_no_noise_has_no_ceiling(self, sigma):
        with pytest.raises(ConfigError, match=r"expected noise with a sigma above 0, .*exactly"):
            bayes_ceiling(normal(3, 4), sigma)

    def test_meaningless_numbers(self):
        with pytest.raises(ConfigError, match="expected 1 round or more, got 0; give"):
            bayes_ceiling(normal(3, 4), 1.0, rounds=0)
        with pytest.raises(ConfigError, match="expected at least 2 draws of the noise, got 1; "):
            bayes_ceiling(normal(3, 4), 1.0, draws=1)

    @pytest.mark.parametrize(
        "gram",
        [
            torch.eye(3),
            torch.full((2, 2), math.nan, dtype=torch.float64),
            torch.zeros(0, 0, dtype=torch.float64),
        ],
    )
    def test_no_gram_matrix(self, gram):
        with pytest.raises(DataError, match=r"expected a finite Gram matrix of float64, got torch"):
            bayes_ceiling_of_gram(gram, 1.0)


class TestGram:
    def test_tensor_by_tensor_is_all_at_once(self, monkeypatch):
        rows = normal(5, 60)
        whole = rows - rows.mean(0)
        parts = [{"a": row[:40].reshape(5, 8), "b": row[40:]} for row in rows]
        torch.testing.assert_close(gram_of(parts), whole @ whole.T)
        monkeypatch.setattr("gradinv.evaluation.certificates._BLOCK", 35)
        torch.testing.assert_close(gram_of(parts), whole @ whole.T)

    def test_equal_candidates_have_equal_rows(self):
        rows = normal(7, 1001).float()
        rows[6] = rows[2]
        gram = gram_of([{"": row} for row in rows])
        assert torch.equal(gram[6], gram[2])
        assert torch.equal(gram[:, 6], gram[:, 2])
        rows[6, 5] += 1e-6
        gram = gram_of([{"": row} for row in rows])
        assert not torch.equal(gram[6], gram[2])

    def test_refused(self):
        with pytest.raises(DataError, match="expected at least one candidate, got none; give"):
            gram_of([])
        one, other = {"a": normal(3)}, {"a": normal(4)}
        with pytest.raises(DataError, match="expected the same tensors of all candidates, got"):
            gram_of([one, other])
        with pytest.raises(DataError, match="expected the same tensors of all candidates, got"):
            gram_of([one, {"b": normal(3)}])
        with pytest.raises(DataError, match="expected finite updates of all candidates, got"):
            gram_of([one, {"a": normal(3) * math.inf}])


@pytest.mark.parametrize(
    ("defenses", "reason"),
    [
        (parse_defense("none"), NO_NOISE),
        (parse_defense("clip:1+sparsify:0.9"), NO_NOISE),
        (parse_defense("clip:1+noise:0"), NO_NOISE),
        (parse_defense("clip:1+noise:0.1+sparsify:0.9"), NOT_LAST),
        (parse_defense("noise:0.1+clip:1"), NOT_LAST),
        (parse_defense("noise:0.1+clip:1+noise:1"), NOT_LAST),
        ((Clip(1.0), Laplace(0.1)), doubtful([Laplace(0.1)])),
        ((Rounded(0.1),), doubtful([Rounded(0.1)])),
        ((Clip(1.0), Noise(1.0), Rounded(0.1)), doubtful([Rounded(0.1)])),
    ],
)
def test_refused_both(defenses, reason):
    assert reason
    assert refusal(defenses) == refusal(defenses, dropout=True) == reason
    assert refusal_closed_form(defenses) == reason


def test_given():
    assert refusal(parse_defense("clip:1+noise:0.1")) is None
    assert refusal(parse_defense("sparsify:0.9+noise:0.1")) is None
    assert refusal_closed_form(parse_defense("clip:1+sparsify:0.9+noise:0.1")) is None


def test_only_one_of_both():
    assert refusal_closed_form(parse_defense("noise:0.1")) == NO_CLIP
    assert refusal(parse_defense("clip:1+noise:0.1"), dropout=True) == DROPOUT


def test_mean_over_images():
    one = Ceiling(0.2, (0.1, 0.3), candidates=10, rounds=1, sigma=1.0)
    other = Ceiling(0.4, (0.38, 0.41), candidates=10, rounds=1, sigma=1.0)
    rate, interval = mean_ceiling([one, other])
    assert rate == pytest.approx(0.3)
    assert interval == pytest.approx((0.24, 0.355))
    with pytest.raises(DataError, match="expected at least one ceiling, got none; leave"):
        mean_ceiling([])


def test_sentences():
    ceiling = Ceiling(0.0699, (0.0676, 0.0724), candidates=64, rounds=10, sigma=1.0)
    assert ceiling.sentence() == (
        "no server that knows these 64 candidates and the rest of the batch names more than 7 % of "
        "the images from 10 updates at these weights (interval 6.8 to 7.2 %); luck names 1.6 %"
    )
    assert "from one update at these weights" in ceiling_sentence(1.0, (1.0, 1.0), candidates=2)
    assert closed_form_sentence(1.0, kappa=0.25, rounds=3) == (
        "whatever the images and the weights are and whatever a server knows besides, a guess "
        "about one image that is right with 25 % before is right with at most 100 % after 3 "
        "updates that are each clipped as a whole"
    )


def test_the_least_noise_that_excludes():
    means = normal(6, 20), normal(9, 20, seed=1)
    grams = [gram_of([{"w": row} for row in each]) for each in means]
    sigma = excluding_sigma(grams)
    limit = (1 / 6 + 1 / 9) / 2 + ABOVE_LUCK
    for factor, excluded in ((1.0, True), (1 / 1.2, False)):
        found = [bayes_ceiling_of_gram(gram, sigma * factor) for gram in grams]
        assert (mean_ceiling(found)[1][1] <= limit) == excluded
    # Nine rounds need three times the noise, and other units other noise.
    assert excluding_sigma(grams, rounds=9) == pytest.approx(3 * sigma, rel=0.06)
    assert excluding_sigma([gram * 100 for gram in grams]) == pytest.approx(10 * sigma, rel=0.06)
    assert excluding_sigma([torch.zeros(3, 3, dtype=torch.float64)]) == 0
    with pytest.raises(DataError, match="expected candidates of at least one image, got none"):
        excluding_sigma([])
