"""Does a reconstruction point at this very image, or merely at an image of that kind?

A generator makes a plausible picture of the label whatever the gradient says, and a plausible
picture has some likeness to any other of its kind: two pairs of trousers in Fashion-MNIST reach an
SSIM of 0.9. So the true image is put among decoys of the same set: an attack that learnt something
from the update is nearest to the true one.

The originals have an advantage that decoys must have too: they are matched, with the truth known,
to whichever reconstructions suit them. So decoys are taken as whole batches, one for each original,
and each batch is matched as the originals were. Were the reconstructions to know nothing but the
labels, the originals would be a batch like any other, and luck alone would put one first as often
as it does any other.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradinv.data import ClientBatch, ImageSet
from gradinv.errors import ConfigError, DataError
from gradinv.evaluation.matching import check_comparable, match


def decoys_for(
    image_set: ImageSet, batch: ClientBatch, *, count: int = 63, seed: int = 0
) -> Float[Tensor, "batch decoy channel height width"]:
    """Draws decoys for each image of a batch: other images of its label.

    Only of its label, because the attacker knows the label: decoys of other labels would be told
    apart without any leak, and the chance of a lucky hit would be understated. Images of the batch
    itself are left out, because matching has dealt with them. The k-th decoys of all images make a
    batch of different images wherever the set has enough of each label.

    Returns:
        Up to ``count`` decoys for each image. Where the set has fewer of a label, the last ones
        are NaN and count nowhere.

    Raises:
        ConfigError: a negative count.
        DataError: a batch without ids, which cannot be told from its decoys.
    """
    if count < 0:
        raise ConfigError(f"expected at least 0 decoys, got {count}; raise the count")
    if len(batch.ids) != len(batch):
        raise DataError(
            "expected a batch with the ids of its images in the set, got none; "
            "take it from ImageSet.batches"
        )
    rows = decoy_rows(image_set, batch.ids, count=count, seed=seed)
    most = max(len(row) for row in rows)
    decoys = torch.full((len(batch), most, *image_set.image_shape), torch.nan)
    for place, row in zip(decoys, rows, strict=True):
        place[: len(row)] = image_set.images(row)
    return decoys


def decoy_rows(
    image_set: ImageSet, ids: Sequence[int], *, count: int = 63, seed: int = 0
) -> list[list[int]]:
    """Returns which images :func:`decoys_for` takes for each image of a batch.

    Args:
        image_set: the set.
        ids: indices of the batch's images in it.
        count: most decoys of one image.
        seed: decides them.
    """
    others = torch.ones(len(image_set), dtype=torch.bool)
    others[list(ids)] = False
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(image_set), generator=generator)
    rows, seen = [], Counter()
    for label in image_set.labels[list(ids)].tolist():
        alike = shuffled[others[shuffled] & (image_set.labels[shuffled] == label)]
        # Images of one label have the same decoys, each in an order that is one place further on.
        rows.append(alike.roll(-seen[label])[:count].tolist())
        seen[label] += 1
    return rows


def count_decoys(
    decoys: Float[Tensor, "batch decoy channel height width"],
) -> Int[Tensor, " batch"]:
    """Returns how many decoys each image has; those of NaN are none."""
    return (~decoys.isnan().flatten(2).any(2)).sum(1)


def identification_rank(
    reconstructions: Float[Tensor, "batch channel height width"],
    originals: Float[Tensor, "batch channel height width"],
    decoys: Float[Tensor, "batch decoy channel height width"],
) -> Int[Tensor, " batch"]:
    """Returns how many decoys lie nearer (by MSE) to a reconstruction than each original does.

    The k-th decoys of all originals are matched to the reconstructions one to one, as the originals
    are, and compared with them place by place. 0 means identified: the true image is the nearest of
    ``decoy + 1`` candidates, which happens by chance once in ``decoy + 1``.

    Args:
        reconstructions: in any order.
        originals: the client's images.
        decoys: for each original its own decoys; NaN where it has fewer. Its place in the batch of
            decoys is then taken by the original, for the sake of the others.

    Raises:
        DataError: shapes differ, or a reconstruction is not finite.
    """
    return ranks_of(candidate_errors(reconstructions, originals, decoys))


def ranks_of(errors: Float[Tensor, "batch candidate"]) -> Int[Tensor, " batch"]:
    """Returns how many decoys have a smaller error than the original, the first candidate."""
    return (errors[:, 1:] < errors[:, :1]).sum(1)


def candidate_errors(
    reconstructions: Float[Tensor, "batch channel height width"],
    originals: Float[Tensor, "batch channel height width"],
    decoys: Float[Tensor, "batch decoy channel height width"],
) -> Float[Tensor, "batch candidate"]:
    """Returns the MSE of each candidate and the reconstruction that it is matched to.

    The original is the first candidate, its decoys follow; infinity where it has fewer. Arguments
    and errors are those of :func:`identification_rank`.
    """
    check_comparable(reconstructions, originals)
    if decoys.ndim != 5 or (decoys.shape[0], *decoys.shape[2:]) != tuple(originals.shape):
        raise DataError(
            "expected decoys (batch, decoy, channel, height, width) for originals "
            f"{tuple(originals.shape)}, got {tuple(decoys.shape)}; make them with decoys_for"
        )
    preds, decoys = reconstructions.to(originals), decoys.to(originals)
    absent = decoys.isnan().flatten(2).any(2)
    errors = [_matched_errors(originals, preds)]
    for batch, missing in zip(decoys.unbind(1), absent.unbind(1), strict=True):
        whole = torch.where(missing[:, None, None, None], originals, batch)
        errors.append(_matched_errors(whole, preds).masked_fill(missing, torch.inf))
    return torch.stack(errors, 1)


def two_nearest(
    reconstructions: Float[Tensor, "batch channel height width"],
    decoys: Float[Tensor, "batch decoy channel height width"],
) -> Float[Tensor, "batch 2"]:
    """Returns the MSE of each reconstruction and the two decoys nearest to it, of all of a batch.

    Nothing is matched here: each reconstruction is compared with the decoys of all places. Images
    of one label share decoys; one that stands in several places counts once. Infinity where there
    are fewer than two.
    """
    flat = reconstructions.flatten(1).double()
    # The matrix-product form of cdist loses small distances; place by place it needs less memory.
    apart = [
        torch.cdist(flat, row.to(flat).flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        for row in decoys
    ]
    errors = torch.stack(apart).square() / max(1, flat.shape[1])
    # (place, reconstruction, decoy) -> (reconstruction, every decoy), the absent ones last
    apart = errors.permute(1, 0, 2).flatten(1).nan_to_num(torch.inf).sort(dim=1).values
    found = torch.full((len(flat), 2), torch.inf, dtype=torch.float64)
    for place, row in enumerate(apart):
        distinct = row.unique_consecutive()[:2]
        found[place, : len(distinct)] = distinct
    return found.to(reconstructions.dtype)


def _matched_errors(candidates: Tensor, reconstructions: Tensor) -> Tensor:
    """Returns the MSE of each candidate and the reconstruction that it is matched to."""
    matched = reconstructions[match(candidates, reconstructions)]
    return (candidates - matched).square().flatten(1).mean(1)
