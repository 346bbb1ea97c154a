"""Images with labels, and the client batches drawn from them.

Pixels are floats in [0, 1] everywhere outside an attack's search space. Three sources look alike
from outside: class folders of PNG or JPEG files, the IDX files of the MNIST family, and the
embedded sample of Fashion-MNIST. Files are listed at once but decoded only when asked for.
"""

import gzip
import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from gradinv.errors import ConfigError, DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
EMBEDDED = "fashion_mnist_test"
_IDX_IMAGES, _IDX_LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_MODES = {1: "L", 3: "RGB"}
_SMALLEST = 8


@dataclass(frozen=True, eq=False)
class ClientBatch:
    """What one client trains on in one step, and what an attack must not see.

    Args:
        images: pixels in [0, 1].
        labels: class numbers, long.
        ids: the index of each image in its :class:`ImageSet`; empty when it comes from none.

    Raises:
        DataError: lengths differ, or a pixel lies outside [0, 1].
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


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size, decoded when asked for.

    Args:
        name: what a report calls the set.
        classes: class names; a label is an index into them. A class may have no image.
        labels: one class number for each image.
        channels: 1 or 3.
        image_size: height and width in pixels.
    """

    name: str
    classes: tuple[str, ...]
    labels: Int[Tensor, " image"] = field(repr=False)
    channels: int
    image_size: int
    _decode: Callable[[int], np.ndarray] = field(repr=False)

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
            DataError: a file cannot be decoded, or an index lies outside the set.
        """
        chosen = [int(index) for index in indices]
        outside = [index for index in chosen if not 0 <= index < len(self)]
        if outside:
            raise DataError(
                f"expected indices from 0 to {len(self) - 1} in {self.name}, got {outside[0]}; "
                "choose images that the set has"
            )
        decoded = "_everything" in self.__dict__  # for training a prior
        pixels = self._everything[chosen] if decoded else self._stack(chosen)
        return pixels.float() / 255

    def all_images_uint8(self) -> UInt8[Tensor, "image channel height width"]:
        """Decodes every image, once; later calls return the same tensor.

        Raises:
            DataError: a file cannot be decoded.
        """
        return self._everything

    @cached_property
    def _everything(self) -> Tensor:
        return self._stack(range(len(self)))

    def _stack(self, indices: Sequence[int]) -> Tensor:
        pixels = torch.empty(len(indices), *self.image_shape, dtype=torch.uint8)
        for row, index in zip(pixels.numpy(), indices, strict=True):
            row[...] = self._decode(index)
        return pixels

    def batch(self, indices: Sequence[int]) -> ClientBatch:
        """Returns the images with these indices as a client's batch.

        Raises:
            DataError: see :meth:`images`.
        """
        chosen = [int(index) for index in indices]
        return ClientBatch(self.images(chosen), self.labels[chosen], tuple(chosen))

    def batches(self, *, batch_size: int, count: int, seed: int) -> tuple[ClientBatch, ...]:
        """Draws disjoint batches.

        Labels are distinct within a batch where the set has at least ``batch_size`` classes with
        images, as in the threat model of Jeon et al. 2021 (section 4); otherwise they may repeat.
        The same seed gives the same first batches whatever ``count`` is, unless classes run out.

        Raises:
            ConfigError: a size or count below 1.
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
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(self), generator=generator)
        pools: dict[int, list[int]] = {}
        for index, label in zip(shuffled.tolist(), self.labels[shuffled].tolist(), strict=True):
            pools.setdefault(label, []).append(index)
        if len(pools) < batch_size:
            drawn = shuffled[: batch_size * count].view(count, batch_size).tolist()
            return tuple(self.batch(chosen) for chosen in drawn)
        sizes = {label: len(pool) for label, pool in pools.items()}
        if not _enough(sizes.values(), batch_size, count):
            most = max(n for n in range(count) if _enough(sizes.values(), batch_size, n))
            raise DataError(
                f"expected images for {count} batches of {batch_size} distinct labels, got enough "
                f"for {most} in {self.name}; add images to its small classes, or ask for at most "
                f"{most} batches"
            )
        return tuple(
            self.batch([pools[label].pop() for label in labels])
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


def load_images(
    path: Path | str | None, *, image_size: int = 32, channels: int | None = None
) -> ImageSet:
    """Opens a set of labelled images.

    Args:
        path: ``None`` for the embedded sample of Fashion-MNIST's test images; a folder with one
            folder of PNG, JPEG, WebP or BMP files for each class; or an IDX file
            ``*-images-idx3-ubyte[.gz]`` with its labels file beside it.
        image_size: height and width of the images in pixels. The shorter side is resized (mean
            over the covered area when smaller, bicubic when larger) and the middle cut out;
            28x28 images are padded with zeros to 32x32 instead.
        channels: 1 (grey) or 3; default 3 for folders, 1 for IDX files and the embedded sample.

    Raises:
        ConfigError: an image size or number of channels without meaning.
        DataError: nothing there, no images, a file that is no image, or a broken IDX file.
    """
    if image_size < _SMALLEST:
        raise ConfigError(
            f"expected an image size of at least {_SMALLEST} pixels, got {image_size}; raise it"
        )
    if channels not in (None, *_MODES):
        raise ConfigError(f"expected 1 or 3 channels, got {channels}; choose one of them")
    if path is None:
        return _embedded(image_size, channels or 1)
    path = Path(path)
    if path.is_dir():
        return _folder(path, image_size, channels or 3)
    if path.is_file() and path.name.removesuffix(".gz").endswith(_IDX_IMAGES):
        return _idx(path, image_size, channels or 1)
    got = f"the file {path}" if path.is_file() else f"nothing at {path}"
    raise DataError(
        f"expected a folder with one folder of images for each class, or a *-{_IDX_IMAGES}[.gz] "
        f"file, got {got}; check the path"
    )


def _folder(path: Path, image_size: int, channels: int) -> ImageSet:
    entries = _visible(path)
    idx = [e.name for e in entries if e.name.removesuffix(".gz").endswith(_IDX_IMAGES)]
    if idx:
        raise DataError(
            f"expected class folders or one IDX file, got the folder {path} of IDX files; "
            f"give {' or '.join(str(path / name) for name in idx)}"
        )
    loose = [entry for entry in entries if not entry.is_dir()]
    if loose:
        raise DataError(
            f"expected only class folders in {path}, got the file {loose[0].name}; "
            "put each image into a folder named after its class and other files elsewhere"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(entries):
        for file in _visible(folder):
            if file.is_dir():
                raise DataError(
                    f"expected images in the class folder {folder}, got the folder {file.name}; "
                    f"give a folder with one level of class folders, such as {folder}"
                )
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                raise DataError(
                    f"expected images ({' '.join(IMAGE_SUFFIXES)}) in {folder}, got {file}; "
                    "move it elsewhere"
                )
            files.append(file)
            labels.append(label)
    if not files:
        raise DataError(
            f"expected a folder of images for each class in {path}, got no image; check the path"
        )
    return ImageSet(
        name=path.resolve().name,
        classes=tuple(entry.name for entry in entries),
        labels=torch.tensor(labels),
        channels=channels,
        image_size=image_size,
        _decode=lambda index: _decode_file(files[index], image_size, channels),
    )


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"expected a readable folder at {folder}, got '{error.strerror or error}'; "
            "check its permissions"
        ) from error


def _decode_file(path: Path, image_size: int, channels: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and huge pictures; it raises where it cannot decode.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                # JPEG decodes photographs at a fraction of their size for free; twice the target
                # leaves the quality to the resize below.
                image.draft(_MODES[channels], (2 * image_size, 2 * image_size))
                return _fit(ImageOps.exif_transpose(image), image_size, channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"expected an image at {path}, got '{error}'; repair or remove the file"
        ) from error


def _fit(image: Image.Image, image_size: int, channels: int) -> np.ndarray:
    """Returns uint8 (channel, height, width): resized, cut to the middle, in the right mode."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip all but the darkest 1/256 to white.
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    image = image.convert(_MODES[channels])
    width, height = image.size
    if (width, height) != (image_size, image_size):
        scale = image_size / min(width, height)
        size = (max(image_size, round(width * scale)), max(image_size, round(height * scale)))
        kind = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
        if size != image.size:
            image = image.resize(size, kind)
        left, top = (size[0] - image_size) // 2, (size[1] - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _from_array(pixels: np.ndarray, image_size: int, channels: int) -> np.ndarray:
    """Returns uint8 (channel, height, width) of one grey image (height, width)."""
    if pixels.shape == (28, 28) and image_size == 32:
        grey = np.pad(pixels, 2)[None]
    else:
        grey = _fit(Image.fromarray(pixels), image_size, 1)
    return np.broadcast_to(grey, (channels, *grey.shape[1:]))


def _embedded(image_size: int, channels: int) -> ImageSet:
    assets = resources.files("gradinv") / "assets"
    about = json.loads((assets / f"{EMBEDDED}.json").read_text())
    with (assets / f"{EMBEDDED}.png").open("rb") as file, Image.open(file) as image:
        sheet = np.asarray(image.convert("L"))
    tile, columns = about["tile"], about["columns"]

    def decode(index: int) -> np.ndarray:
        top, left = (tile * place for place in divmod(index, columns))
        return _from_array(sheet[top : top + tile, left : left + tile], image_size, channels)

    return ImageSet(
        name="Fashion-MNIST test (embedded sample)",
        classes=tuple(about["classes"]),
        labels=torch.tensor(about["labels"]),
        channels=channels,
        image_size=image_size,
        _decode=decode,
    )


def _idx(path: Path, image_size: int, channels: int) -> ImageSet:
    pixels = _read_idx(path, dimensions=3)
    stem = path.name.removesuffix(".gz").removesuffix(_IDX_IMAGES) + _IDX_LABELS
    beside = [path.with_name(stem), path.with_name(f"{stem}.gz")]
    found = [file for file in beside if file.is_file()]
    if not found:
        raise DataError(
            f"expected labels beside {path}, got neither {stem} nor {stem}.gz; put them there"
        )
    labels = _read_idx(found[0], dimensions=1)
    if len(labels) != len(pixels) or not len(labels):
        raise DataError(
            f"expected one label for each image, got {len(pixels)} images in {path} and "
            f"{len(labels)} labels in {found[0]}; take both files from one set"
        )
    return ImageSet(
        name=path.name.removesuffix(".gz"),
        classes=tuple(str(label) for label in range(int(labels.max()) + 1)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        channels=channels,
        image_size=image_size,
        _decode=lambda index: _from_array(pixels[index], image_size, channels),
    )


def _read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """Reads unsigned bytes in the IDX format of LeCun's MNIST page."""
    expected = f"expected an IDX file of bytes in {dimensions} dimensions at {path}"
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise DataError(f"{expected}, got '{error}'; fetch the file again") from error
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{expected}, got another kind of file; check the path")
    shape = [int(size) for size in np.frombuffer(content[4:head], ">u4")]
    if len(content) - head != math.prod(shape):
        raise DataError(
            f"{expected}, got {len(content) - head} bytes where its head says {math.prod(shape)}; "
            "fetch the file again"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
