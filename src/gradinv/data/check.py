"""A whole folder of images looked at once: what it holds, and everything that is wrong with it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradinv.data.decoding import (
    FORMATS,
    LISTED,
    BrokenImageError,
    Header,
    Picture,
    all_broken,
    decode,
    read_header,
    shown,
)
from gradinv.data.folder import Listing, list_folder, same_names, too_dark
from gradinv.data.images import ImageSet
from gradinv.data.loading import require_shape
from gradinv.errors import DataError

_FOURTEEN_BITS = 2**14 - 1


@dataclass(frozen=True)
class Finding:
    """One thing to know about a folder.

    Attributes:
        text: a sentence without its full stop.
        files: which files, relative to the folder; empty where it is about the folder itself.
    """

    text: str
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = len(self.files) - LISTED
        names = "; ".join(self.files[:LISTED]) + (f"; and {more} more" if more > 0 else "")
        return f"{self.text}: {names}" if self.files else self.text


@dataclass(frozen=True)
class FolderCheck:
    """What a folder of class folders holds.

    Attributes:
        name: of the folder.
        images: number of files with an image's ending.
        classes: class name -> number of its files.
        sizes: ``widthxheight`` as stored -> number of images.
        kinds: kind of pixels, such as ``RGB`` or ``grey 16-bit`` -> number of images.
        ranges: kind of pixels -> smallest and largest value as stored.
        problems: what keeps the folder from being used.
        notes: what to know about it.
    """

    name: str
    images: int
    classes: dict[str, int]
    sizes: dict[str, int]
    kinds: dict[str, int]
    ranges: dict[str, tuple[float, float]]
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns everything as JSON holds it."""
        return asdict(self)


def check_folder(
    path: Path | str,
    *,
    image_size: int = 32,
    channels: int = 3,
    callback: Callable[[int, int], None] | None = None,
) -> FolderCheck:
    """Decodes every image of a folder and tells everything that is wrong at once.

    Args:
        path: a folder with one folder of images for each class.
        image_size: what the images will be resized to; smaller ones are noted.
        channels: 1 or 3.
        callback: called after every file with the number done and of all.

    Raises:
        ConfigError: an image size or number of channels without meaning.
        DataError: no folder there, or one that cannot be read.
    """
    require_shape(image_size, channels)
    path = Path(path)
    if not path.is_dir():
        raise DataError(
            f"expected a folder with one folder of images for each class, got "
            f"{'a file' if path.is_file() else 'nothing'} at {shown(path)}; check the path"
        )
    listing = list_folder(path)
    seen = _Seen(listing, image_size)
    for number, file in enumerate(listing.files):
        try:
            seen.add(number, decode(file, image_size, channels))
        except BrokenImageError as error:
            seen.broken.append((number, error.reason))
        if callback is not None:
            callback(number + 1, len(listing.files))
    per_class = Counter(listing.labels)
    return FolderCheck(
        name=listing.name,
        images=len(listing.files),
        classes={shown(name): per_class[label] for label, name in enumerate(listing.classes)},
        sizes={f"{width}x{height}": n for (width, height), n in seen.sizes.most_common()},
        kinds=dict(seen.kinds.most_common()),
        ranges=seen.ranges,
        problems=tuple(seen.problems()),
        notes=tuple(seen.notes()),
    )


def require_sound(images: ImageSet, drawn: Iterable[int]) -> None:
    """Looks at the head of every file of a set, and decodes the images that will be drawn.

    So a command that begins says at once all that it would stumble over later. Nothing is done for
    a set whose images have no files of their own; it was read whole when it was loaded.

    Args:
        images: the set.
        drawn: indices of the images that will be used; repeats are decoded once.

    Raises:
        DataError: naming all broken files.
    """
    broken: dict[Path, BrokenImageError] = {}
    for file in images.files:
        try:
            read_header(file)
        except BrokenImageError as error:
            broken[file] = error
    chosen = sorted(set(drawn)) if images.files else []
    for index in chosen:
        try:
            if images.files[index] not in broken:
                images.images([index])
        except BrokenImageError as error:
            broken[error.path] = error
    if broken:
        raise all_broken(images.name, list(broken.values()))


class _Seen:
    """Gathers what a pass over the files finds."""

    def __init__(self, listing: Listing, image_size: int) -> None:
        self.listing = listing
        self.image_size = image_size
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.kinds: Counter[str] = Counter()
        self.ranges: dict[str, tuple[float, float]] = {}
        self.broken: list[tuple[int, str]] = []
        self.deep: list[int] = []
        self.brightest = 0.0
        self.alike: dict[bytes, list[int]] = {}
        self.marked: dict[str, list[int]] = {}

    def add(self, number: int, picture: Picture) -> None:
        """Notes one decoded image."""
        header = picture.header
        self.sizes[header.size] += 1
        self.kinds[header.kind] += 1
        low, high = self.ranges.get(header.kind, (picture.low, picture.high))
        self.ranges[header.kind] = min(low, picture.low), max(high, picture.high)
        if header.deep:
            self.deep.append(number)
            self.brightest = max(self.brightest, picture.high)
        if not picture.flat:  # one colour is no sign of the same picture
            digest = hashlib.blake2b(picture.pixels.tobytes(), digest_size=16).digest()
            self.alike.setdefault(digest, []).append(number)
        for mark in self._marks(number, header, picture):
            self.marked.setdefault(mark, []).append(number)

    def _marks(self, number: int, header: Header, picture: Picture) -> list[str]:
        """Returns what is odd about one image, in words that hold for all that share it."""
        marks = []
        if picture.flat:
            marks.append("with hardly any contrast")
        if min(header.size) < self.image_size:
            marks.append(f"smaller than {self.image_size} pixels, which are enlarged")
        if header.alpha:
            marks.append("with transparency, which is dropped: the colours below it are taken")
        if header.animated:
            marks.append("with several pictures, of which the first is taken")
        if header.mode == "CMYK":
            marks.append("in CMYK, whose colours are converted without a profile")
        if not self.listing.files[number].name.lower().endswith(FORMATS[header.format]):
            marks.append(f"of another format than their ending says ({header.format})")
        return marks

    def _names(self, numbers: Sequence[int]) -> tuple[str, ...]:
        return tuple(shown(self.listing.files[n].relative_to(self.listing.root)) for n in numbers)

    def problems(self) -> list[Finding]:
        """Returns what keeps the folder from being used."""
        found = [Finding(problem) for problem in self.listing.problems]
        if self.broken:
            names = self._names([number for number, _ in self.broken])
            reasons = [reason for _, reason in self.broken]
            found.append(
                Finding(
                    f"expected images that can be decoded, got {len(names)} that cannot; "
                    "repair or remove them",
                    tuple(f"{name} ({why})" for name, why in zip(names, reasons, strict=True)),
                )
            )
        if self.deep and self._bits() <= 12:
            found.append(
                Finding(too_dark(self.listing.name, self.brightest), self._names(self.deep))
            )
        return found

    def _bits(self) -> int:
        return int(self.brightest).bit_length()

    def notes(self) -> list[Finding]:
        """Returns what to know about the folder."""
        found = []
        if self.listing.ignored:
            found.append(Finding("Left behind by a system and ignored", self.listing.ignored))
        empty = sorted(set(range(len(self.listing.classes))) - set(self.listing.labels))
        if empty:
            names = tuple(shown(self.listing.classes[label]) for label in empty)
            found.append(Finding("Classes without images, which keep their number", names))
        if self.deep and self.brightest <= _FOURTEEN_BITS and self._bits() > 12:
            found.append(
                Finding(
                    f"16-bit images without a value above {self.brightest:.0f} of 65535, as of "
                    "14-bit values: they are a quarter as bright as they could be",
                    self._names(self.deep),
                )
            )
        found += self._duplicates()
        if same := same_names(self.listing):
            found.append(
                Finding("Names that differ in case or accents alone, one to some systems",
                        tuple(same))
            )  # fmt: skip
        found += [
            Finding(f"Images {mark}", self._names(numbers))
            for mark, numbers in sorted(self.marked.items())
        ]
        return found

    def _duplicates(self) -> list[Finding]:
        """Returns the images that are there more than once, within a class and across classes."""
        within, across = [], []
        for numbers in self.alike.values():
            if len(numbers) > 1:
                one_class = len({self.listing.labels[n] for n in numbers}) == 1
                (within if one_class else across).append(" = ".join(self._names(numbers)))
        texts = {
            "The same picture more than once in a class; an audit cannot tell which was found":
                within,
            "The same picture in several classes": across,
        }  # fmt: skip
        return [Finding(text, tuple(groups)) for text, groups in texts.items() if groups]
