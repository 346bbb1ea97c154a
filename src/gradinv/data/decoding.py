"""One image file: its pixels as bytes, and what it says about itself.

Integers are scaled by the depth that their file declares, floats in [0, 1] by 1. What cannot be
mapped to pixels without a guess is refused, never shown too dark.
"""

import os
import stat
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gradinv.errors import DataError, printable

MODES = {1: "L", 3: "RGB"}
# What is opened, and the endings that such a file has. Others stay closed: some decoders of Pillow
# start programs (EPS) or read whatever one likes to hand them.
FORMATS = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "WEBP": (".webp",),
    "BMP": (".bmp",), "GIF": (), "TIFF": (),
}  # fmt: skip
_OPENED = tuple(form for form in FORMATS if form != "MPO")  # found by the decoder of JPEG
# What Pillow raises for a file that it cannot decode; an unidentified one is an OSError.
_REFUSALS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
# A set of 16-bit images with no value above this holds 12 bits or fewer, and would look black.
DARK = 4095
LISTED = 20
"""Files that one message names before it counts the others."""
_SMALLEST_SIDE = 4
_FLAT = 3  # of 255: a picture with less contrast shows nothing


class BrokenImageError(DataError):
    """One file that is no image, or none whose pixels could be told.

    Args:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"expected an image at {shown(path)}, got '{reason}'; repair or remove the file"
        )
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """What an image file says about itself before its pixels are decoded.

    Attributes:
        format: Pillow's name of the file's format, whatever its ending.
        mode: Pillow's name of its kind of pixels, such as RGB or I;16.
        size: width and height in pixels as stored.
        deep: whether an integer of the file has 16 bits.
        animated: whether there are more pictures than the first one.
        alpha: whether there is transparency.
    """

    format: str
    mode: str
    size: tuple[int, int]
    deep: bool
    animated: bool
    alpha: bool

    @property
    def kind(self) -> str:
        """The kind of its pixels in words, such as ``RGB 16-bit``."""
        if self.mode.startswith("I;16") or self.deep:
            return f"{'grey' if self.mode.startswith('I') else self.mode} 16-bit"
        return {"L": "grey", "F": "grey float", "P": "palette"}.get(self.mode, self.mode)


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded image.

    Attributes:
        pixels: uint8 (channel, height, width).
        header: what its file says.
        low: smallest value as stored, before it was scaled to a byte.
        high: largest value as stored; of 16-bit colour the most that the upper byte allows.
        flat: whether it shows next to nothing.
    """

    pixels: np.ndarray
    header: Header
    low: float
    high: float
    flat: bool

    @property
    def dark(self) -> bool:
        """Whether its 16-bit values are so small that it may have been made for another scale."""
        return self.header.deep and self.high <= DARK


def shown(path: Path | str) -> str:
    """Returns a path that can be printed, whatever bytes its name holds."""
    return printable(str(path))


def listed(names: Sequence[str]) -> str:
    """Returns the first names and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def all_broken(name: str, broken: Sequence[BrokenImageError]) -> DataError:
    """Returns one error for all broken files of a set."""
    if len(broken) == 1:
        return broken[0]
    files = listed([f"{shown(error.path)} ('{error.reason}')" for error in broken])
    return DataError(
        f"expected images that can be decoded in {name}, got {len(broken)} that cannot: {files}; "
        "repair or remove them ('gradinv data check' lists all that is wrong with a folder)"
    )


def read_header(path: Path) -> Header:
    """Reads what a file says about itself.

    Raises:
        BrokenImageError: it is no image, or one of a kind that is not taken.
    """
    with _opened(path) as image:
        header = _header(image)
        _require_mapped(path, header)
        return header


def decode(path: Path, image_size: int, channels: int) -> Picture:
    """Decodes one file, turned as its EXIF data say, resized and cut to the middle.

    Transparency is dropped and the colours below it are taken, as torchvision's loader does.

    Raises:
        BrokenImageError: it cannot be decoded, or its values cannot be mapped to pixels.
    """
    with _opened(path) as image:
        header = _header(image)
        _require_mapped(path, header)
        # JPEG decodes photographs at a fraction of their size for free; twice the target
        # leaves the quality to the resize below.
        image.draft(MODES[channels], (2 * image_size, 2 * image_size))
        ImageOps.exif_transpose(image, in_place=True)
        stored, scaled = _bytes(path, header, image)
        pixels = fit(scaled, image_size, channels)
        low, high = _range(pixels)
        flat = high - low <= _FLAT
        if flat and header.alpha:
            least, most = _range(np.asarray(image.convert("RGBA").getchannel("A")))
            if most - least > _FLAT:
                raise BrokenImageError(
                    path, "one colour whose picture is in its transparency: flatten it first"
                )
    if stored is None:
        # Pillow keeps the upper byte of 16-bit colours.
        stored = (256 * low, 256 * high + 255) if header.deep else (low, high)
    return Picture(pixels, header, *stored, flat)


def fit(image: Image.Image, image_size: int, channels: int) -> np.ndarray:
    """Returns uint8 (channel, height, width): resized, cut to the middle, in the right mode."""
    image = image.convert(MODES[channels])
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


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BrokenImageError(path, "no file")
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and huge pictures; it raises where it cannot decode.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_OPENED) as image:
                yield image
    except BrokenImageError:
        raise
    except _REFUSALS as error:
        reason = str(getattr(error, "strerror", None) or error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "no PNG, JPEG, WebP or BMP"
            if path.stat().st_size == 0:
                reason = "an empty file"
        raise BrokenImageError(path, reason) from error


def _header(image: Image.Image) -> Header:
    form = image.format or ""
    stored = form in {"PNG", "TIFF"} and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", ())
    )
    return Header(
        format=form,
        mode=image.mode,
        size=image.size,
        # Older versions of Pillow have mode I for 16-bit PNG.
        deep=stored or image.mode.startswith("I;16") or (form == "PNG" and image.mode == "I"),
        # A camera's JPEG with a preview behind the picture is no animation.
        animated=form != "MPO" and bool(getattr(image, "is_animated", False)),
        alpha=image.has_transparency_data,
    )


def _require_mapped(path: Path, header: Header) -> None:
    """Refuses what has no honest way to pixels."""
    if header.mode == "I" and not header.deep:
        raise BrokenImageError(path, "signed or 32-bit integers: save them as 8 or 16 bits")
    if min(header.size) < _SMALLEST_SIDE:
        width, height = header.size
        raise BrokenImageError(path, f"{width}x{height} pixels, too few for a picture")


def _bytes(
    path: Path, header: Header, image: Image.Image
) -> tuple[tuple[float, float] | None, Image.Image]:
    """Returns the range of what is not stored as bytes, and the image in bytes."""
    if not (header.mode.startswith("I") or header.mode == "F"):
        return None, image
    values = np.asarray(image)
    low, high = _range(values)
    if header.mode == "F":
        if not (low >= 0 and high <= 1):  # NaN fails both comparisons
            raise BrokenImageError(
                path, f"floats from {low:.4g} to {high:.4g}: divide them so that they lie in [0, 1]"
            )
        return (low, high), Image.fromarray((values * 255).round().astype(np.uint8))
    # Pillow's own conversion would clip all but the darkest 1/256 to white.
    return (low, high), Image.fromarray((values / 257).clip(0, 255).astype(np.uint8))


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())
