"""The server's lists: for each place of a batch, the true image among others of its label."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradinv.data import ClientBatch, ImageSet
from gradinv.errors import ConfigError
from gradinv.evaluation.controls import decoy_rows


@dataclass(frozen=True, eq=False)
class CandidateLists:
    """What a server that holds lists knows of a batch, and, for the judge alone, the truth.

    Attributes:
        images: for each place its candidates, in an order that says nothing.
        truth: where in each list the client's own image stands.
        labels: the class of each place.
        others: a batch of other images of the same labels, in none of the places' lists: another
            client's, for the control. None where the set has no image left for some place.
    """

    images: tuple[Float[Tensor, "candidate channel height width"], ...]
    truth: tuple[int, ...]
    labels: Int[Tensor, " batch"]
    others: Float[Tensor, "batch channel height width"] | None

    @property
    def counts(self) -> tuple[int, ...]:
        """How many candidates each place has."""
        return tuple(len(images) for images in self.images)

    def batch(self, picks: Sequence[int]) -> Float[Tensor, "batch channel height width"]:
        """Returns the batch with the given candidate in each place."""
        return torch.stack([images[pick] for images, pick in zip(self.images, picks, strict=True)])


def candidate_rows(
    image_set: ImageSet, ids: Sequence[int], *, count: int, seed: int
) -> tuple[list[list[int]], list[int] | None]:
    """Returns which images stand in each list beside the true one, and the other client's.

    Args:
        image_set: the set.
        ids: indices of the batch's images in it.
        count: candidates of one place, the true image among them.
        seed: decides them.

    Raises:
        ConfigError: fewer than 2 candidates, which leave nothing to tell apart.
    """
    if count < 2:
        raise ConfigError(f"expected at least 2 candidates, got {count}; raise --candidates")
    rows = decoy_rows(image_set, ids, count=count, seed=seed)
    # The last of a row that is long enough is not needed as a decoy; a short one gives one up.
    others = [row[-1] for row in rows] if all(len(row) > 1 for row in rows) else None
    if others is None:
        return [row[: count - 1] for row in rows], None
    return [row[:-1] for row in rows], others


def candidate_lists(
    image_set: ImageSet, batch: ClientBatch, *, count: int, seed: int
) -> CandidateLists:
    """Draws the lists for a batch.

    Args:
        image_set: the set that the batch was drawn from.
        batch: the client's.
        count: candidates of one place, the true image among them; fewer where the set has fewer
            images of the label.
        seed: decides the lists and their order.

    Raises:
        ConfigError: fewer than 2 candidates.
        DataError: an image cannot be decoded.
    """
    rows, others = candidate_rows(image_set, batch.ids, count=count, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    images, truth = [], []
    for own, row in zip(batch.images, rows, strict=True):
        shuffled = torch.randperm(len(row) + 1, generator=generator)
        listed = torch.cat([own[None].cpu(), image_set.images(row)])
        images.append(listed[shuffled])
        truth.append(int((shuffled == 0).nonzero()))
    return CandidateLists(
        images=tuple(images),
        truth=tuple(truth),
        labels=batch.labels,
        others=None if others is None else image_set.images(others),
    )
