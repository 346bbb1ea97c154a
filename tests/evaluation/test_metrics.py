"""MSE, PSNR and SSIM against scikit-image."""

import doctest
import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from gradinv.errors import DataError
from gradinv.evaluation import metrics
from gradinv.evaluation.metrics import mse, psnr, ssim

SHAPES = [(3, 1, 32, 32), (2, 3, 64, 64), (2, 3, 11, 17)]


def pair(shape, noise, dtype=torch.float64):
    """Smooth images and noisy copies."""
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    small = torch.rand(*shape[:2], 4, 4, generator=generator, dtype=dtype)
    target = torch.nn.functional.interpolate(small, shape[2:], mode="bilinear")
    preds = target + noise * torch.randn(shape, generator=generator, dtype=dtype)
    return preds.clamp(0, 1), target


def reference(function, preds, target, **options):
    images = zip(preds.double().numpy(), target.double().numpy(), strict=True)
    return [function(t, p, **options) for p, t in images]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noise", [0.01, 0.2, 3.0])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
class TestAgainstScikitImage:
    def test_mse(self, shape, noise, dtype, rtol):
        preds, target = pair(shape, noise, dtype)
        expected = reference(mean_squared_error, preds, target)
        np.testing.assert_allclose(mse(preds, target).numpy(), expected, rtol=rtol)

    @pytest.mark.parametrize("data_range", [1.0, 2.0])
    def test_psnr(self, shape, noise, dtype, rtol, data_range):
        preds, target = pair(shape, noise, dtype)
        expected = reference(peak_signal_noise_ratio, preds, target, data_range=data_range)
        got = psnr(preds, target, data_range=data_range)
        np.testing.assert_allclose(got.numpy(), expected, rtol=rtol)

    @pytest.mark.parametrize("data_range", [1.0, 2.0])
    def test_ssim(self, shape, noise, dtype, rtol, data_range):
        preds, target = pair(shape, noise, dtype)
        expected = reference(
            structural_similarity,
            preds,
            target,
            data_range=data_range,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        got = ssim(preds, target, data_range=data_range)
        assert got.dtype == dtype
        np.testing.assert_allclose(got.numpy(), expected, rtol=rtol, atol=1e-7)


def test_equal_images():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert mse(images, images).tolist() == [0, 0]
    assert psnr(images, images, data_range=1.0).tolist() == [math.inf] * 2
    assert ssim(images, images, data_range=1.0).tolist() == pytest.approx([1, 1])


def test_pixels_from_minus_one_are_worth_six_decibels():
    """The convention of one published tool: [-1, 1] with a peak of 1 (6.02 dB low)."""
    preds, target = pair(SHAPES[0], 0.1)
    low = psnr(2 * preds - 1, 2 * target - 1, data_range=1.0)
    assert torch.allclose(psnr(preds, target, data_range=1.0) - low, torch.tensor(6.0206).double())


def test_one_value_for_each_image():
    """An image's value does not depend on its neighbours in the batch."""
    preds, target = pair(SHAPES[1], 0.1)
    whole = ssim(preds, target, data_range=1.0)
    assert torch.allclose(ssim(preds[1:], target[1:], data_range=1.0), whole[1:])


def test_ssim_of_tiny_images():
    with pytest.raises(DataError, match="at least 11x11 pixels for SSIM, got 10x32; choose"):
        ssim(torch.zeros(1, 1, 10, 32), torch.zeros(1, 1, 10, 32), data_range=1.0)


def test_examples_in_docstrings():
    result = doctest.testmod(metrics, extraglobs={"torch": torch})
    assert result.attempted == 2
    assert result.failed == 0
