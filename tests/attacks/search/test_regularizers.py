import math

import pytest
import torch

from gradinv.attacks.search.regularizers import (
    BatchNormMatching,
    ImageNorm,
    LatentKL,
    LatentNorm,
    TotalVariation,
)
from gradinv.errors import AttackError
from gradinv.models.batchnorm import BatchStatistics


def test_total_variation_in_both_definitions():
    image = torch.tensor([[[[0.0, 1.0], [3.0, 7.0]]]])
    # |dx|: 1, 4; |dy|: 3, 6
    assert TotalVariation(2.0)(image).item() == pytest.approx(2 * (2.5 + 4.5))
    assert TotalVariation(1.0, squared=True)(image).item() == pytest.approx(1 + 16 + 9 + 36)
    both = torch.cat([image, image])
    assert TotalVariation(1.0, squared=True)(both).item() == pytest.approx(62)
    assert TotalVariation(1.0)(torch.ones(1, 3, 4, 4)).item() == 0


def test_norms_of_images_and_latents():
    images = torch.stack([torch.full((1, 2, 2), 1.0), torch.full((1, 2, 2), 3.0)])
    assert ImageNorm(0.5)(images).item() == pytest.approx(0.5 * (2 + 6) / 2)
    assert LatentNorm(0.1)(torch.tensor([[3.0, 0.0], [0.0, 4.0]])).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "term",
    [TotalVariation(0.7), TotalVariation(0.7, squared=True), ImageNorm(0.3)],
    ids=["tv", "squared tv", "norm"],
)
def test_image_terms_have_autograds_gradient_for_every_restart(term):
    images = torch.randn((3, 2, 3, 5, 4), dtype=torch.float64)
    images[0, 1] = 0  # equal neighbours, and an image without length
    images[2, :, :, 2:] = 0.25
    leaf = images.clone().requires_grad_()
    expected = torch.stack([term(batch) for batch in leaf])
    expected.sum().backward()
    values, gradient = term.with_gradient(images)
    torch.testing.assert_close(values, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)


def test_latent_kl_is_that_of_two_normal_distributions():
    z = torch.tensor([[3.0, 1.0], [0.5, -0.5]])
    normal = torch.distributions.Normal
    fitted = normal(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.5]))
    expected = torch.distributions.kl_divergence(fitted, normal(0.0, 1.0)).sum().item()
    assert LatentKL(0.1)(z).item() == pytest.approx(0.1 * expected, rel=1e-6)
    assert math.isfinite(LatentKL(1.0)(torch.zeros(1, 3)).item())


def statistics(mean, var):
    return BatchStatistics(torch.tensor(mean), torch.tensor(var))


def test_batch_norm_matching_in_both_definitions():
    trial = {"first": statistics([3.0, 4.0], [1.0, 1.0]), "second": statistics([1.0], [2.0])}
    seen = {"first": statistics([0.0, 0.0], [1.0, 1.0]), "second": statistics([0.0], [0.0])}
    assert BatchNormMatching(0.1)(trial, seen).item() == pytest.approx(0.1 * (10 * 5 + 1 + 2))
    paper = BatchNormMatching(1.0, first=1.0, squared=True)
    assert paper(trial, seen).item() == pytest.approx(25 + 1 + 4)


def test_batch_norm_matching_names_the_layers_without_statistics():
    trial = {"first": statistics([1.0], [1.0]), "other": statistics([1.0], [1.0])}
    with pytest.raises(AttackError, match=r"expected observed statistics.*none for other"):
        BatchNormMatching(1.0)(trial, {"first": trial["first"]})
    with pytest.raises(AttackError, match="a network without batch norm"):
        BatchNormMatching(1.0)({}, {})
