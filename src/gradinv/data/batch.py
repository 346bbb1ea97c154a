"""What one client trains on."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradinv.errors import DataError
from gradinv.memory import owned


@dataclass(frozen=True, eq=False)
class ClientBatch:
    """What one client trains on in one step, and what an attack must not see.

    Args:
        images: pixels in [0, 1].
        labels: class numbers, long.
        ids: the index of each image in its :class:`ImageSet`; empty when it comes from none.

    Raises:
        DataError: no image, lengths differ, a label that is no class number, or a pixel outside
            [0, 1].
    """

    images: Float[Tensor, "batch channel height width"]
    labels: Int[Tensor, " batch"]
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                "expected images (batch, channel, height, width) with one label each, got images "
                f"{tuple(self.images.shape)} and labels {tuple(self.labels.shape)}; "
                "stack one label for each image"
            )
        if len(self.images) == 0:
            raise DataError(
                "expected at least 1 image in a batch, got none; give the images that the client "
                "trains on"
            )
        if self.images.numel() == 0:
            raise DataError(
                f"expected images with pixels, got {tuple(self.images.shape)}; load them again"
            )
        if self.labels.dtype != torch.int64:
            raise DataError(
                "expected labels that are whole numbers (int64), got "
                f"{str(self.labels.dtype).split('.')[-1]}; convert them with labels.long()"
            )
        # PyTorch's cross entropy skips images of label -100, which would be missing in the update.
        if (lowest := int(self.labels.min())) < 0:
            raise DataError(
                f"expected labels of at least 0, got {lowest}; number the classes from 0"
            )
        if self.ids and len(self.ids) != len(self.images):
            raise DataError(
                f"expected one id for each of {len(self.images)} images, got {len(self.ids)}; "
                "leave ids empty when there are none"
            )
        low, high = (float(bound) for bound in self.images.detach().aminmax())
        if not (low >= 0 and high <= 1):  # NaN fails both comparisons
            raise DataError(
                f"expected pixels in [0, 1], got [{low:.4g}, {high:.4g}]; "
                "divide bytes by 255 and leave normalisation to a layer of the network"
            )
        object.__setattr__(self, "images", owned(self.images))
        object.__setattr__(self, "labels", owned(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channel, height and width of one image."""
        channel, height, width = self.images.shape[1:]
        return channel, height, width

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "ClientBatch":
        """Returns the batch on ``device``, with images (not labels) of ``dtype``."""
        return ClientBatch(
            self.images.to(device=device, dtype=dtype), self.labels.to(device=device), self.ids
        )


def fingerprint_batches(batches: Iterable[ClientBatch]) -> str:
    """Returns 16 hex characters that tell one series of batches from another."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.images, batch.labels):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
