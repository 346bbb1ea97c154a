"""A folder of class folders: which files it holds, and all that is wrong with how they lie."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradinv.data.decoding import (
    DARK,
    BrokenImageError,
    decode,
    listed,
    read_header,
    shown,
)
from gradinv.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
IDX_IMAGES = "images-idx3-ubyte"

# What systems leave in folders beside what begins with a dot, in small letters.
_LEFT_BEHIND = frozenset({
    "__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "@eadir",
    "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found",
    "__pycache__",
})  # fmt: skip
_ZONE = ":zone.identifier"  # where Windows keeps from where a file was fetched


@dataclass(frozen=True)
class Listing:
    """What a folder of class folders holds.

    Attributes:
        root: the folder.
        classes: names of the class folders, sorted; their numbers are the labels.
        files: of the images, class by class, sorted.
        labels: class number of each file.
        ignored: what systems left behind, relative to the root.
        problems: a sentence for each kind of thing that must not be there.
    """

    root: Path
    classes: tuple[str, ...] = ()
    files: tuple[Path, ...] = field(default=(), repr=False)
    labels: tuple[int, ...] = field(default=(), repr=False)
    ignored: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a report calls the set."""
        return shown(self.root.resolve().name)

    def require_sound(self) -> None:
        """Raises one error for all problems.

        Raises:
            DataError: there are some.
        """
        if self.problems:
            raise DataError("; besides, ".join(self.problems))


def list_folder(root: Path) -> Listing:
    """Looks at every name in a folder of class folders, and at no file's content.

    Raises:
        DataError: the folder itself cannot be read.
    """
    ignored: list[str] = []
    entries = _entries(root, root, ignored)
    problems = []
    idx = [e.name for e in entries if e.name.removesuffix(".gz").endswith(IDX_IMAGES)]
    if idx:
        problems.append(
            f"expected class folders or one IDX file, got the folder {root} of IDX files; "
            f"give {' or '.join(str(root / name) for name in idx)}"
        )
        return Listing(root, problems=tuple(problems))
    loose = [shown(entry.name) for entry in entries if not entry.is_dir()]
    if loose:
        problems.append(
            f"expected only class folders in {root}, got the {_files(loose)}; "
            "put each image into a folder named after its class and other files elsewhere"
        )
    folders = [entry for entry in entries if entry.is_dir()]
    unprintable = [shown(f.name) for f in folders if shown(f.name) != f.name]
    if unprintable:
        problems.append(
            f"expected class folders with names in UTF-8 in {root}, got {listed(unprintable)}; "
            "rename them"
        )
    files: list[Path] = []
    labels: list[int] = []
    nested: list[Path] = []
    foreign: list[Path] = []
    for label, folder in enumerate(folders):
        try:
            inside = _entries(folder, root, ignored)
        except DataError as error:
            problems.append(str(error))
            continue
        for file in inside:
            if file.is_dir():
                nested.append(file)
            elif file.suffix.lower() not in IMAGE_SUFFIXES:
                foreign.append(file)
            else:
                files.append(file)
                labels.append(label)
    problems += _inside(nested, foreign)
    if not files and not problems:
        problems.append(
            f"expected a folder of images for each class in {root}, got no image; check the path"
        )
    return Listing(
        root,
        tuple(folder.name for folder in folders),
        tuple(files),
        tuple(labels),
        tuple(ignored),
        tuple(problems),
    )


def _inside(nested: Sequence[Path], foreign: Sequence[Path]) -> list[str]:
    """Returns what is wrong within the class folders."""
    problems = []
    if nested:
        parents = list(dict.fromkeys(shown(path.parent) for path in nested))
        word = "folder" if len(nested) == 1 else "folders"
        problems.append(
            f"expected images in the class folder{'s' * (len(parents) > 1)} {listed(parents)}, got "
            f"the {word} {listed([shown(path.name) for path in nested])}; give a folder with one "
            f"level of class folders, such as {parents[0]}"
        )
    if foreign:
        parents = list(dict.fromkeys(shown(path.parent) for path in foreign))
        problems.append(
            f"expected images ({' '.join(IMAGE_SUFFIXES)}) in {listed(parents)}, got "
            f"{listed([shown(path) for path in foreign])}; move "
            f"{'it' if len(foreign) == 1 else 'them'} elsewhere"
        )
    return problems


def same_names(listing: Listing) -> list[str]:
    """Returns the groups of names that some systems take for one, as a phrase each."""
    names = [Path(name) for name in listing.classes]
    names += [file.relative_to(listing.root) for file in listing.files]
    groups: dict[str, list[str]] = {}
    for name in names:
        key = unicodedata.normalize("NFC", shown(name)).casefold()
        groups.setdefault(key, []).append(shown(name))
    return [" and ".join(group) for group in groups.values() if len(group) > 1]


def _files(names: Sequence[str]) -> str:
    return f"{'file' if len(names) == 1 else 'files'} {listed(names)}"


def _entries(folder: Path, root: Path, ignored: list[str]) -> list[Path]:
    """Returns what lies in a folder, sorted, without what systems leave behind."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"expected a readable folder at {shown(folder)}, got '{error.strerror or error}'; "
            "check its permissions"
        ) from error
    kept = []
    for entry in entries:
        name = entry.name.lower()
        if name.startswith(".") or name in _LEFT_BEHIND or name.endswith(_ZONE):
            ignored.append(shown(entry.relative_to(root)))
        else:
            kept.append(entry)
    return kept


class FolderDecoder:
    """Decodes the files of a folder, whose 16-bit images share one scale.

    Args:
        listing: the folder.
        image_size: height and width of the images in pixels.
        channels: 1 or 3.
    """

    def __init__(self, listing: Listing, image_size: int, channels: int) -> None:
        self.listing = listing
        self.image_size = image_size
        self.channels = channels
        self._bright = False

    def __call__(self, index: int) -> np.ndarray:
        """Returns uint8 (channel, height, width).

        Raises:
            DataError: the file cannot be decoded, or no 16-bit image of the folder has a value
                that would not look black.
        """
        picture = decode(self.listing.files[index], self.image_size, self.channels)
        if picture.dark and not self._bright:
            self._look_for_a_bright_one()
        return picture.pixels

    def _look_for_a_bright_one(self) -> None:
        """Goes through the 16-bit images until one has a value above 12 bits."""
        highest = 0.0
        for file in self.listing.files:
            try:
                if not read_header(file).deep:
                    continue
                picture = decode(file, self.image_size, self.channels)
            except BrokenImageError:
                continue  # said where it is drawn
            if not picture.dark:
                self._bright = True
                return
            highest = max(highest, picture.high)
        raise DataError(too_dark(self.listing.name, highest))


def too_dark(name: str, highest: float) -> str:
    """Returns what is wrong with 16-bit images that have no value above ``highest``."""
    bits = next(bits for bits in (8, 10, 12) if highest < 2**bits)
    return (
        f"expected 16-bit images that use their range in {name}, got no value above {highest:.0f} "
        f"of 65535 (at most {DARK}, as of {bits}-bit values), which would look nearly black; "
        f"multiply them by {2 ** (16 - bits)}, or save them with 8 bits"
    )
