"""What a client does to its update before it leaves.

A defence is a value with ``apply(gradient, generator)``, ``scaled(factor)``, which is the same in
other units, and ``spec``, the text that :func:`parse_defense` reads. All are differentiable, so an
attacker who knows the defence can put its own trial gradient through it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Generator, Tensor

from gradinv.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Noise:
    """Adds Gaussian noise to every entry.

    Attributes:
        sigma: standard deviation, in the units of the gradient (absolute).

    Raises:
        ConfigError: sigma is negative or not finite.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ConfigError(
                f"expected a noise sigma of 0 or more, got {self.sigma}; try noise:0.01"
            )

    @property
    def spec(self) -> str:
        """The defence as :func:`parse_defense` reads it."""
        return f"noise:{_number(self.sigma)}"

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
        return f"sparsify:{_number(self.fraction)}"

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

    norm: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.norm) and self.norm > 0):
            raise ConfigError(f"expected a clip norm above 0, got {self.norm}; try clip:1")

    @property
    def spec(self) -> str:
        """The defence as :func:`parse_defense` reads it."""
        return f"clip:{_number(self.norm)}"

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


Defense = Noise | Sparsify | Clip

DEFENSES: dict[str, type[Noise] | type[Sparsify] | type[Clip]] = {
    "noise": Noise,
    "sparsify": Sparsify,
    "clip": Clip,
}


def parse_defense(spec: str) -> tuple[Defense, ...]:
    """Reads ``none``, ``sparsify:0.95`` or a chain such as ``clip:1+noise:0.01``.

    Args:
        spec: defences in the order in which the client applies them.

    Raises:
        ConfigError: an unknown name, or a value that is missing or has no meaning.
    """
    if spec.strip() == "none":
        return ()
    # A "+" before a letter joins two defences; the one in "1e+3" does not.
    return tuple(_parse_one(part, spec) for part in re.split(r"\+\s*(?=[A-Za-z])", spec))


def format_defenses(defenses: Sequence[Defense]) -> str:
    """Returns the text that :func:`parse_defense` reads; ``none`` for no defence."""
    return "+".join(defense.spec for defense in defenses) or "none"


def _parse_one(part: str, spec: str) -> Defense:
    name, _, value = part.strip().partition(":")
    if name not in DEFENSES:
        raise ConfigError(
            f"expected a defence such as none, sparsify:0.95 or clip:1+noise:0.01, got {name!r} in "
            f"{spec!r}; {did_you_mean(name, ['none', *DEFENSES])}"
        )
    try:
        number = float(value)
    except ValueError:
        raise ConfigError(
            f"expected a number after '{name}:', got {value!r} in {spec!r}; write {name}:0.5"
        ) from None
    return DEFENSES[name](number)


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0").replace("e+", "e")
