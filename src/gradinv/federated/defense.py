"""What a defence declares, and what the server reads from a chain of them.

The server knows what its clients do, so everything that it concludes from an update has to know
what is left of the gradient in it. A defence says that itself; the server's side asks for nothing
but what is said here, so one from outside the package takes part like the package's own.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

from torch import Generator, Tensor

from gradinv.errors import ConfigError

Keeps = Literal["values", "direction", "part", "signs", "estimate"]
"""What a defence leaves of a gradient, its noise of ``sigma`` apart."""


@runtime_checkable
class Defense(Protocol):
    """What a client does to its update before it leaves. A value: equal ones do the same.

    ``keeps`` decides what else there has to be:

    - ``"values"``: every entry is sent as it is; nothing else;
    - ``"direction"``: all entries times one unknown factor above 0 and at most 1; ``apply`` needs
      no generator then, so that the attacker's gradient can go through it too;
    - ``"part"``: some entries as they are, zeros in place of the others; also
      ``survivors(sent)``, where in one tensor of an update those are that were sent (bool), to be
      asked where noise covers the zeros;
    - ``"signs"``: every entry is zero or has the sign that it had; also ``expected(gradient)``,
      which an attacker puts its own gradient through, differentiably: what is sent, on average;
    - ``"estimate"``: nothing of one entry is certain; also ``expected(gradient)``.

    Noise that is not Gaussian proves less than ``sigma`` says, so it is an ``"estimate"``.
    """

    keeps: ClassVar[Keeps]

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise that is added to every entry; 0 for none."""
        ...

    @property
    def spec(self) -> str:
        """The text that names this value (:func:`gradinv.federated.parse_defense`)."""
        ...

    def apply(
        self, gradient: Mapping[str, Tensor], generator: Generator | None
    ) -> dict[str, Tensor]:
        """Returns what is sent in place of a gradient; ``generator`` is the only chance."""
        ...

    def scaled(self, factor: float) -> "Defense":
        """Returns what does the same to gradients that are ``factor`` times as long."""
        ...


_ALSO: dict[Keeps, str] = {"part": "survivors", "signs": "expected", "estimate": "expected"}


def check_defenses(defenses: Iterable[object]) -> None:
    """Checks that every defence says what it leaves, so that none is taken for another.

    Raises:
        ConfigError: one that does not.
    """
    for defense in defenses:
        name = defense.__name__ if isinstance(defense, type) else type(defense).__name__
        missing = [
            what
            for what in ("keeps", "sigma", "spec", "apply", "scaled")
            if getattr(defense, what, None) is None
        ]
        if missing:
            raise ConfigError(
                f"expected a defence that declares keeps, sigma, spec, apply and scaled, got "
                f"{name} without {', '.join(missing)}; see docs/contributing.md"
            )
        keeps, sigma = (getattr(defense, what) for what in ("keeps", "sigma"))
        if keeps not in get_args(Keeps):
            raise ConfigError(
                f"expected a defence that keeps {', '.join(get_args(Keeps))}, got {name} with "
                f"keeps={keeps!r}; choose the most that is true of it"
            )
        if not (isinstance(sigma, int | float) and math.isfinite(sigma) and sigma >= 0):
            raise ConfigError(
                f"expected a standard deviation of at least 0 as the noise of a defence, got "
                f"{name} with sigma={sigma!r}; 0 is none"
            )
        also = _ALSO.get(keeps)
        if also is not None and not callable(getattr(defense, also, None)):
            raise ConfigError(
                f"expected {also}() of a defence that keeps {keeps!r}, got {name} without it; "
                "define it (docs/contributing.md)"
            )


def spec_of(defense: object, *numbers: float) -> str:
    """Returns the spec of a defence whose class lies in a module: ``package.module:Class:0.5``.

    Args:
        defense: an instance of that class.
        numbers: the arguments that make it.
    """
    kind = type(defense)
    named = f"{kind.__module__}:{kind.__qualname__}"
    return ":".join([named, ",".join(map(plain_number, numbers))]) if numbers else named


def plain_number(value: float) -> str:
    """Returns a number as short as it can be read back, without a plus sign."""
    return repr(float(value)).removesuffix(".0").replace("e+", "e")


def noise_of(defenses: Sequence[Defense]) -> float:
    """Returns the standard deviation of all noise together, at most."""
    return math.hypot(*(defense.sigma for defense in defenses))


def changes_length(defenses: Sequence[Defense]) -> bool:
    """Returns whether an update may be an unknown part of the gradient."""
    return any(defense.keeps == "direction" for defense in defenses)


def changes_direction(defenses: Sequence[Defense]) -> bool:
    """Returns whether an update may be anything but the gradient times a factor above 0."""
    return any(
        defense.sigma > 0 or defense.keeps not in {"values", "direction"} for defense in defenses
    )


def keeps_entries(defenses: Sequence[Defense]) -> bool:
    """Returns whether every entry was sent, noise and one factor for all of them apart."""
    return all(defense.keeps in {"values", "direction"} for defense in defenses)


def rounds(defenses: Sequence[Defense]) -> bool:
    """Returns whether the attacker's own gradient has to go through a defence to compare."""
    return any(defense.keeps in _ROUNDING for defense in defenses)


_ROUNDING = {"signs", "estimate"}


def signs_hold(defenses: Sequence[Defense]) -> bool:
    """Returns whether an entry that stands out of the noise has the sign that it had.

    Behind noise a defence that keeps signs alone keeps those of the noise, as large as it likes.
    """
    noisy = False
    for defense in defenses:
        if defense.keeps == "estimate" or (defense.keeps == "signs" and noisy):
            return False
        noisy = noisy or defense.sigma > 0
    return True


def survivors_of(
    defenses: Sequence[Any], gradient: Mapping[str, Tensor]
) -> Mapping[str, Tensor] | None:
    """Returns which entries of an update were sent, as far as the server can tell.

    Those that are not zero. What hides zeros behind a defence that sends a part leaves what that
    one's ``survivors`` says of the tensors that arrived.

    Returns:
        Parameter name -> bool tensor; None where everything was sent.
    """
    parts = [index for index, defense in enumerate(defenses) if defense.keeps == "part"]
    if not parts:
        return None
    mask = {name: value != 0 for name, value in gradient.items()}
    for index in parts:
        later = defenses[index:]
        if any(other.sigma > 0 or other.keeps == "estimate" for other in later):
            for name, value in gradient.items():
                mask[name] &= defenses[index].survivors(value)
    return mask
