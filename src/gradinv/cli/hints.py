"""What the options of several commands share: choices, and how ``--help`` shows a default."""

from typing import Any, Literal

from tyro.conf import arg

Device = Literal["auto", "cpu", "cuda"]
RevealBn = Literal["none", "running", "exact"]
Mode = Literal["eval", "train"]


def hint(default: str, metavar: str) -> Any:
    """Returns how ``--help`` shows an option whose default is worked out later."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def required(metavar: str) -> Any:
    """Returns how ``--help`` shows what must be given."""
    return arg(metavar=metavar)
