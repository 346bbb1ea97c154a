"""Images that a caller holds in memory, as a set like any other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradinv.data.batch import ClientBatch
from gradinv.data.images import ImageSet
from gradinv.errors import DataError


@dataclass(frozen=True, eq=False)
class TensorImages(ImageSet):
    """Labelled images as floats in [0, 1]; they need not be square."""

    pixels: Float[Tensor, "image channel height width"] = field(
        default_factory=lambda: torch.empty(0, 1, 1, 1), repr=False
    )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channel, height and width of one image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def images(
        self, indices: Sequence[int] | Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns the images asked for, in that order.

        Raises:
            DataError: an index lies outside the set.
        """
        return self.pixels[self.within(indices)]

    def _stack(self, indices: Sequence[int]) -> Tensor:
        return self.pixels[list(indices)].mul(255).round().to(torch.uint8)


def of_tensors(
    images: Float[Tensor, "image channel height width"],
    labels: Int[Tensor, " image"],
    *,
    classes: Sequence[str] | int,
    name: str = "images in memory",
) -> TensorImages:
    """Returns images in memory as a set.

    Args:
        images: pixels in [0, 1].
        labels: one class number for each image.
        classes: names of all classes, or their number; some may have no image.
        name: what a report calls the set.

    Raises:
        DataError: as :class:`ClientBatch`; or a label that is no class.
    """
    # The same checks as of a batch: shapes, whole numbers, pixels in [0, 1].
    whole = ClientBatch(images.detach().cpu().float().clone(), labels.detach().cpu().clone())
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    if (highest := int(whole.labels.max())) >= len(names):
        raise DataError(
            f"expected labels below {len(names)}, the number of classes, got {highest}; number "
            "the classes from 0, or give a network with more outputs"
        )
    return TensorImages(
        name=name,
        classes=names,
        labels=whole.labels,
        channels=whole.image_shape[0],
        image_size=whole.image_shape[1],
        _decode=_never,
        pixels=whole.images,
    )


def _never(index: int) -> NoReturn:
    raise AssertionError(f"image {index} is in memory and not decoded")
