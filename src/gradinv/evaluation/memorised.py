"""Does a prior know the client's images, whatever an update says?"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.evaluation.controls import count_decoys
from gradinv.evaluation.luck import chance_of

SAMPLES = 512
SIGNIFICANCE = 0.01
"""How often a prior that knows nothing of the images is taken for one that does."""

REASON = (
    "its prior makes pictures nearer to the client's images than to others of their labels before "
    "it sees any update, so what comes back may be the prior's own memory"
)


def knows(
    samples: Float[Tensor, "sample channel height width"],
    originals: Sequence[Tensor],
    decoys: Sequence[Tensor],
    *,
    significance: float = SIGNIFICANCE,
) -> bool:
    """Whether samples of a prior are nearer to the originals than luck brings them.

    For each original the distance to its nearest sample is compared with those of its decoys; an
    original that the prior has not been shown is nearest of N as often as any of them, with 1 / N.
    Decoys that are originals of another batch are left out: a prior that knows one knows the other.

    Args:
        samples: pictures that the prior makes, in [0, 1].
        originals: for each batch, (batch, channel, height, width).
        decoys: for each batch, (batch, decoy, channel, height, width); NaN where there are fewer.
        significance: how often luck may say yes.
    """
    if not originals:
        return False
    hits, luck = 0, []
    flat = samples.flatten(1).double().cpu()
    known = torch.cat([own.flatten(1).double().cpu() for own in originals])
    for own, others in zip(originals, decoys, strict=True):
        counts = count_decoys(others)
        for image, row, count in zip(own, others, counts.tolist(), strict=True):
            others_of_label = row[:count].flatten(1).double().cpu()
            strange = (_distances(others_of_label, known) > 0).all(dim=1)
            if not strange.any():
                continue
            own_flat = image.flatten()[None].double().cpu()
            candidates = torch.cat([own_flat, others_of_label[strange]])
            nearest = _distances(candidates, flat).amin(dim=1)
            hits += int((nearest[0] < nearest[1:]).all())
            luck.append(1 / len(candidates))
    return bool(luck) and chance_of(hits, luck) < significance


def _distances(a: Float[Tensor, "one pixel"], b: Float[Tensor, "other pixel"]) -> Tensor:
    """Returns Euclidean distances that are exactly 0 for equal images."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
