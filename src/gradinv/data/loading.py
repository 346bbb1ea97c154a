"""Where images come from: class folders, IDX files, the embedded sample."""

import gzip
import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gradinv.data.classes import with_classes
from gradinv.data.decoding import MODES, fit
from gradinv.data.folder import IDX_IMAGES, FolderDecoder, list_folder
from gradinv.data.images import ImageSet
from gradinv.errors import ConfigError, DataError

EMBEDDED = "fashion_mnist_test"
_IDX_LABELS = "labels-idx1-ubyte"
_SMALLEST = 8


def load_images(
    path: Path | str | None,
    *,
    image_size: int = 32,
    channels: int | None = None,
    classes: int | Sequence[str] | None = None,
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
        classes: of the network, where it has more than the images: how many, or the names of all
            in their order; see :func:`~gradinv.data.classes.with_classes`.

    Raises:
        ConfigError: an image size or number of channels without meaning.
        DataError: nothing there, no images, a file that is no image, a broken IDX file, or classes
            that do not go with the images.
    """
    require_shape(image_size, channels)
    images = _open(path, image_size, channels)
    return images if classes is None else with_classes(images, classes)


def _open(path: Path | str | None, image_size: int, channels: int | None) -> ImageSet:
    if path is None:
        return _embedded(image_size, channels or 1)
    path = Path(path)
    if path.is_dir():
        return _folder(path, image_size, channels or 3)
    if path.is_file() and path.name.removesuffix(".gz").endswith(IDX_IMAGES):
        return _idx(path, image_size, channels or 1)
    got = f"the file {path}" if path.is_file() else f"nothing at {path}"
    raise DataError(
        f"expected a folder with one folder of images for each class, or a *-{IDX_IMAGES}[.gz] "
        f"file, got {got}; check the path"
    )


def require_shape(image_size: int, channels: int | None) -> None:
    """Checks the size and channels that images are to have.

    Raises:
        ConfigError: they have no meaning.
    """
    if image_size < _SMALLEST:
        raise ConfigError(
            f"expected an image size of at least {_SMALLEST} pixels, got {image_size}; raise it"
        )
    if channels not in (None, *MODES):
        raise ConfigError(f"expected 1 or 3 channels, got {channels}; choose one of them")


def _folder(path: Path, image_size: int, channels: int) -> ImageSet:
    listing = list_folder(path)
    listing.require_sound()
    return ImageSet(
        name=listing.name,
        classes=listing.classes,
        labels=torch.tensor(listing.labels),
        channels=channels,
        image_size=image_size,
        _decode=FolderDecoder(listing, image_size, channels),
        files=listing.files,
    )


def _from_array(pixels: np.ndarray, image_size: int, channels: int) -> np.ndarray:
    """Returns uint8 (channel, height, width) of one grey image (height, width)."""
    if pixels.shape == (28, 28) and image_size == 32:
        grey = np.pad(pixels, 2)[None]
    else:
        grey = fit(Image.fromarray(pixels), image_size, 1)
    return np.broadcast_to(grey, (channels, *grey.shape[1:]))


def _embedded(image_size: int, channels: int) -> ImageSet:
    assets = resources.files("gradinv") / "assets"
    about = json.loads((assets / f"{EMBEDDED}.json").read_text("utf-8"))
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
    stem = path.name.removesuffix(".gz").removesuffix(IDX_IMAGES) + _IDX_LABELS
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
