"""Ctrl-C: heard at once, acted upon where nothing is lost.

A step of an attack cannot be left in the middle and gone on from, so the signal is a flag that is
asked after every step. Before the first question there is nothing to save, and it ends the work
where it is: decoding a folder of images or solving a closed form can take minutes.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_HEAR_SECONDS = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class LeftAtOnce(KeyboardInterrupt):
    """Ctrl-C while there was nothing to save."""


class Interruption:
    """Whether Ctrl-C was pressed, for whoever asks after every step."""

    def __init__(self) -> None:
        # A plain list: the handler can run anywhere in the main thread, where a lock could be held.
        self._seen: list[int] = []
        self._asked = False

    def __call__(self) -> bool:
        """Returns whether it was; from now on the first Ctrl-C waits for the next question."""
        self._asked = True
        return self.pressed

    @property
    def pressed(self) -> bool:
        """Whether it was, without a promise to ask again."""
        return bool(self._seen)

    def leave_at_once(self) -> None:
        """Says that there is nothing to save until the next question."""
        self._asked = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Handles a signal.

        Raises:
            LeftAtOnce: nobody has asked.
            KeyboardInterrupt: it is the second one.
        """
        if not self._asked:
            raise LeftAtOnce
        if self._seen:
            raise KeyboardInterrupt
        self._seen.append(number)


@contextmanager
def interruption(heard: Callable[[], None] | None = None) -> Iterator[Interruption]:
    """Turns the first Ctrl-C or SIGTERM into a flag, and a second one into KeyboardInterrupt.

    Before anybody asks, the first one raises :class:`LeftAtOnce`. Outside the main thread signals
    cannot be caught; the flag then stays down.

    Args:
        heard: called once when the flag goes up, from another thread: the step that runs may take
            long.
    """
    found = Interruption()
    over = threading.Event()

    def listen() -> None:
        while not (over.wait(_HEAR_SECONDS) or found.pressed):
            pass
        if found.pressed and heard is not None:
            heard()

    listener = threading.Thread(target=listen, daemon=True)
    with _handler(found.handle):
        listener.start()
        try:
            yield found
        finally:
            over.set()
            listener.join()


@contextmanager
def signals_held() -> Iterator[None]:
    """Holds signals back while processes start, which would die of them before they can say no.

    Processes inherit it, until :func:`ignore_signals`. What comes meanwhile is heard after the
    block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where nothing of it is inherited
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Makes a worker deaf to Ctrl-C: its parent tells it to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextmanager
def _handler(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
