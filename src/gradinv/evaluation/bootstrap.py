"""How far a mean over batches would move with other batches."""

from collections.abc import Sequence

import numpy as np

from gradinv.errors import DataError


def bootstrap_ci(
    values: Sequence[float], *, confidence: float = 0.95, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float] | None:
    """Returns the percentile bootstrap interval of the mean (Efron 1979).

    The images of one batch share a gradient and fail or succeed together, so it is batches that
    are drawn with replacement, not images. The interval is honest about which batches were drawn
    and nothing else; below about 8 batches it is too narrow.

    Args:
        values: one value for each batch, such as its mean PSNR.
        confidence: the fraction of resampled means that lie inside.
        seed: of the resampling; the same seed gives the same interval.
        resamples: how often to draw.

    Returns:
        (low, high), or ``None`` with a single batch: one value says nothing about its spread.

    Raises:
        DataError: no values, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise DataError(
            f"expected one finite value for each batch, got {array.tolist()}; "
            "leave out batches that were not judged"
        )
    if array.size == 1:
        return None
    drawn = np.random.default_rng(seed).integers(array.size, size=(resamples, array.size))
    outside = (1 - confidence) / 2
    low, high = np.quantile(array[drawn].mean(1), [outside, 1 - outside])
    return float(low), float(high)
