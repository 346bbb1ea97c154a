"""From the words of the command line to the command that they name.

Heavy modules are imported by the command that needs them, so that ``gradinv --help`` answers at
once.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from gradinv.cli.options import (
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


def run(arguments: Sequence[str]) -> None:
    """Runs one command.

    Args:
        arguments: without the program's name.

    Raises:
        SystemExit: after ``--help`` (0) and after wrong usage (2).
        Stopped: by Ctrl-C.
        GradinvError: wrong settings or inputs.
    """
    match parse(arguments):
        case Audit() as options:
            from gradinv.cli.audit import audit

            audit(options)
        case Invert() as options:
            from gradinv.cli.invert import invert_update

            invert_update(options)
        case Observe() as options:
            from gradinv.cli.observe import observe_update

            observe_update(options)
        case Import() as options:
            from gradinv.cli.importing import import_update

            import_update(options)
        case Prior(command=PriorTrain() as command):
            from gradinv.cli.prior import train

            train(command, _shareable(arguments))
        case Prior(command=PriorShow() as command):
            from gradinv.cli.prior import show

            show(command)
        case Data() as options:
            from gradinv.cli.data import check

            check(options)
        case LearnPrior() as options:
            from gradinv.cli.learn_prior import learn

            learn(options, _shareable(arguments))
        case Watch() as options:
            from gradinv.cli.watch import watch_rounds

            watch_rounds(options)
        case Report() as options:
            from gradinv.cli.audit import report_again

            report_again(options)


def _shareable(arguments: Sequence[str]) -> str:
    """Returns the command for a card, absolute paths cut to their last part.

    A card is published with its prior; where files lay on one machine is nobody's business.
    """
    return shlex.join(
        ["gradinv", *(Path(word).name if Path(word).is_absolute() else word for word in arguments)]
    )
