"""The package's own defences, and the text that names these and others.

All are differentiable, so an attacker who knows the defence can put its own trial gradient through
it; what the server is told of each stands in what :class:`~gradinv.federated.defense.Defense` asks.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Generator, Tensor

from gradinv.errors import ConfigError
from gradinv.federated.defense import Defense, Keeps, check_defenses, plain_number
from gradinv.resolve import Named, resolve


@dataclass(frozen=True)
class Noise:
    """Adds Gaussian noise to every entry.

    Attributes:
        sigma: standard deviation, in the units of the gradient (absolute).

    Raises:
        ConfigError: sigma is negative or not finite.
    """

    keeps: ClassVar[Keeps] = "values"
    sigma: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ConfigError(
                f"expected a noise sigma of 0 or more, got {self.sigma}; try noise:0.01"
            )

    @property
    def spec(self) -> str:
        """The defence as :func:`parse_defense` reads it."""
        return f"noise:{plain_number(self.sigma)}"

    @property
    def words(self) -> str:
        """The defence as a person reads it."""
        return f"Gaussian noise of σ {self.sigma:g}"

    def apply(
        self, gradient: Mapping[str, Tensor], generator: Generator | None
    ) -> dict[str, Tensor]:
        """Returns gradient + sigma n with n ~ N(0, 1), drawn in the order of the gradient.

        Raises:
            ConfigError: there is no generator to draw from.
        """
        if generator is None:
            raise ConfigError(
                "expected a torch.Generator for the noise defence, got None; "
                "pass generator=torch.Generator().manual_seed(...)"
            )
        # Drawn where the generator lives, so the noise is the same for an update on any device.
        return {
            name: value
            + self.sigma
            * torch.randn(
                value.shape, generator=generator, dtype=value.dtype, device=generator.device
            ).to(value.device)
            for name, value in gradient.items()
        }

    def scaled(self, factor: float) -> "Noise":
        """Returns the noise for gradients that are ``factor`` times as long."""
        return Noise(self.sigma * factor)


@dataclass(frozen=True)
class Sparsify:
    """Sets the entries of smallest magnitude to zero, layer by layer (tensor by tensor).

    Attributes:
        fraction: of each tensor's entries that are set to zero; 0.99 keeps the largest 1 %.

    Raises:
        ConfigError: the fraction is outside [0, 1).
    """

    keeps: ClassVar[Keeps] = "part"
    sigma = 0.0
    fraction: float

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ConfigError(
                f"expected a sparsify fraction in [0, 1), got {self.fraction}; "
                "sparsify:0.95 keeps the largest 5 % of each layer"
            )

    @property
    def spec(self) -> str:
        """The defence as :func:`parse_defense` reads it."""
        return f"sparsify:{plain_number(self.fraction)}"

    @property
    def words(self) -> str:
        """The defence as a person reads it."""
        return f"only the largest {100 * (1 - self.fraction):.4g} % of every tensor sent"

    def kept(self, count: int) -> int:
        """Returns how many of ``count`` entries survive: count - floor(fraction count).

        At least one does, since the fraction is below 1. Computed with the decimal that was
        written: 0.29 of 100 is 29, where floating point says 28.999...
        """
        return count - int(Fraction(repr(float(self.fraction))) * count)

    def apply(
        self, gradient: Mapping[str, Tensor], generator: Generator | None
    ) -> dict[str, Tensor]:
        """Returns the gradient with all but the largest entries of each tensor set to zero."""
        del generator
        return {
            name: torch.where(self.survivors(value), value, torch.zeros_like(value))
            for name, value in gradient.items()
        }

    def survivors(self, value: Tensor) -> Tensor:
        """Returns where the largest entries of a tensor are, as many as are kept (bool)."""
        flat = value.detach().abs().flatten()
        largest = flat.topk(self.kept(flat.numel()), sorted=False).indices
        mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(0, largest, value=True)
        return mask.reshape(value.shape)

    def scaled(self, factor: float) -> "Sparsify":
        """Returns the same sparsification: fractions have no unit."""
        del factor
        return self


@dataclass(frozen=True)
class Clip:
    """Scales the whole update down to a given L2 norm when it is longer.

    Attributes:
        norm: the largest L2 norm over all tensors together.

    Raises:
        ConfigError: the norm is not positive and finite.
    """

    keeps: ClassVar[Keeps] = "direction"
    sigma = 0.0
    norm: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.norm) and self.norm > 0):
            raise ConfigError(f"expected a clip norm above 0, got {self.norm}; try clip:1")

    @property
    def spec(self) -> str:
        """The defence as :func:`parse_defense` reads it."""
        return f"clip:{plain_number(self.norm)}"

    @property
    def words(self) -> str:
        """The defence as a person reads it."""
        return f"update clipped to norm {self.norm:g}"

    def apply(
        self, gradient: Mapping[str, Tensor], generator: Generator | None
    ) -> dict[str, Tensor]:
        """Returns the gradient times min(1, norm / |gradient|)."""
        del generator
        norms = torch.stack([torch.linalg.vector_norm(value) for value in gradient.values()])
        # The length is held up, not the factor down: a gradient of zeros has a derivative then.
        scale = self.norm / torch.linalg.vector_norm(norms).clamp(min=self.norm)
        return {name: value * scale for name, value in gradient.items()}

    def scaled(self, factor: float) -> "Clip":
        """Returns the clip for gradients that are ``factor`` times as long."""
        return Clip(self.norm * factor)


DEFENSES: dict[str, Callable[[float], Noise | Sparsify | Clip]] = {
    "noise": Noise,
    "sparsify": Sparsify,
    "clip": Clip,
}


def parse_defense(spec: str) -> tuple[Defense, ...]:
    """Reads ``none``, ``sparsify:0.95`` or a chain such as ``clip:1+noise:0.01``.

    ``package.module:Class:0.5`` makes a defence of a class from outside the package, with the
    numbers behind its name (separated by commas, or none), ``package.module:value`` takes one that
    is made. Update files name their defences, and can come from anybody: nothing is called that
    does not declare what a defence declares.

    Args:
        spec: defences in the order in which the client applies them.

    Raises:
        ConfigError: an unknown name, a value that is missing or has no meaning, or something that
            is no defence.
    """
    if spec.strip() == "none":
        return ()
    return tuple(_parse_one(part, spec) for part in _split(spec))


def format_defenses(defenses: Sequence[Defense]) -> str:
    """Returns the text that :func:`parse_defense` reads; ``none`` for no defence."""
    return "+".join(defense.spec for defense in defenses) or "none"


def defense_words(spec: str) -> str:
    """Returns a spec in words; what lies outside the package, or is none, as it is written.

    >>> defense_words("clip:1+noise:0.01")
    'update clipped to norm 1, then Gaussian noise of σ 0.01'
    """
    if spec.strip() == "none":
        return "no defence"
    return ", then ".join(map(_one_in_words, _split(spec)))


def _one_in_words(part: str) -> str:
    name, _, value = part.partition(":")
    try:
        return DEFENSES[name](float(value)).words
    except (KeyError, ValueError, ConfigError):  # nothing is imported to describe it
        return part


def _split(spec: str) -> list[str]:
    """Returns the parts of a chain: a "+" before a name joins two, the one in "1e+3" does not."""
    return [part.strip() for part in re.split(r"\+\s*(?=[A-Za-z_])", spec)]


def _parse_one(part: str, spec: str) -> Defense:
    named = resolve(
        part,
        DEFENSES,
        kind="defence",
        expected="a defence such as none, sparsify:0.95 or clip:1+noise:0.01",
        whole=spec,
        also=("none",),
    )
    if named.outside:
        return _from_outside(named, spec)
    return named.value(_number(named.settings, named.name, spec))


def _from_outside(named: Named, spec: str) -> Defense:
    """Returns the defence that a class from outside makes, or that a module holds."""
    value = named.value
    if not isinstance(value, type):
        if named.settings:
            raise ConfigError(
                f"expected {named.name} without numbers, got {named.settings!r} in {spec!r}; it is "
                "a value already, and only classes take some"
            )
        check_defenses([value])
        return value
    if not all(hasattr(value, what) for what in ("keeps", "apply", "scaled")):
        raise ConfigError(
            f"expected a class that declares keeps, apply and scaled, got {named.name}; "
            "see docs/contributing.md for what a defence is"
        )
    given = named.settings.split(",") if named.settings else []
    numbers = [_number(text, named.name, spec) for text in given]
    try:
        defense = value(*numbers)
    except TypeError as error:
        raise ConfigError(
            f"expected the numbers of {named.name} in {spec!r}, got '{error}'; separate them by "
            "commas"
        ) from error
    check_defenses([defense])
    return defense


def _number(value: str, name: str, spec: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(
            f"expected a number after '{name}:', got {value!r} in {spec!r}; write {name}:0.5"
        ) from None
