"""Numbers and names as a person reads them."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

DASH = "–"

Number = float | int
"""JSON has both, and the type checks of the tests tell them apart."""

_STAGE_WORDS = {
    "x": "pixels",
    "z": "latent code",
    "w": "generator weights",
    "zw": "code and weights",
    "xy": "pixels and labels",
    **{f"h{depth}": f"generator features, layer {depth}" for depth in range(1, 10)},
    "layers": "closed form, layer by layer",
}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a finite number (``True`` and ``False`` are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 2) -> str:
    """Returns the number with that many decimals, or a dash if it is absent or not finite.

    >>> number(17.256, 1), number(float("nan")), number(None)
    ('17.3', '–', '–')
    """
    return f"{value:.{digits}f}" if is_number(value) else DASH


def percent(value: Any) -> str:
    """Returns a fraction as a whole percentage, or a dash.

    >>> percent(0.875), percent(None)
    ('88 %', '–')
    """
    return f"{100 * value:.0f} %" if is_number(value) else DASH


def significant(value: Any, digits: int = 3) -> str:
    """Returns the number with that many significant digits, for values of any magnitude."""
    return f"{value:.{digits}g}" if is_number(value) else DASH


def interval(bounds: Any, digits: int = 2) -> str | None:
    """Returns ``16.9 to 18.2`` for a pair of finite bounds, else None."""
    if isinstance(bounds, list | tuple) and len(bounds) == 2 and all(map(is_number, bounds)):
        return f"{number(bounds[0], digits)} to {number(bounds[1], digits)}"
    return None


def duration(seconds: Any) -> str:
    """Returns seconds as ``48 s``, ``3 min 20 s`` or ``2 h 05 min``.

    >>> duration(0.42), duration(200.4), duration(7500)
    ('0.4 s', '3 min 20 s', '2 h 05 min')
    """
    if not is_number(seconds):
        return DASH
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clean(text: Any) -> str:
    """Returns text that can be written as UTF-8.

    A folder's name need not be UTF-8; Python then carries its bytes as lone surrogates, and they
    come through JSON unharmed.
    """
    return str(text).encode("utf-8", "replace").decode("utf-8")


def plain(value: Any) -> str:
    """Returns any JSON value as text: a dash for nothing, lists joined by commas."""
    if value in (None, "", []):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else DASH
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return clean(value)


def stage_words(name: str) -> str:
    """Returns what a stage searches: ``latent code`` for ``z``; nothing for an unknown name."""
    return _STAGE_WORDS.get(name, "")


def sentence_case(text: str) -> str:
    """Returns the text with its first letter in upper case and the rest untouched."""
    return text[:1].upper() + text[1:]


def of(count: Number, total: int) -> str:
    """Returns ``6 of 8``."""
    return f"{round(count)} of {total}"
