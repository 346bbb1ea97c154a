import numpy as np
import pytest
import torch

from gradinv.priors.augment import augment, color, cutout, flip, translate
from gradinv.priors.dcgan import DCGAN
from gradinv.priors.quality import Quality, coverage, kernel_distance, measure_quality


def test_kernel_distance_is_the_unbiased_mmd_of_a_cubic_kernel(generator):
    a = torch.randn((6, 4), generator=generator, dtype=torch.float64)
    b = torch.randn((5, 4), generator=generator, dtype=torch.float64) + 1

    def k(x, y):
        return (np.dot(x, y) / 4 + 1) ** 3

    def mean(rows, columns, same):
        return np.mean([
            k(x, y) for i, x in enumerate(rows) for j, y in enumerate(columns) if not same or i != j
        ])  # fmt: skip

    p, q = a.numpy(), b.numpy()
    expected = mean(p, p, True) + mean(q, q, True) - 2 * mean(p, q, False)
    assert kernel_distance(a, b).item() == pytest.approx(expected)
    assert kernel_distance(b, b + 3).item() > kernel_distance(b, b + 1).item() > 0


def test_coverage_counts_points_inside_the_nearest_neighbour_balls():
    manifold = torch.tensor([[0.0], [1.0], [2.0], [3.0], [50.0]])
    points = torch.tensor([[0.5], [3.5], [20.0], [1000.0]])
    assert coverage(points, manifold, neighbours=1).item() == pytest.approx(3 / 4)
    assert coverage(points[3:], manifold, neighbours=3).item() == 0


def test_a_generator_of_the_data_is_better_than_an_untrained_one(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = DCGAN(image_size=16, channels=1, base_channels=4, latent_dim=6).eval()
    with torch.no_grad():
        real = prior(prior.sample_latents(200, generator))
    own = measure_quality(prior, real, seed=1)
    other = measure_quality(prior.untrained(generator), real, seed=1)
    assert own.kernel_distance < 0.1 * other.kernel_distance
    assert own.precision > 0.8 > other.precision
    assert own.recall > 0.8


def test_augmentations_keep_shape_and_let_gradients_through(generator):
    images = torch.rand((8, 3, 16, 16), generator=generator, requires_grad=True)
    for change in (augment, color, cutout, flip, translate):
        changed = change(images, generator)
        assert changed.shape == images.shape
        assert not torch.equal(changed, images)
        (gradient,) = torch.autograd.grad(changed.sum(), images)
        assert gradient.abs().sum() > 0


def test_as_json_what_is_not_finite_is_null():
    quality = Quality(float("nan"), float("inf"), 0.25, 8, "given")
    assert quality.as_dict() == {
        "kernel_distance": None, "precision": None, "recall": 0.25, "samples": 8,
        "features": "given",
    }  # fmt: skip
