"""The command line: ``gradinv audit|invert|observe|import|prior|data|learn-prior|...``.

Heavy modules are imported by the command that needs them, so that ``gradinv --help`` answers at
once. Exit status: 0 done, 2 wrong use or bad input (one line on standard error), 130 stopped by
Ctrl-C with everything saved that is needed to continue, 70 a fault of gradinv itself.
"""

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from gradinv import __version__
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
from gradinv.cli.prior_options import PriorShow, PriorTrain
from gradinv.cli.stopping import Stopped
from gradinv.errors import GradinvError

EXIT_DONE, EXIT_WRONG_USE, EXIT_FAULT, EXIT_STOPPED = 0, 2, 70, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
        argv: the arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: after ``--help`` (0) and after wrong usage (2).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _print_names_as_they_are(sys.stdout)
    if arguments == ["--version"]:
        print(f"gradinv {__version__}")
        return EXIT_DONE
    try:
        _run(parse(arguments), arguments)
    except GradinvError as error:
        _say(f"gradinv: error: {error}")
        return EXIT_WRONG_USE
    except Stopped as stopped:
        command = shlex.join(["gradinv", *_without(arguments, stopped.continuation[:1])])
        _say(f"gradinv: stopped; to continue: {command} {shlex.join(stopped.continuation)}")
        return EXIT_STOPPED
    except KeyboardInterrupt:
        _say("gradinv: stopped at once; the last checkpoints are kept")
        return EXIT_STOPPED
    except BrokenPipeError:
        # The reader of a pipe has left, as head does. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except Exception:
        traceback.print_exc()
        _say("gradinv: this is a fault of gradinv; please report it with the lines above")
        return EXIT_FAULT
    return EXIT_DONE


def _run(options: AnyCommand, arguments: Sequence[str]) -> None:
    match options:
        case Audit():
            from gradinv.cli.audit import audit

            audit(options)
        case Invert():
            from gradinv.cli.invert import invert_update

            invert_update(options)
        case Observe():
            from gradinv.cli.observe import observe_update

            observe_update(options)
        case Import():
            from gradinv.cli.importing import import_update

            import_update(options)
        case Prior(command=PriorTrain() as command):
            from gradinv.cli.prior import train

            train(command, _shareable(arguments))
        case Prior(command=PriorShow() as command):
            from gradinv.cli.prior import show

            show(command)
        case Data():
            from gradinv.cli.data import check

            check(options)
        case LearnPrior():
            from gradinv.cli.learn_prior import learn

            learn(options, _shareable(arguments))
        case Watch():
            from gradinv.cli.watch import watch_rounds

            watch_rounds(options)
        case Report():
            from gradinv.cli.audit import report_again

            report_again(options)


def _print_names_as_they_are(stream: object) -> None:
    """Lets a stream take names of files whose bytes are no UTF-8, as Python does in some locales.

    Others raise in the middle of a report. Standard error always takes them.
    """
    if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="surrogateescape")


def _say(line: str) -> None:
    """Prints one line, whatever the message holds."""
    print(" ".join(line.split()), file=sys.stderr)


def _without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the arguments without the options ``names`` and their values."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in names:
            skip = True
        elif argument.split("=", 1)[0] not in names:
            kept.append(argument)
    return kept


def _shareable(arguments: Sequence[str]) -> str:
    """Returns the command for a card, absolute paths cut to their last part.

    A card is published with its prior; where files lay on one machine is nobody's business.
    """
    return shlex.join(
        ["gradinv", *(Path(word).name if Path(word).is_absolute() else word for word in arguments)]
    )
