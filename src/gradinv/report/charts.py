"""The geometry of the report's charts; the SVG itself is in ``templates/charts.html.j2``.

Nothing here draws: points in the chart's own units go in as numbers, so that the template, which
escapes every string, is the only place where markup is made.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradinv.report.pictures import CellPictures
from gradinv.report.words import Number, is_number

MAX_POINTS = 120
"""Points drawn per stage and restart; longer histories are drawn as medians of equal stretches."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Tick:
    """A label at a place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Band:
    """The part of a cost chart that belongs to one stage, from ``left`` to ``right``."""

    name: str
    left: float
    right: float


@dataclass(frozen=True)
class Frame:
    """The axes of a cost chart: steps to the right, the logarithm of the cost upwards.

    Attributes:
        steps: at the right edge.
        low: log10 of the cost at the bottom edge.
        high: log10 of the cost at the top edge.
        width: of the view box; the other numbers are the view box's height and the edges of the
            plotting area.
    """

    steps: int
    low: float
    high: float
    width: float = 340.0
    height: float = 196.0
    left: float = 42.0
    right: float = 332.0
    top: float = 24.0
    bottom: float = 170.0

    def x(self, step: Number) -> float:
        """Returns where a step lies."""
        return self.left + (self.right - self.left) * step / self.steps

    def y(self, cost: Number) -> float:
        """Returns where a positive cost lies."""
        part = (math.log10(cost) - self.low) / (self.high - self.low)
        return self.bottom - (self.bottom - self.top) * part


@dataclass(frozen=True)
class CostChart:
    """Cost against steps, every restart of every batch of one attack.

    Attributes:
        frame: the axes.
        bands: the stages, from left to right.
        x_ticks: labels of the steps.
        y_ticks: labels of the cost.
        thin: SVG point lists of the restarts.
        thick: those of the restart of each batch that the attack returned.
        restarts: the largest number of restarts.
        lost: how many restarts ended in a cost that is not finite.
        thinned: whether points are medians of several steps.
        truths: heights of the cost of the true images, one for each batch that has one; those
            below the axes lie on the bottom edge.
    """

    frame: Frame
    bands: tuple[Band, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    thin: tuple[str, ...]
    thick: tuple[str, ...]
    restarts: int
    lost: int
    thinned: bool
    truths: tuple[float, ...]


@dataclass(frozen=True)
class Strip:
    """One row of a strip plot: the images as dots, their mean, and its interval.

    All values are percentages of the width, from the smallest to the largest value of the chart.
    """

    dots: tuple[float, ...]
    mean: float | None
    interval: tuple[float, float] | None


def cost_chart(
    cells: Sequence[CellPictures],
    kept: Sequence[int | None] | None = None,
    truths: Sequence[Any] = (),
) -> CostChart | None:
    """Lays out the cost curves of the cells (batches) of one attack under one defence.

    Each stage has a band as wide as its longest run; values that are zero, negative or not finite
    leave a gap, as a logarithmic axis has no place for them.

    Args:
        cells: the batches.
        kept: the restart that each attack returned; the one of smallest last cost where absent.
        truths: the matching cost of the true images of each batch; None where it was not asked.

    Returns:
        None where there is nothing to draw.
    """
    kept = [None] * len(cells) if kept is None else kept
    runs = [
        [stage.cost.detach().cpu().numpy().astype(np.float64) for stage in cell.stages]
        for cell in cells
    ]
    names = [stage.name for stage in max((c.stages for c in cells), key=len, default=())]
    lengths = [
        max(len(costs[index]) for costs in runs if len(costs) > index)
        for index in range(len(names))
    ]
    drawn = [cost[np.isfinite(cost) & (cost > 0)] for costs in runs for cost in costs]
    values = np.concatenate(drawn) if drawn else np.empty(0)
    if values.size == 0:
        return None
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    frame = Frame(sum(lengths), *_log_limits(float(values.min()), float(values.max())))
    thin: list[str] = []
    thick: list[str] = []
    for costs, choice in zip(runs, kept, strict=True):
        best = _kept_restart(costs, choice)
        for start, cost in zip(starts, costs, strict=False):
            # A stage may hold more restarts than the last one, which goes by other numbers then.
            chosen = best if cost.shape[1] == costs[-1].shape[1] else _lowest_end(cost)
            for restart in range(cost.shape[1]):
                lines = _lines(*_thinned(cost[:, restart]), start, frame)
                (thick if restart == chosen else thin).extend(lines)
    return CostChart(
        frame=frame,
        bands=tuple(
            Band(name, frame.x(start), frame.x(start + length))
            for name, start, length in zip(names, starts, lengths, strict=True)
        ),
        x_ticks=tuple(Tick(frame.x(at), str(at)) for at in _step_ticks(starts, lengths)),
        y_ticks=tuple(
            Tick(frame.y(10.0**power), label) for power, label in _log_ticks(frame.low, frame.high)
        ),
        thin=tuple(thin),
        thick=tuple(thick),
        restarts=max(cost.shape[1] for costs in runs for cost in costs),
        lost=sum(_lost(cost) for costs in runs for cost in costs),
        thinned=max(lengths) > MAX_POINTS,
        truths=tuple(_height(truth, frame) for truth in truths if is_number(truth)),
    )


def _height(cost: Number, frame: Frame) -> float:
    """Returns where a cost lies, held inside the axes: that of the truth can be 0."""
    return min(frame.bottom, max(frame.top, frame.y(cost))) if cost > 0 else frame.bottom


def strips(
    rows: Sequence[tuple[Sequence[Number], Number | None, tuple[Number, Number] | None]],
) -> tuple[list[Strip], int, int] | None:
    """Lays out one strip plot per row (values, mean, interval) on one common axis.

    Returns:
        The strips and the ends of the axis, or None where no row has a value.
    """
    everything = [v for values, mean, ends in rows for v in (*values, *(ends or ()), mean)
                  if v is not None and math.isfinite(v)]  # fmt: skip
    if not everything:
        return None
    low, high = math.floor(min(everything)), math.ceil(max(everything))
    if high == low:
        low, high = low - 1, high + 1

    def place(value: Number) -> float:
        return 3 + 94 * (value - low) / (high - low)

    laid_out = [
        Strip(
            dots=tuple(place(value) for value in values if math.isfinite(value)),
            mean=None if mean is None else place(mean),
            interval=None if ends is None else (place(ends[0]), place(ends[1])),
        )
        for values, mean, ends in rows
    ]
    return laid_out, low, high


def _kept_restart(costs: Sequence[np.ndarray], choice: int | None) -> int | None:
    if not costs:
        return None
    if choice is not None and 0 <= choice < costs[-1].shape[1]:
        return choice
    return _lowest_end(costs[-1])


def _lowest_end(cost: np.ndarray) -> int | None:
    ends = np.where(np.isfinite(cost[-1]), cost[-1], np.inf) if len(cost) else np.empty(0)
    return int(ends.argmin()) if ends.size else None


def _lost(cost: np.ndarray) -> int:
    """Returns how many restarts began with a finite cost and ended without."""
    return int((np.isfinite(cost[0]) & ~np.isfinite(cost[-1])).sum()) if len(cost) else 0


def _thinned(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most MAX_POINTS (steps done, cost); medians, so that one spike is not a curve."""
    steps = np.arange(1, len(curve) + 1, dtype=np.float64)
    if len(curve) <= MAX_POINTS:
        return steps, curve
    edges = np.linspace(0, len(curve), MAX_POINTS + 1).round().astype(int)
    middles, medians = [], []
    for start, end in itertools.pairwise(edges):
        part = curve[start:end]
        finite = part[np.isfinite(part)]
        middles.append(steps[start:end].mean())
        medians.append(np.median(finite) if finite.size else np.nan)
    return np.asarray(middles), np.asarray(medians)


def _lines(steps: np.ndarray, costs: np.ndarray, start: int, frame: Frame) -> list[str]:
    """Returns SVG point lists, a new one after every gap; a lone point is there twice, as a dot."""
    lines: list[list[str]] = [[]]
    for step, cost in zip(steps, costs, strict=True):
        if math.isfinite(cost) and cost > 0:
            lines[-1].append(f"{frame.x(start + step):.1f},{frame.y(cost):.1f}")
        elif lines[-1]:
            lines.append([])
    return [" ".join(line if len(line) > 1 else line * 2) for line in lines if line]


def _log_limits(low: float, high: float) -> tuple[float, float]:
    bottom, top = math.log10(low), math.log10(high)
    margin = max(0.04 * (top - bottom), 0.02)
    return bottom - margin, top + margin


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Returns (exponent, label) for whole powers of ten, or for 1-2-5 where these are too few."""
    powers = list(range(math.ceil(low), math.floor(high) + 1))
    if len(powers) >= 3:
        step = math.ceil(len(powers) / 5)
        return [
            (float(power), "10" + str(power).translate(_SUPERSCRIPTS)) for power in powers[::step]
        ]
    for factors in ((1, 2, 5), range(1, 10), [f / 10 for f in range(10, 100)]):
        ticks = [
            (math.log10(factor) + power, f"{factor * 10.0**power:.3g}")
            for power in range(math.floor(low), math.floor(high) + 1)
            for factor in factors
            if low <= math.log10(factor) + power <= high
        ]
        apart = ticks[:1]
        for tick in ticks[1:]:
            if tick[0] - apart[-1][0] >= 0.12 * (high - low):
                apart.append(tick)
        if len(apart) >= 2:
            return apart
    return [((low + high) / 2, f"{10 ** ((low + high) / 2):.3g}")]


def _step_ticks(starts: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Returns where stages begin and the end, without those too near to be read."""
    total = starts[-1] + lengths[-1]
    ticks = [0]
    for at in (*starts[1:], total):
        if at - ticks[-1] >= 0.12 * total:
            ticks.append(at)
        elif at == total:
            ticks[-1] = at
    if len(ticks) == 2 and total >= 2:
        ticks.insert(1, total // 2)
    return ticks
