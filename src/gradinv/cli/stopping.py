"""How a command ends that was stopped by Ctrl-C."""

import time
from collections.abc import Callable
from pathlib import Path


class Stopped(Exception):  # noqa: N818 - no error, a way out
    """Ctrl-C, after everything was saved that is needed to continue.

    Args:
        continuation: what the same command needs to continue, such as ``--out runs/1``.
    """

    def __init__(self, *continuation: str) -> None:
        super().__init__(" ".join(continuation))
        self.continuation = continuation


def stop_if(interrupted: Callable[[], bool], folder: str) -> None:
    """Leaves a command whose folder holds what is needed to continue.

    Raises:
        Stopped: Ctrl-C was pressed.
    """
    if interrupted():
        raise Stopped("--out", folder)


def run_folder(out: str | None) -> Path:
    """Returns ``out``, or ``runs/<time>`` that does not exist yet.

    The time is local and to the second; a number follows where two runs start in one second.
    """
    if out is not None:
        return Path(out)
    first = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    folder, number = first, 2
    while folder.exists():
        folder = first.with_name(f"{first.name}-{number}")
        number += 1
    return folder
