"""How likely luck alone makes a count, or brings one image as near as it came."""

import math
from collections.abc import Sequence

import numpy as np

from gradinv.evaluation.evaluate import ImageScore


def chance_of(hits: int, luck: Sequence[float]) -> float:
    """Returns how likely luck alone gives at least ``hits``, one probability for each image.

    The upper tail of the Poisson binomial distribution: images have different numbers of decoys.

    >>> chance_of(1, [0.5, 0.5])
    0.75
    """
    distribution = np.ones(1)
    for probability in luck:
        distribution = np.convolve(distribution, [1 - probability, probability])
    return min(1.0, float(distribution[hits:].sum()))


def chances_so_near(scores: Sequence[ImageScore]) -> list[float]:
    r"""Returns, for each image, how likely luck alone brings it so far ahead of all decoys.

    Of the n images of a label in a batch and its d decoys luck makes one of the n the nearest to a
    reconstruction with n / (n + d). How far it is ahead then is asked of the decoys themselves:
    where nothing leaked, the original is one of them, and its lead over the next is of the kind
    that the nearest decoy has over the second. Where distances near the least grow like a power, as
    those of points in some dimension do, the logarithms of such leads are exponential (Rényi 1953).
    So with the leads :math:`g_i` of the decoys of N reconstructions, a lead m has

    .. math:: p = \frac{n}{n + d} \Bigl(1 + \frac{m}{\sum_i g_i}\Bigr)^{-N}

    The level is that of any of the images, by Bonferroni. Decoys are not matched here, as they are
    for ranks: what is asked is how near this picture is, whichever original it belongs to.

    Returns:
        Chances for any of the images (already times their number), at most 1; 1 where there is
        nothing to compare.
    """
    leads = [lead for score in scores if (lead := _lead_of_decoys(score)) is not None]
    total = sum(leads, 0.0)
    if not total > 0:
        return [1.0] * len(scores)
    return [min(1.0, len(leads) * _chance(score, total, len(leads))) for score in scores]


def _chance(score: ImageScore, total: float, number: int) -> float:
    if not score.decoys or score.nearest_decoy is None:
        return 1.0
    lead = math.inf if score.mse <= 0 else math.log(score.nearest_decoy / score.mse)
    if lead <= 0:
        return 1.0
    return score.alike / (score.alike + score.decoys) * (1 + lead / total) ** -number


def _lead_of_decoys(score: ImageScore) -> float | None:
    nearest, second = score.nearest_decoy, score.second_decoy
    if nearest is None or second is None or not nearest > 0:
        return None
    return math.log(second / nearest)
