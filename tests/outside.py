"""Values that the package knows nothing of, as its users write them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from gradinv.federated.defense import Keeps, spec_of


@dataclass(frozen=True)
class Rounded:
    """Sends multiples of a step, the nearest ones: what a quantiser of few bits does."""

    keeps: ClassVar[Keeps] = "signs"
    sigma = 0.0
    step: float

    @property
    def spec(self) -> str:
        return spec_of(self, self.step)

    def apply(self, gradient: Mapping[str, Tensor], generator: Generator | None):
        return {name: (value / self.step).round() * self.step for name, value in gradient.items()}

    def expected(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The slope of a staircase is 0; that of the line through it is of use."""
        sent = self.apply({name: value.detach() for name, value in gradient.items()}, None)
        return {name: value + (sent[name] - value.detach()) for name, value in gradient.items()}

    def scaled(self, factor: float) -> "Rounded":
        return Rounded(self.step * factor)


@dataclass(frozen=True)
class Laplace:
    """Adds noise with longer tails than Gaussian noise has."""

    keeps: ClassVar[Keeps] = "estimate"
    scale: float

    @property
    def sigma(self) -> float:
        return 2**0.5 * self.scale

    @property
    def spec(self) -> str:
        return spec_of(self, self.scale)

    def apply(self, gradient: Mapping[str, Tensor], generator: Generator | None):
        assert generator is not None
        return {name: value + self._noise(value, generator) for name, value in gradient.items()}

    def _noise(self, value: Tensor, generator: Generator) -> Tensor:
        uniform = torch.rand(value.shape, generator=generator, dtype=value.dtype) - 0.5
        magnitude = (1 - 2 * uniform.abs()).clamp_min(torch.finfo(value.dtype).tiny).log()
        return -self.scale * uniform.sign() * magnitude

    def expected(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(gradient)

    def scaled(self, factor: float) -> "Laplace":
        return Laplace(self.scale * factor)


@dataclass(frozen=True)
class Every:
    """Sends one entry of so many, whatever its size."""

    keeps: ClassVar[Keeps] = "part"
    sigma = 0.0
    number: float

    @property
    def spec(self) -> str:
        return spec_of(self, self.number)

    def apply(self, gradient: Mapping[str, Tensor], generator: Generator | None):
        return {name: value * self.survivors(value) for name, value in gradient.items()}

    def survivors(self, sent: Tensor) -> Tensor:
        places = torch.arange(sent.numel(), device=sent.device) % int(self.number) == 0
        return places.reshape(sent.shape)

    def scaled(self, factor: float) -> "Every":
        return self
