"""Which outputs of a network stand for the classes of an image set, where it has more of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gradinv.data.decoding import listed
from gradinv.data.images import ImageSet
from gradinv.errors import ConfigError, DataError, did_you_mean

_MOST = 2**20  # a head of more is a typing error, and would fill the memory


def parse_classes(text: str) -> int | tuple[str, ...]:
    """Reads a number of outputs, or the names of all classes of a network in their order.

    Args:
        text: a whole number, the path of a file with one name on each line, or names between
            commas. A file is looked for first where the text is no number.

    Raises:
        ConfigError: none of these, a name that is empty or there twice, or fewer than 2
            or absurdly many classes.
        DataError: the file cannot be read.

    >>> parse_classes("1000")
    1000
    >>> parse_classes("cat, dog")
    ('cat', 'dog')
    """
    if text.strip().isdecimal():
        number = int(text)
        if not 2 <= number <= _MOST:
            raise ConfigError(
                f"expected --classes from 2 to {_MOST}, got {number}; give the number of outputs "
                "that the network has"
            )
        return number
    path = Path(text)
    if path.is_file():
        names = _lines(path)
    elif "," in text:
        names = [name.strip() for name in text.split(",")]
    else:
        raise ConfigError(
            "expected --classes as a whole number, a file of names or names between commas, got "
            f"{text!r}, which is no file; check the path"
        )
    if "" in names:
        raise ConfigError(
            f"expected a name for every class in --classes, got none at place {names.index('')}; "
            "an empty one would move those after it: take it out"
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"expected each class once in --classes, got {listed(repeated)} more than once; "
            "leave the repetition out"
        )
    if len(names) < 2:
        raise ConfigError(
            f"expected at least 2 classes in --classes, got {len(names)}; name all of the network's"
        )
    return tuple(names)


def _lines(path: Path) -> list[str]:
    try:
        # Some editors put a mark before the first name.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"expected a text file of class names in UTF-8 at {path}, got '{error}'; check it"
        ) from error
    return [name.strip() for name in text.rstrip().splitlines()]


def with_classes(images: ImageSet, classes: int | Sequence[str]) -> ImageSet:
    """Returns the images with the labels that a network with these classes has for them.

    Args:
        images: the set.
        classes: how many outputs the network has: the set's own classes then keep their numbers,
            0 to k - 1 in sorted order, and no image is of those after them. Or the names of all
            classes: each class of the set gets its place among them.

    Raises:
        DataError: fewer classes than the set has, or a class of the set that is not among them.
    """
    if isinstance(classes, int):
        if classes < images.num_classes:
            raise DataError(
                f"expected at least the {images.num_classes} classes of {images.name}, got "
                f"--classes {classes}; raise it, or name the classes in the network's order"
            )
        more = range(images.num_classes, classes)
        return replace(images, classes=(*images.classes, *(f"output {number}" for number in more)))
    places = {name: place for place, name in enumerate(classes)}
    unknown = [name for name in images.classes if name not in places]
    if unknown:
        raise DataError(
            f"expected classes of {images.name} that --classes names, got {listed(unknown)}; "
            f"{_hint(unknown[0], classes)}"
        )
    new = torch.tensor([places[name] for name in images.classes])
    return replace(images, classes=tuple(classes), labels=new[images.labels])


def _hint(unknown: str, classes: Sequence[str]) -> str:
    hint = did_you_mean(unknown, classes)
    # Of a thousand names nobody reads all.
    return hint if hint.startswith("did you mean") else f"rename them, or take {listed(classes)}"
