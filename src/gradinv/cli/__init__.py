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

from gradinv import __version__
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
        # In here, since Ctrl-C comes in the first half second too.
        from gradinv.cli.dispatch import run

        run(arguments)
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
