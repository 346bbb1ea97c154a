"""Runs the cells of an audit side by side, and stops so that it can be continued.

Every cell is computed with one thread. Two processes of one thread each do more work than one of
two threads, and floating-point sums depend on the number of threads: this way a result does not
depend on the number of cores. That holds even where there are fewer cells than cores; the cores
left over stay idle.

Workers are spawned, so a script that calls :func:`run_audit` needs the usual
``if __name__ == "__main__":``.
"""

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradinv.attacks.preflight import Preflight
from gradinv.audit.cell import Beat, check_runnable
from gradinv.audit.inputs import load_inputs
from gradinv.audit.interruption import (
    Interruption,
    LeftAtOnce,
    ignore_signals,
    interruption,
    signals_held,
)
from gradinv.audit.limits import processes_that_fit
from gradinv.audit.plan import AuditConfig, Cell, cells_of
from gradinv.audit.searching import compute
from gradinv.audit.setup import Setup, prepare
from gradinv.audit.store import RunStore, Store
from gradinv.audit.summary import assemble, preflight_notes
from gradinv.environment import cores
from gradinv.errors import GradinvError

_POLL_SECONDS = 0.2
# Long enough for a worker without parent to end its step and write its checkpoint.
_ORPHAN_SECONDS = 30.0


class AuditStopped(KeyboardInterrupt):
    """The audit was stopped by Ctrl-C; what is unfinished lies in checkpoints.

    Attributes:
        folder: the run folder; the same audit with it as ``out`` continues. None where nothing
            was written, so that nothing is left.
    """

    def __init__(self, folder: Path | None) -> None:
        left = "nothing was kept; give out= to be able to continue"
        if folder is not None:
            left = f"{folder} holds what is needed to continue"
        super().__init__(f"stopped; {left}")
        self.folder = folder


class Monitor:
    """Hears what an audit does; this one does nothing with it."""

    def start(self, cells: Sequence[Cell], finished: Sequence[Cell], workers: int) -> None:
        """Called once, before the first step.

        Args:
            cells: all of them.
            finished: those that an earlier run finished.
            workers: how many are computed at a time.
        """

    def note(self, line: str) -> None:
        """Called for what was found before the first step, such as a network that rounds."""

    def beat(self, beat: Beat) -> None:
        """Called a few times a second for each running cell."""

    def finish(self, cell: Cell) -> None:
        """Called when a cell is stored."""

    def tick(self) -> None:
        """Called a few times a second where cells run in other processes."""

    def stopping(self) -> None:
        """Called once after Ctrl-C, from another thread: the steps that run are ended first."""


def run_audit(
    config: AuditConfig, folder: Path, *, monitor: Monitor | None = None
) -> dict[str, Any]:
    """Runs an audit, or what is left of it, and writes ``audit.json``.

    Everything that can be checked is checked before the first attack starts, and nothing is
    written before that. Ctrl-C (or SIGTERM) leaves checkpoints; a second one leaves at once.

    Args:
        config: what to do.
        folder: the run folder; new, or one in which the same audit was stopped.
        monitor: hears about progress.

    Returns:
        The content of ``audit.json``.

    Raises:
        AuditStopped: by Ctrl-C.
        GradinvError: wrong settings or inputs, another audit in the folder, a full disk.
    """
    with one_thread():
        setup = prepare(config)
        found = check_runnable(setup)
    return run_cells(setup, RunStore(folder), found=found, monitor=monitor)


def run_cells(
    setup: Setup,
    store: Store,
    *,
    found: Mapping[str, Preflight],
    worker_setup: Setup | None = None,
    monitor: Monitor | None = None,
) -> dict[str, Any]:
    """Runs the cells of an audit that was prepared and checked, or what is left of them.

    Args:
        setup: the audit.
        store: where its cells go.
        found: what :func:`~gradinv.audit.cell.check_runnable` found, by defence.
        worker_setup: what worker processes get; they prepare the settings of ``setup`` again when
            None, which needs everything in files.
        monitor: hears about progress.

    Returns:
        The content of ``audit.json``.

    Raises:
        AuditStopped: by Ctrl-C.
        GradinvError: another audit in the folder, a full disk.
    """
    monitor = monitor or Monitor()
    config = setup.config
    store.claim(setup.identity())
    cells = cells_of(config)
    finished = [cell for cell in cells if store.is_finished(cell)]
    for cell in finished:
        store.require_whole(cell)
    left = sorted(
        (cell for cell in cells if cell not in finished),
        # Long ones first: a long one that starts last keeps one core busy and the others idle.
        key=setup.work,
        reverse=True,
    )
    workers = worker_count(config, setup.device, len(left), most=processes_that_fit(setup))
    monitor.start(cells, finished, workers)
    for line in preflight_notes(found):
        monitor.note(line)
    with interruption(monitor.stopping) as interrupted:
        if workers > 1 and isinstance(store, RunStore):
            given = worker_setup or config
            _run_in_processes(given, left, store, workers, interrupted, monitor)
        else:
            _run_here(setup, left, store, interrupted, monitor)
        if not all(store.is_finished(cell) for cell in cells):
            raise AuditStopped(store.folder)
    with one_thread():
        rows = {cell: store.load_row(cell) for cell in cells}
        audit = assemble(setup, rows, found, store.load_pictures)
    store.write_audit(audit)
    return audit


def worker_count(
    config: AuditConfig, device: torch.device, cells: int, *, most: int | float = math.inf
) -> int:
    """Returns how many processes to use: one per usable core on a CPU, one on CUDA.

    Never more than there are cells; at least 1, which means this process.

    Args:
        config: which may ask for a number.
        device: where to compute.
        cells: how many are left.
        most: how many fit into memory; of those that were asked for that was checked before.
    """
    usual = min(cores(), most) if device.type == "cpu" else 1
    return int(max(1, min(config.workers or usual, cells)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_here(
    setup: Setup,
    cells: Sequence[Cell],
    store: Store,
    interrupted: Interruption,
    monitor: Monitor,
) -> None:
    with one_thread():
        for cell in cells:
            if interrupted():
                return
            # Until its first step, which a closed form never takes; a search for candidates has
            # nothing to save between its trials either, and what follows them can take long.
            interrupted.leave_at_once()
            stop = (lambda: interrupted.pressed) if cell.is_candidates else interrupted
            try:
                if not compute(setup, cell, store, stop=stop, report=monitor.beat):
                    return
                monitor.finish(cell)
            except LeftAtOnce:
                return


def _run_in_processes(
    given: AuditConfig | Setup,
    cells: Sequence[Cell],
    store: RunStore,
    workers: int,
    interrupted: Interruption,
    monitor: Monitor,
) -> None:
    interrupted()  # from now on there is something to save
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    beats = context.SimpleQueue()
    unsaved = context.RawArray("b", len(cells))
    others = set(multiprocessing.active_children())

    def hear() -> None:
        while not beats.empty():
            monitor.beat(beats.get())

    def kill() -> None:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()

    executor = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(given, store.folder, stop, beats, unsaved),
    )
    try:
        with signals_held():
            futures = {
                executor.submit(_work, cell, number): number for number, cell in enumerate(cells)
            }
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            if interrupted() and not stop.is_set():
                stop.set()
            hear()
            for future in done:
                if future.result():
                    monitor.finish(cells[futures[future]])
            monitor.tick()
            if stop.is_set() and not any(unsaved[futures[future]] for future in pending):
                # They load, or solve a closed form, or search candidates: nothing is lost with it.
                kill()
                return
    except BrokenProcessPool as error:
        raise GradinvError(
            "expected the worker processes to live until their cells are finished, got one that "
            "was killed (too little memory?); run the same command again with "
            f"--out {store.folder} and a smaller --workers to continue"
        ) from error
    except KeyboardInterrupt:
        kill()  # the second Ctrl-C, which waits for nobody's step
        raise
    finally:
        # After an error in one cell the others stop too, and leave checkpoints.
        stop.set()
        executor.shutdown(cancel_futures=True)
        beats.close()


_WORKER: dict[str, Any] = {}


class _Unsaved:
    """A worker's word to its parent that killing it in this cell would lose something.

    Args:
        flags: one for each cell, read by the parent once it has said that all must stop.
        number: of the cell.
        stop: whether the parent has.
    """

    def __init__(self, flags: Any, number: int, stop: Any) -> None:
        self.flags, self.number, self.stop = flags, number, stop

    def __call__(self) -> bool:
        """Says so; returns whether to stop, which was asked only after it was said."""
        self.flags[self.number] = 1
        return self.stop.is_set()

    def before_writing(self) -> None:
        """Says so, unless the parent may have found that nothing was to be saved already.

        Raises:
            LeftAtOnce: it may, and kills in the middle of a file.
        """
        nothing = not self.flags[self.number]
        if self() and nothing:
            raise LeftAtOnce


class _WorkerStore(RunStore):
    """The store of a worker that is killed where it has nothing to save."""

    def __init__(self, folder: Path, unsaved: _Unsaved) -> None:
        super().__init__(folder)
        self.unsaved = unsaved

    def save_cell(
        self,
        cell: Cell,
        row: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        header: Mapping[str, Any],
    ) -> None:
        """Stores a finished cell.

        Raises:
            LeftAtOnce: too late.
            StorageError: the folder cannot be written to, or the disk is full.
        """
        self.unsaved.before_writing()
        super().save_cell(cell, row, tensors, header)


def _start_worker(
    given: AuditConfig | Setup, folder: Path, stop: Any, beats: Any, unsaved: Any
) -> None:
    """Runs once in every worker: one thread, deaf to Ctrl-C (the parent tells it to stop)."""
    ignore_signals()
    torch.set_num_threads(1)
    _WORKER.update(given=given, folder=folder, stop=stop, beats=beats, unsaved=unsaved)
    threading.Thread(target=_follow_parent, args=(stop,), daemon=True).start()


def _work(cell: Cell, number: int) -> bool:
    """Computes one cell in a worker; returns whether it is finished."""
    stop = _WORKER["stop"]
    if stop.is_set():
        return False
    if "setup" not in _WORKER:
        given = _WORKER["given"]
        if not isinstance(given, Setup):
            given = prepare(given, load_inputs(given, look=False))
        _WORKER["setup"] = given
    unsaved = _Unsaved(_WORKER["unsaved"], number, stop)
    try:
        return compute(
            _WORKER["setup"],
            cell,
            _WorkerStore(_WORKER["folder"], unsaved),
            stop=stop.is_set if cell.is_candidates else unsaved,
            report=_WORKER["beats"].put,
        )
    except LeftAtOnce:
        return False


def _follow_parent(stop: Any) -> None:
    """Ends a worker whose parent was killed, with a checkpoint; it would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    stop.set()
    time.sleep(_ORPHAN_SECONDS)
    os._exit(1)
