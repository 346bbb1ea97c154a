"""Times every way to compute dc/dx against double backward: ``python -m benchmarks.bench_engine``.

Double backward by ``autograd.grad(cost, images)`` is what the field's tools do. All ways of a case
are timed in turn, again and again, so that whatever else the machine does hits them alike; medians
are compared. The error is the median over several points of the search, at which float32 has the
kinks of float64; at others a ReLU next to zero has another sign, whichever way it is computed, and
dc/dx is that of another piece. The share of those is in the rows as ``flips``. Peak memory is that
of all tensors, network and update included, from building the engine to the third step, in a
process of its own for each case and way. Writes ``results/engine-cpu.json``, or ``engine-cuda`` on
a GPU.
"""

import argparse
import gc
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine_cases import CASES, PASSES, WAYS, Case, Step
from benchmarks.results import ROOT, write_results

_MEBIBYTE = 1024**2
_POINTS = 7  # of the search, at which errors are looked at
_COLUMNS = ("case and way", "ratio", "ms", "peak\nMiB", "error", "flips", "share\nof peak")


def main(arguments: list[str] | None = None) -> int:
    """Measures the chosen cases, prints a table and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--case", action="append", help="only cases whose name has this in it")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--dry-run", action="store_true", help="write no results file")
    parser.add_argument("--memory-of", nargs=2, metavar=("CASE", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.memory_of:
        index, way = options.memory_of
        print(json.dumps(peak_memory(CASES[int(index)], way, device)))
        return 0
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    peak = convolution_peak(device, clock)
    chosen = [
        case
        for case in CASES
        if not options.case or any(word in case.name for word in options.case)
    ]
    rows = []
    console = Console()
    for case in chosen:
        console.print(f"[dim]{case.name}[/dim]")
        measured = _measured(case, device, clock, options.repeats, peak)
        for row in measured:
            if not options.no_memory:
                row["peak_mib"] = _memory_in_a_process(case, row["way"], options.threads)
            console.print(
                f"  {row['way']}: {row['ratio']:.2f}x, {row['ms']:.1f} ms, error {row['error']:.1e}"
            )
        rows += measured
    console.print(_table(rows))
    if not options.dry_run:
        given = sys.argv[1:] if arguments is None else arguments
        path = write_results(
            f"engine-{device}",
            command=shlex.join(["python", "-m", "benchmarks.bench_engine", *given]),
            settings={
                "threads": options.threads,
                "repeats": options.repeats,
                "clock": options.clock,
                "convolution_peak_gflops": peak,
            },
            figures={
                f"{figure} {row['case']} | {row['way']}": row[figure]
                for row in rows
                for figure in ("ratio", "ms", "error", "flips", "peak_mib")
                if figure in row
            },
            rows=rows,
        )
        console.print(f"Written to {path.relative_to(ROOT)}")
    return 0


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _timed(work: Callable[[], Any], device: str, clock: Callable[[], float]) -> float:
    """Returns seconds."""
    _synchronize(device)
    started = clock()
    work()
    _synchronize(device)
    return clock() - started


def convolution_peak(device: str, clock: Callable[[], float]) -> float:
    """Returns the GFLOP/s of the fastest of three convolutions, forward, in float32."""
    best = 0.0
    for batch, channels, size in ((16, 64, 32), (16, 128, 16), (32, 256, 8)):
        images = torch.randn(batch, channels, size, size, device=device)
        weight = torch.randn(channels, channels, 3, 3, device=device)
        images, weight = (t.contiguous(memory_format=torch.channels_last) for t in (images, weight))

        def work(images: torch.Tensor = images, weight: torch.Tensor = weight) -> None:
            torch.nn.functional.conv2d(images, weight, padding=1)

        seconds = min(_timed(work, device, clock) for _ in range(20))
        best = max(best, 2 * images.numel() * channels * 9 / seconds / 1e9)
    return best


def forward_flops(case: Case) -> int:
    """Returns the floating-point operations of one forward pass over all restarts."""
    model, images = case.model(), case.images().flatten(0, 1)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(images)
    return counter.get_total_flops()


def _measured(
    case: Case, device: str, clock: Callable[[], float], repeats: int, peak: float
) -> list[dict[str, Any]]:
    """Returns one row for each way."""
    steps = {way: Step(case, way, device) for way in case.ways}
    errors = _errors(case, steps, device)
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(repeats):
        for way, step in steps.items():
            seconds[way].append(_timed(step, device, clock))
    plain = median(seconds["plain"])
    flops = forward_flops(case)
    return [
        {
            "case": case.name,
            "way": way,
            "ratio": plain / median(times),
            "ms": 1e3 * median(times),
            # Of all points where none has the kinks of float64: it then says what a flip costs.
            "error": median(
                [e.size for e in errors[way] if not e.flipped] or [e.size for e in errors[way]]
            ),
            "flips": sum(e.flipped for e in errors[way]) / _POINTS,
            "share_of_peak": PASSES[way] * flops / median(times) / 1e9 / peak,
        }
        for way, times in seconds.items()
    ]


class _Error(NamedTuple):
    """Relative error of dc/dx, and whether a ReLU or maximum lies elsewhere than in float64."""

    size: float
    flipped: bool


def _errors(case: Case, steps: Mapping[str, Step], device: str) -> dict[str, list[_Error]]:
    """Returns the error against float64 at every point, by way."""
    oracle = Step(case, "plain", device, torch.float64)
    errors: dict[str, list[_Error]] = {way: [] for way in steps}
    for point in reversed(range(_POINTS)):
        oracle.move_to(point)
        truth, pattern = oracle().double(), oracle.kinks()
        for way, step in steps.items():
            step.move_to(point)
            size = float((step().double() - truth).norm() / truth.norm())
            same = map(torch.equal, step.kinks(), pattern)
            errors[way].append(_Error(size, flipped=not all(same)))
    return errors


def _memory_in_a_process(case: Case, way: str, threads: int) -> float:
    """Returns the peak memory of a step in MiB, from a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.bench_engine", "--threads", str(threads)]
    command += ["--memory-of", str(CASES.index(case)), way]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def peak_memory(case: Case, way: str, device: str) -> float:
    """Returns the most MiB of tensors that the engine and three steps hold at a time."""
    if device == "cuda":
        _three_steps(case, way, device)
        return torch.cuda.max_memory_allocated() / _MEBIBYTE
    gc.collect()  # else what went before may be freed in the middle, and is taken off the peak
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _three_steps(case, way, device)
    # The profiler's public tables add sizes up; the order of allocations is in its raw events.
    kineto: Any = profiler.profiler
    events = kineto.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = accumulate(size for _, size in sorted(changes, key=itemgetter(0)))
    return max(held) / _MEBIBYTE


def _three_steps(case: Case, way: str, device: str) -> None:
    step = Step(case, way, device)
    for _ in range(3):
        step()


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="One step of an attack: dc/dx", box=SIMPLE_HEAD)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == _COLUMNS[0] else "right")
    for row in rows:
        if row["way"] == WAYS[0]:
            table.add_section()
            table.add_row(f"[bold]{row['case']}[/bold]")
        table.add_row(
            f"  {row['way']}",
            f"{row['ratio']:.2f}",
            f"{row['ms']:.1f}",
            f"{row['peak_mib']:.1f}" if "peak_mib" in row else "",
            f"{row['error']:.0e}",
            f"{100 * row['flips']:.0f} %",
            f"{100 * row['share_of_peak']:.0f} %",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
