"""A set of labelled images, decoded when asked for, and the batches that are drawn from it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gradinv.data.batch import ClientBatch
from gradinv.data.decoding import BrokenImageError, all_broken
from gradinv.errors import ConfigError, DataError
from gradinv.seeds import require_seed


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size, decoded when asked for.

    Args:
        name: what a report calls the set.
        classes: class names; a label is an index into them. A class may have no image.
        labels: one class number for each image.
        channels: 1 or 3.
        image_size: height and width in pixels.
        files: of the images, where each has one of its own.
    """

    name: str
    classes: tuple[str, ...]
    labels: Int[Tensor, " image"] = field(repr=False)
    channels: int
    image_size: int
    _decode: Callable[[int], np.ndarray] = field(repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of class names, with or without images."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channel, height and width of one image."""
        return self.channels, self.image_size, self.image_size

    def images(
        self, indices: Sequence[int] | Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Decodes the images asked for, in that order.

        Raises:
            DataError: files cannot be decoded (all of them are named), or an index lies outside
                the set.
        """
        chosen = self.within(indices)
        decoded = "_everything" in self.__dict__  # for training a prior
        pixels = self._everything[chosen] if decoded else self._stack(chosen)
        return pixels.float() / 255

    def within(self, indices: Sequence[int] | Int[Tensor, " batch"]) -> list[int]:
        """Returns indices that lie in the set.

        Raises:
            DataError: one does not.
        """
        chosen = [int(index) for index in indices]
        outside = [index for index in chosen if not 0 <= index < len(self)]
        if outside:
            raise DataError(
                f"expected indices from 0 to {len(self) - 1} in {self.name}, got {outside[0]}; "
                "choose images that the set has"
            )
        return chosen

    def all_images_uint8(self) -> UInt8[Tensor, "image channel height width"]:
        """Decodes every image, once; later calls return the same tensor.

        Raises:
            DataError: files cannot be decoded; all of them are named.
        """
        return self._everything

    @cached_property
    def _everything(self) -> Tensor:
        return self._stack(range(len(self)))

    def _stack(self, indices: Sequence[int]) -> Tensor:
        pixels = torch.empty(len(indices), *self.image_shape, dtype=torch.uint8)
        broken: dict[Path, BrokenImageError] = {}
        for row, index in zip(pixels.numpy(), indices, strict=True):
            try:
                row[...] = self._decode(index)
            except BrokenImageError as error:
                broken[error.path] = error
        if broken:
            raise all_broken(self.name, list(broken.values()))
        return pixels

    def batch(self, indices: Sequence[int]) -> ClientBatch:
        """Returns the images with these indices as a client's batch.

        Raises:
            DataError: see :meth:`images`.
        """
        chosen = [int(index) for index in indices]
        return ClientBatch(self.images(chosen), self.labels[chosen], tuple(chosen))

    def batches(self, *, batch_size: int, count: int, seed: int) -> tuple[ClientBatch, ...]:
        """Draws disjoint batches and decodes them; see :meth:`draw`.

        Raises:
            ConfigError: a size or count below 1, or a seed that cannot be.
            DataError: too few images, or too few with distinct labels, or files that cannot be
                decoded; all of them are named.
        """
        drawn = self.draw(batch_size=batch_size, count=count, seed=seed)
        pixels = self.images([index for chosen in drawn for index in chosen])
        # Each batch has memory of its own, as one that was drawn alone.
        return tuple(
            ClientBatch(part.clone(), self.labels[list(chosen)], chosen)
            for part, chosen in zip(pixels.split(batch_size), drawn, strict=True)
        )

    def draw(self, *, batch_size: int, count: int, seed: int) -> tuple[tuple[int, ...], ...]:
        """Draws the indices of disjoint batches, without decoding any.

        Labels are distinct within a batch where the set has at least ``batch_size`` classes with
        images, as in the threat model of Jeon et al. 2021 (section 4); otherwise they may repeat.
        The same seed gives the same first batches whatever ``count`` is, unless classes run out.

        Raises:
            ConfigError: a size or count below 1, or a seed that cannot be.
            DataError: too few images, or too few with distinct labels.
        """
        if batch_size < 1 or count < 1:
            raise ConfigError(
                f"expected at least 1 batch of at least 1 image, got {count} of {batch_size}; "
                "raise the number of batches or the batch size"
            )
        if len(self) < batch_size * count:
            raise DataError(
                f"expected at least {batch_size * count} images for {count} batches of "
                f"{batch_size}, got {len(self)} in {self.name}; "
                "add images, or ask for fewer batches or smaller ones"
            )
        require_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(self), generator=generator)
        pools: dict[int, list[int]] = {}
        for index, label in zip(shuffled.tolist(), self.labels[shuffled].tolist(), strict=True):
            pools.setdefault(label, []).append(index)
        if len(pools) < batch_size:
            drawn = shuffled[: batch_size * count].view(count, batch_size).tolist()
            return tuple(tuple(chosen) for chosen in drawn)
        sizes = {label: len(pool) for label, pool in pools.items()}
        if not _enough(sizes.values(), batch_size, count):
            most = max(n for n in range(count) if _enough(sizes.values(), batch_size, n))
            raise DataError(
                f"expected images for {count} batches of {batch_size} distinct labels, got enough "
                f"for {most} in {self.name}; add images to its small classes, or ask for at most "
                f"{most} batches"
            )
        return tuple(
            tuple(pools[label].pop() for label in labels)
            for labels in _draw_labels(sizes, batch_size, count, generator)
        )


def _enough(sizes: Iterable[int], batch_size: int, count: int) -> bool:
    """Whether ``count`` batches of distinct labels can be drawn from classes of these sizes.

    A class serves each batch at most once, so it adds at most ``min(size, count)`` images; that
    this necessary condition also suffices is the Gale-Ryser theorem for equal column sums.
    """
    return sum(min(size, count) for size in sizes) >= batch_size * count


def _draw_labels(
    sizes: dict[int, int], batch_size: int, count: int, generator: torch.Generator
) -> list[list[int]]:
    left = dict(sorted(sizes.items()))
    drawn = []
    for remaining in range(count, 0, -1):
        labels = [label for label, size in left.items() if size]
        order = [labels[i] for i in torch.randperm(len(labels), generator=generator)]
        chosen = order[:batch_size]
        after = {label: size - (label in chosen) for label, size in left.items()}
        if len(chosen) < batch_size or not _enough(after.values(), batch_size, remaining - 1):
            # A purely random draw would strand the last batches: take the fullest classes, which
            # keeps them possible. The sort is stable, so ties stay in random order.
            chosen = sorted(order, key=lambda label: -left[label])[:batch_size]
            after = {label: size - (label in chosen) for label, size in left.items()}
        left = after
        drawn.append(chosen)
    return drawn
