"""Where images come from: class folders, IDX files, the embedded sample."""

import gzip
import json
import math
import warnings
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from gradinv.data.images import ImageSet
from gradinv.errors import ConfigError, DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
EMBEDDED = "fashion_mnist_test"
_IDX_IMAGES, _IDX_LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_MODES = {1: "L", 3: "RGB"}
_SMALLEST = 8


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
