"""From the words of the command line to the command that they name.

Heavy modules are imported by the command that needs them, so that ``gradinv --help`` answers at
once.
"""

import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from gradinv.cli.options import (
    AnyCommand,
    Audit,
    Data,
    Import,
    Invert,
    LearnPrior,
    Observe,
    Prior,
    Report,
    Watch,
    parse,
)
from gradinv.cli.prior_options import PriorConvert, PriorTrain, PriorWrap


def run(arguments: Sequence[str]) -> None:
    """Runs one command.

    Args:
        arguments: without the program's name.

    Raises:
        SystemExit: after ``--help`` (0) and after wrong usage (2).
        Stopped: by Ctrl-C.
        GradinvError: wrong settings or inputs.
    """
    with _importing():
        command = _command(parse(arguments), arguments)
    command()


@contextmanager
def _importing() -> Iterator[None]:
    """Hears Ctrl-C while modules are imported.

    Some of them catch whatever is raised while they import others, and go on with half a module:
    what they raise then, or do not raise, is still that Ctrl-C.

    Raises:
        KeyboardInterrupt: it was pressed.
    """
    pressed: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    usual = signal.default_int_handler
    # Elsewhere nothing can be caught, and whoever ignores it wants that.
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is usual
    if ours:
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    except Exception:
        if not pressed:
            raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, usual)
    if pressed:
        raise KeyboardInterrupt


def _command(options: AnyCommand, arguments: Sequence[str]) -> Callable[[], None]:
    """Imports what a command needs, and returns it with its options."""
    match options:
        case Audit():
            from gradinv.cli.audit import audit

            return partial(audit, options)
        case Invert():
            from gradinv.cli.invert import invert_update

            return partial(invert_update, options)
        case Observe():
            from gradinv.cli.observe import observe_update

            return partial(observe_update, options)
        case Import():
            from gradinv.cli.importing import import_update

            return partial(import_update, options)
        case Prior():
            from gradinv.cli.prior import show, train

            if isinstance(options.command, PriorTrain):
                return partial(train, options.command, _shareable(arguments))
            if isinstance(options.command, PriorWrap | PriorConvert):
                from gradinv.cli.wrapping import convert, wrap

                if isinstance(options.command, PriorWrap):
                    return partial(wrap, options.command, _shareable(arguments))
                return partial(convert, options.command, _shareable(arguments))
            return partial(show, options.command)
        case Data():
            from gradinv.cli.data import check

            return partial(check, options)
        case LearnPrior():
            from gradinv.cli.learn_prior import learn

            return partial(learn, options, _shareable(arguments))
        case Watch():
            from gradinv.cli.watch import watch_rounds

            return partial(watch_rounds, options)
        case Report():
            from gradinv.cli.audit import report_again

            return partial(report_again, options)


def _shareable(arguments: Sequence[str]) -> str:
    """Returns the command for a card, absolute paths cut to their last part.

    A card is published with its prior; where files lay on one machine is nobody's business.
    """
    return shlex.join(
        ["gradinv", *(Path(word).name if Path(word).is_absolute() else word for word in arguments)]
    )
