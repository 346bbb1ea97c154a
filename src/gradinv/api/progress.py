"""What runs and how long it will take, on standard error.

A terminal or a notebook shows bars, for an audit one for each running cell and one for all;
elsewhere a command prints a line every ten seconds, so that a log stays readable.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars

from gradinv.audit.cell import Beat
from gradinv.audit.plan import Cell
from gradinv.audit.runner import Monitor
from gradinv.report.text import print_line
from gradinv.report.words import duration

LINE_SECONDS = 10.0

Progress = Callable[[float, str], None] | bool | None
"""How a caller wants to hear of progress: a function of the fraction done and a line of text, or
False for not at all; None for bars where they can be shown."""

# Below that a cell's own pace is not known well enough to foretell its end.
_LEAST_FRACTION = 0.02


class TimeLeft:
    """Foretells the end from the fractions of all cells.

    A cell that runs is expected to keep its pace, a cell that waits to take as long as the others
    of its attack (or as all others, if it is the first of its attack).

    Args:
        attacks: cell -> its attack, for the cells still to be computed.
        finished: how many more cells were finished by an earlier run.
        workers: how many cells are computed at a time.
    """

    def __init__(self, attacks: Mapping[str, str], *, finished: int, workers: int) -> None:
        self.attacks = dict(attacks)
        self.finished = finished
        self.workers = max(1, workers)
        self.fractions = dict.fromkeys(attacks, 0.0)
        self.seconds = dict.fromkeys(attacks, 0.0)

    def beat(self, slug: str, fraction: float, seconds: float) -> None:
        """Takes note of how far a cell is, and of the seconds spent on it."""
        self.fractions[slug] = fraction
        self.seconds[slug] = seconds

    def finish(self, slug: str) -> None:
        """Takes note of a cell that is finished."""
        self.fractions[slug] = 1.0

    @property
    def fraction(self) -> float:
        """The part of all cells that is done, 0 to 1."""
        cells = len(self.attacks) + self.finished
        return (sum(self.fractions.values()) + self.finished) / cells if cells else 1.0

    def left(self) -> float | None:
        """Returns the seconds left, or None as long as nothing is known."""
        whole = {
            slug: self.seconds[slug] / fraction
            for slug, fraction in self.fractions.items()
            if fraction >= _LEAST_FRACTION and self.seconds[slug] > 0
        }
        if not whole:
            return None
        everything = sum(whole.values()) / len(whole)
        remaining = []
        for slug, attack in self.attacks.items():
            alike = [seconds for other, seconds in whole.items() if self.attacks[other] == attack]
            expected = whole.get(slug) or (sum(alike) / len(alike) if alike else everything)
            remaining.append((1 - self.fractions[slug]) * expected)
        return max(*remaining, sum(remaining) / self.workers)


def left_words(seconds: float | None) -> str:
    """Returns ``about 3 min 20 s left``."""
    return "time left unknown" if seconds is None else f"about {duration(seconds)} left"


def shows_bars(console: Console) -> bool:
    """Whether bars can move there: on a terminal, or in a notebook that has the widgets for it."""
    widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal or widgets


def new_bars(console: Console) -> Bars:
    """Returns bars with a text on both sides, for a terminal."""
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
        transient=True,
        disable=not shows_bars(console),
    )


class WorkProgress:
    """Shows how far one long piece of work is; the bar is there inside ``with``.

    Args:
        what: what the work is called.
        console: where to; standard error by default.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        what: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self.console = console or Console(stderr=True)
        self.clock = clock
        self.bars = new_bars(self.console)
        self.task = self.bars.add_task(what, total=1.0, detail="")
        # The first line comes at once, so that a log shows the pace from the start.
        self.printed = -math.inf

    def __enter__(self) -> "WorkProgress":
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def advance(self, fraction: float, detail: str, *, at_once: bool = False) -> None:
        """Says that ``fraction`` of the work is done; a line of it now and then, or at once."""
        self.bars.update(self.task, completed=fraction, detail=detail)
        due = at_once or self.clock() - self.printed >= LINE_SECONDS
        if not shows_bars(self.console) and due:
            self.printed = self.clock()
            self.say(f"{self.what} {fraction:.0%}, {detail}")

    def say(self, line: str) -> None:
        """Prints one line."""
        print_line(self.console, f"gradinv: {line}")


def cell_words(cell: Cell) -> str:
    """Returns ``gi-z/w · sparsify:0.95 · batch 0``."""
    return f"{cell.attack} · {cell.defense} · batch {cell.batch}"


def beat_words(beat: Beat, between: str) -> str:
    """Returns ``z 120/400, cost 0.013``."""
    cost = "" if beat.cost is None else f"{between}cost {beat.cost:.3g}"
    return f"{beat.stage} {beat.step}/{beat.steps}{cost}"


class AuditProgress(Monitor):
    """Shows an audit's progress; use it inside :meth:`shown`.

    Args:
        console: where to; standard error by default.
        clock: seconds that only grow.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(stderr=True)
        self.clock = clock
        self.bars = new_bars(self.console)
        self.tasks: dict[str, TaskID] = {}
        self.cells: dict[str, Cell] = {}
        self.running: dict[str, Beat] = {}
        self.time = TimeLeft({}, finished=0, workers=1)
        self.overall: TaskID | None = None
        self.done = 0
        self.printed = clock()

    @contextmanager
    def shown(self) -> Iterator["AuditProgress"]:
        """Shows the bars inside the block and takes them away after it."""
        with self.bars:
            yield self

    def start(self, cells: Sequence[Cell], finished: Sequence[Cell], workers: int) -> None:
        """Says what there is to do."""
        left = [cell for cell in cells if cell not in finished]
        self.cells = {cell.slug: cell for cell in cells}
        self.done = len(finished)
        self.time = TimeLeft(
            {cell.slug: cell.attack for cell in left}, finished=len(finished), workers=workers
        )
        attacks = " ".join(dict.fromkeys(cell.attack for cell in cells))
        continued = f", {len(finished)} of them finished before" if finished else ""
        processes = f"{workers} processes" if workers > 1 else "1 process"
        self._print(f"{_count(len(cells), 'attack run')} ({attacks}){continued}; {processes}")
        self.overall = self.bars.add_task("all", total=1.0, detail=left_words(None))
        self._refresh()

    def note(self, line: str) -> None:
        """Prints it."""
        self._print(line)

    def beat(self, beat: Beat) -> None:
        """Moves the cell's bar."""
        self.time.beat(beat.slug, beat.fraction, beat.seconds)
        self.running[beat.slug] = beat
        if beat.slug not in self.tasks:
            description = cell_words(self.cells[beat.slug])
            self.tasks[beat.slug] = self.bars.add_task(description, total=1.0, detail="")
        detail = beat_words(beat, " · ")
        self.bars.update(self.tasks[beat.slug], completed=beat.fraction, detail=detail)
        self._refresh()

    def finish(self, cell: Cell) -> None:
        """Takes the cell's bar away."""
        self.done += 1
        self.time.finish(cell.slug)
        self.running.pop(cell.slug, None)
        task = self.tasks.pop(cell.slug, None)
        if task is not None:
            self.bars.remove_task(task)
        self._print(f"finished {cell_words(cell)} ({self.done} of {len(self.cells)})")
        self._refresh()

    def tick(self) -> None:
        """Keeps the clock going while nothing else is heard."""
        self._refresh()

    def stopping(self) -> None:
        """Says that Ctrl-C was heard."""
        self._print("stopping: saving checkpoints (Ctrl-C again leaves at once)")

    def _refresh(self) -> None:
        left = left_words(self.time.left())
        if self.overall is not None:
            self.bars.update(self.overall, completed=self.time.fraction, detail=left)
        if not shows_bars(self.console) and self.clock() - self.printed >= LINE_SECONDS:
            running = "; ".join(
                f"{cell_words(self.cells[slug])} {beat.fraction:.0%}"
                for slug, beat in self.running.items()
            )
            self._print(
                f"{self.time.fraction:.0%}, {left}, {self.done} of {len(self.cells)} finished"
                + (f" | {running}" if running else "")
            )

    def _print(self, line: str) -> None:
        self.printed = self.clock()
        # Wrapping would break lines in logs, and brackets in a name are no markup.
        self.console.print(
            f"gradinv: {line}", highlight=False, markup=False, soft_wrap=True, style="dim"
        )


class Told(Monitor):
    """Tells a function how far an audit is.

    Args:
        tell: called with the fraction done, 0 to 1, and a line of text.
    """

    def __init__(self, tell: Callable[[float, str], None]) -> None:
        self.tell = tell
        self.time = TimeLeft({}, finished=0, workers=1)

    def start(self, cells: Sequence[Cell], finished: Sequence[Cell], workers: int) -> None:
        """Says that it begins."""
        attacks = {cell.slug: cell.attack for cell in cells if cell not in finished}
        self.time = TimeLeft(attacks, finished=len(finished), workers=workers)
        self.tell(self.time.fraction, f"{_count(len(cells), 'attack run')}")

    def note(self, line: str) -> None:
        """Says it."""
        self.tell(self.time.fraction, line)

    def beat(self, beat: Beat) -> None:
        """Says how far it is."""
        self.time.beat(beat.slug, beat.fraction, beat.seconds)
        detail = f"{beat.slug}: {beat_words(beat, ', ')}"
        self.tell(self.time.fraction, f"{detail}, {left_words(self.time.left())}")

    def finish(self, cell: Cell) -> None:
        """Says that a cell is finished."""
        self.time.finish(cell.slug)
        self.tell(self.time.fraction, f"finished {cell_words(cell)}")


@contextmanager
def monitor_of(progress: Progress) -> Iterator[Monitor]:
    """Gives what hears about an audit's progress, as the caller wants it."""
    if callable(progress):
        yield Told(progress)
        return
    shown = AuditProgress()
    if progress is False or (progress is None and not shows_bars(shown.console)):
        yield Monitor()
        return
    with shown.shown():
        yield shown


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
