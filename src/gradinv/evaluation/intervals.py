"""How far a mean over batches would move with other batches."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from gradinv.errors import DataError


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Returns Student's interval of the mean, mean ± t s / sqrt(n) with n - 1 degrees of freedom.

    The images of one batch share a gradient and fail or succeed together, so a value belongs to a
    batch, not to an image. With two or three batches the interval is wide, because that is how
    little they say; resampling them (the bootstrap) would make it far too narrow there.

    Args:
        values: one value for each batch, such as its mean PSNR.
        confidence: how often such intervals hold the mean over all batches, were batches' values
            normally distributed.

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
    reach = stats.t.ppf((1 + confidence) / 2, array.size - 1) * stats.sem(array)
    return float(array.mean() - reach), float(array.mean() + reach)
