r"""How near a reconstruction is to its original: pure functions, one value for each image.

Reduction over images happens only in reports. All take ``preds`` and ``target`` as
(batch, channel, height, width).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gradinv.errors import DataError

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window in pixels (Wang et al. 2004, section III.B)."""
SSIM_SIGMA = 1.5


def mse(
    preds: Float[Tensor, "batch channel height width"],
    target: Float[Tensor, "batch channel height width"],
) -> Float[Tensor, " batch"]:
    """Returns the mean squared error over channels and pixels.

    >>> mse(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5))
    tensor([0.2500])
    """
    return (preds - target).square().flatten(1).mean(1)


def psnr(
    preds: Float[Tensor, "batch channel height width"],
    target: Float[Tensor, "batch channel height width"],
    *,
    data_range: float,
) -> Float[Tensor, " batch"]:
    """Returns the peak signal-to-noise ratio 10 log10(data_range² / MSE) in decibels.

    Infinite for equal images. ``data_range`` is the distance from black to white: 1 for pixels in
    [0, 1]. Tools that take [-1, 1] with a peak of 1 come out 6.02 dB lower.

    >>> psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.1), data_range=1.0)
    tensor([20.])
    """
    return 20 * math.log10(data_range) - 10 * mse(preds, target).log10()


def ssim(
    preds: Float[Tensor, "batch channel height width"],
    target: Float[Tensor, "batch channel height width"],
    *,
    data_range: float,
) -> Float[Tensor, " batch"]:
    """Returns the structural similarity of Wang et al. 2004, eq. 13.

    Gaussian window of 11x11 pixels, σ = 1.5, K1 = 0.01, K2 = 0.03, biased variances; the mean over
    channels and over those window places that lie inside the image. Channels are taken one by one.
    1 for equal images; computed in float64, because variances are small differences.

    Raises:
        DataError: images smaller than the window.
    """
    if min(target.shape[-2:]) < SSIM_WINDOW:
        raise DataError(
            f"expected images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels for SSIM, got "
            f"{target.shape[-2]}x{target.shape[-1]}; choose a larger image size"
        )
    x, y = preds.double(), target.double()
    offset = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    window = window / window.sum()

    def blur(images: Tensor) -> Tensor:
        rows = images.flatten(0, 1).unsqueeze(1)
        rows = F.conv2d(F.conv2d(rows, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
        return rows.view(*images.shape[:2], *rows.shape[-2:])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return likeness.flatten(1).mean(1).to(target.dtype)
