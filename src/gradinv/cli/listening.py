"""How a command hears Ctrl-C while it works."""

from collections.abc import Iterator
from contextlib import contextmanager

from gradinv.api.progress import WorkProgress
from gradinv.audit.interruption import Interruption, LeftAtOnce, interruption
from gradinv.cli.stopping import Stopped


@contextmanager
def listening(shown: WorkProgress, folder: str) -> Iterator[Interruption]:
    """Hears Ctrl-C inside the block, which asks ``stop_if`` after every step.

    Args:
        shown: says that it was heard.
        folder: holds what is needed to continue.

    Raises:
        Stopped: Ctrl-C was pressed before anybody asked.
    """

    def say() -> None:
        shown.say("stopping after this step (Ctrl-C again leaves at once)")

    try:
        with interruption(say) as interrupted:
            yield interrupted
    except LeftAtOnce as left:
        raise Stopped("--out", folder) from left
