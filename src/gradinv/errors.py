"""What can be wrong with what a user hands in, one class for each kind of "no".

Every message reads ``expected ..., got ...; do ...`` and names the file, option or parameter.
The command line prints the message on one line and exits with status 2.
"""

import difflib
from collections.abc import Iterable


def printable(text: str) -> str:
    r"""Returns text with what is no character, as in a file's name of other bytes, as ``\xff``."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a pair of UTF-16, which is no byte of a name
        return text.encode("utf-8", "backslashreplace").decode()


class GradinvError(Exception):
    """Base class of every error that a user can cause and mend."""

    def __str__(self) -> str:
        """Returns the message, which can be printed whatever bytes the names in it hold."""
        return printable(super().__str__())


class DataError(GradinvError):
    """Images that are missing, unreadable or too few."""


class ModelError(GradinvError):
    """A network that cannot be built, is in the wrong mode or does not fit the data."""


class ObservationError(GradinvError):
    """An update that is malformed, not finite or made with another network."""


class PriorError(GradinvError):
    """A generator that cannot be loaded or does not fit the images."""


class AttackError(GradinvError):
    """An attack that is unknown or lacks something that it needs."""


class StorageError(GradinvError):
    """A file that cannot be read or written as what it is said to be."""


class ConfigError(GradinvError):
    """A setting that has no meaning."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``did you mean 'gi-z/w'?`` for the nearest known name, or the list of all names."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{nearest[0]}'?" if nearest else f"choose one of {', '.join(known)}"
