"""Distances are likelihoods where the noise is known, and nothing is claimed where it is not."""

import pytest
import torch

from gradinv.evaluation.candidates.fit import Fit, flattened
from gradinv.federated import FedSGD
from tests.attacks.tiny import tiny_victim
from tests.evaluation.candidates.places import images_of, lists_of, update_of
from tests.outside import Rounded


def fit_of(defense: str, **settings) -> tuple[Fit, torch.Tensor]:
    batch, _ = lists_of(images_of())
    plain = update_of(tiny_victim(), batch, FedSGD())
    return (
        Fit(update_of(tiny_victim(), batch, FedSGD(), defense, **settings)),
        flattened(plain.gradient),
    )


@pytest.mark.parametrize("defense", ["none", "sparsify:0.9", "clip:0.1", "clip:0.1+sparsify:0.5"])
def test_the_truth_is_at_no_distance_without_noise(defense):
    fit, plain = fit_of(defense)
    distance = fit.distance(fit.sent(plain))
    assert distance == 0
    assert fit.explained(distance)
    assert fit.sigma is None
    assert fit.posterior(torch.tensor([0.0, 1.0])) is None
    assert not fit.explained(fit.distance(fit.sent(-plain)))


def test_noise_leaves_its_length():
    fit, plain = fit_of("clip:0.1+noise:0.2")
    distance = fit.distance(fit.sent(plain))
    assert distance == pytest.approx(0.04 * plain.numel(), rel=0.2)
    assert fit.sigma == 0.2
    assert not fit.explained(distance)  # other candidates may fit better


def test_posterior_is_bayes():
    """Against the densities themselves, computed one coordinate at a time."""
    fit, plain = fit_of("noise:0.5")
    rows = torch.stack([plain, plain + 0.01, plain * 1.1])
    distances = torch.tensor([fit.distance(fit.sent(row)) for row in rows])
    densities = torch.distributions.Normal(rows.double(), 0.5).log_prob(fit.target.double())
    expected = torch.softmax(densities.sum(1), dim=0)
    found = fit.posterior(distances.double())
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_what_follows_the_noise_takes_the_likelihood():
    assert fit_of("noise:0.1+sparsify:0.5")[0].sigma is None


def test_what_left_the_finite_numbers_fits_last():
    fit, plain = fit_of("none")
    assert fit.distance(fit.sent(plain * torch.nan)) == torch.inf


def test_rounding_is_applied_to_trials():
    batch, _ = lists_of(images_of())
    seen = update_of(tiny_victim(), batch, FedSGD(), "tests.outside:Rounded:0.01")
    assert isinstance(seen.defenses[0], Rounded)
    fit = Fit(seen)
    plain = flattened(update_of(tiny_victim(), batch, FedSGD()).gradient)
    assert fit.distance(fit.sent(plain)) <= 1e-9
    assert fit.sigma is None
