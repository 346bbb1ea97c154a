"""Values that the package knows nothing of, as its users write them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from gradinv.attacks import Adam, Attack, Stage
from gradinv.attacks.search.spaces import OfGenerator, Pixels
from gradinv.engine.distances import Target
from gradinv.engine.terms import Sees
from gradinv.federated.defense import Keeps, spec_of
from gradinv.priors import Adapted


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


@dataclass(frozen=True)
class Power:
    """The sum of a power of all differences."""

    exponent: float = 4.0

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Tensor:
        terms = [
            (target.masked(name, trial[name]) - g).abs().pow(self.exponent).sum()
            for name, g in target.gradient.items()
        ]
        return torch.stack(terms).sum()


@dataclass(frozen=True)
class Darkness:
    """Pulls every pixel to black."""

    sees: ClassVar[Sees] = "images"
    weight: float

    def __call__(self, images: Tensor) -> Tensor:
        return self.weight * (images + 2).square().mean()


class Painter(nn.Module):
    """Latents to pictures, as somebody else wrote it."""

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.layer = nn.Linear(5, side**2)
        self.side = side

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z).tanh().unflatten(1, (1, self.side, self.side))


def painted(side: int = 8) -> Adapted:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Adapted(
            Painter(side),
            latent_shape=(5,),
            image_shape=(1, side, side),
            output_range=(-1.0, 1.0),
            settings={"side": side},
        )


def painted_16() -> Adapted:
    return painted(16)


def worst(preds: Tensor, target: Tensor) -> Tensor:
    return (preds - target).abs().flatten(1).amax(1)


def network(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * image_size**2, 8), nn.Tanh(), nn.Linear(8, num_classes)
    )


mine = Attack("mine", (Stage(Pixels(), 5, Adam(0.1)),))
through_latents = Attack("latents", (Stage(OfGenerator(latents=True), 5, Adam(0.1)),))
