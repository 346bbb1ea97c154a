"""``gradinv watch``: leakage over the rounds that a server watches."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradinv.api.progress import AuditProgress, WorkProgress
from gradinv.audit.interruption import Interruption
from gradinv.audit.runner import Monitor
from gradinv.audit.watching import RECORD, Watcher, watch
from gradinv.cli.learn_prior import show_learning, show_simulation
from gradinv.cli.listening import listening
from gradinv.cli.options import Watch
from gradinv.cli.stopping import Stopped, run_folder, stop_if
from gradinv.federated import Federation
from gradinv.metalearning import LearningConfig, LearningProgress
from gradinv.priors.dcgan import untrained_dcgan
from gradinv.report.curve import write_curve
from gradinv.report.text import print_line, print_paragraph, report_console
from gradinv.report.words import interval, number, percent


class _Display:
    """Shows every part of the work, and leaves it on Ctrl-C; an audit leaves by itself."""

    def __init__(self, console: Console, folder: Path) -> None:
        self.console = console
        self.folder = str(folder)
        self.interrupted: Interruption | None = None

    @contextmanager
    def _listening(self, shown: WorkProgress) -> Iterator[None]:
        with listening(shown, self.folder) as self.interrupted:
            yield

    def _check(self) -> None:
        if self.interrupted is not None:
            stop_if(self.interrupted, self.folder)

    @contextmanager
    def simulating(self) -> Iterator[Callable[[int, int], None]]:
        with WorkProgress("federation", self.console) as shown, self._listening(shown):

            def callback(done: int, total: int) -> None:
                show_simulation(shown, done, total)
                self._check()

            yield callback

    def opened(self) -> None:
        self._check()

    @contextmanager
    def learning(self, rounds: int) -> Iterator[Callable[[LearningProgress], None]]:
        what = f"after round {rounds}: learning"
        with WorkProgress(what, self.console) as shown, self._listening(shown):

            def callback(progress: LearningProgress) -> None:
                show_learning(shown, progress)
                self._check()

            yield callback

    def auditing(self) -> AbstractContextManager[Monitor]:
        return AuditProgress(self.console).shown()


def watch_rounds(options: Watch) -> None:
    """Learns after every round, audits with what was learned, and prints how leakage grows.

    Raises:
        Stopped: by Ctrl-C; the folder holds what is needed to continue.
        GradinvError: wrong settings or inputs, another run in the folder, a full disk.
    """
    config = options.config
    folder = run_folder(config.out)
    console = Console(stderr=True)
    watcher = Watcher(
        options.watched,
        Federation(
            clients=options.clients,
            rounds=options.rounds_watched,
            batch_size=config.batch_size,
            lr=options.server_lr,
            seed=config.seed,
        ),
        LearningConfig(steps=options.steps, seed=config.seed),
    )
    try:
        found = watch(
            config,
            watcher,
            lambda shape: untrained_dcgan(
                shape, options.base_channels, options.latent, seed=config.seed
            ),
            folder,
            monitor=_Display(console, folder),
        )
    except KeyboardInterrupt as stopped:
        # Between the parts too: every one of them is gone on from, or begins again.
        raise Stopped("--out", str(folder)) from stopped
    out = report_console()
    out.print(_table(found["rounds"]))
    for note in found["notes"]:
        print_paragraph(out, note)
    first = found["rounds"][0]["attack"]
    write_curve(
        folder / "leakage.svg",
        [(row["rounds"], row["psnr_mean"]) for row in found["rounds"] if row["attack"] == first],
        title=f"What {first} rebuilds the longer the server watches",
        across="rounds watched",
        up="mean PSNR (dB)",
    )
    print_line(out, f"{folder / RECORD} and {folder / 'leakage.svg'}")


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("rounds watched", "updates", "attack", "PSNR dB", "95 % CI", "identified"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    for row in rows:
        table.add_row(
            str(row["rounds"]),
            str(row["updates"]),
            Text(row["attack"]),
            number(row["psnr_mean"]),
            interval(row["psnr_ci95"]),
            percent(row["identified"]),
        )
    return table
