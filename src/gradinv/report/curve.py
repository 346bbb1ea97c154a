"""One curve as an SVG file, for what is watched while it runs."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from gradinv.errors import ConfigError
from gradinv.files import write_text
from gradinv.report import words
from gradinv.report.charts import MAX_POINTS
from gradinv.report.html import environment
from gradinv.report.words import Number

WIDTH, HEIGHT = 480.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 468.0, 36.0, 216.0
_TICKS = 5


def write_curve(
    path: Path,
    points: Sequence[tuple[Number, Number]],
    *,
    title: str,
    across: str,
    up: str,
    logarithmic: bool = False,
) -> None:
    """Writes a curve through ``points``, which is markup that loads nothing.

    Args:
        path: of the SVG file.
        points: (x, y) in the order of x; those that are not finite, or on a logarithmic axis not
            positive, are left out. Many are drawn as the means of equal stretches.
        title: above it.
        across: what x is.
        up: what y is.
        logarithmic: for y.

    Raises:
        ConfigError: no point can be drawn.
        StorageError: the file cannot be written.
    """
    drawn = _thinned([
        (float(x), math.log10(y) if logarithmic else float(y))
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not logarithmic)
    ])  # fmt: skip
    if not drawn:
        raise ConfigError("expected at least one point to draw, got none; draw a curve with values")
    left, right = _limits([x for x, _ in drawn])
    low, high = _limits([y for _, y in drawn])

    def place_x(x: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (x - left) / (right - left)

    def place_y(y: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (y - low) / (high - low)

    picture = environment().get_template("curve.svg.j2").render(
        width=WIDTH, height=HEIGHT, left=_LEFT, right=_RIGHT, top=_TOP, bottom=_BOTTOM,
        title=title, across=across, up=up,
        points=[(place_x(x), place_y(y)) for x, y in drawn],
        x_ticks=[(place_x(x), f"{x:.4g}") for x in _spread(left, right)],
        y_ticks=[
            (place_y(y), f"{10**y if logarithmic else y:.3g}") for y in _spread(low, high)
        ],
    )  # fmt: skip
    write_text(path, words.clean(picture))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _spread(low: float, high: float) -> list[float]:
    return [low + (high - low) * index / (_TICKS - 1) for index in range(_TICKS)]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most MAX_POINTS points, the means of equal stretches."""
    if len(points) <= MAX_POINTS:
        return points
    edges = [round(index * len(points) / MAX_POINTS) for index in range(MAX_POINTS + 1)]
    parts = [points[start:end] for start, end in itertools.pairwise(edges)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    ]
