"""Command lines that differ from another in some options."""

from collections.abc import Sequence


def changed(command: Sequence[str], options: Sequence[str]) -> list[str]:
    """Returns the command with ``options`` in place of its own of the same names."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        if word.startswith("--") and word in options:
            next(words)
        else:
            kept.append(word)
    return [*kept, *options]
