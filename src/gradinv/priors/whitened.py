"""A generator whose latents were given the mean and covariance that its training left them with."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.errors import PriorError
from gradinv.priors.generator import ARCHITECTURES, Block, Generator, architecture_of, register


@register("whitened")
class Whitened(Generator):
    """G(mean + A z) with z ~ N(0, I): an exact change of the latents' coordinates.

    A generator that was learned together with the latents of its images knows those latents only,
    and they need not be standard normal. With their mean and covariance A A^T in front of it,
    standard normal latents are like them. The two are buffers: a search over w leaves them alone.

    Args:
        generator: architecture and settings of G, as a prior's ``config.json`` holds them.
    """

    mean: Float[Tensor, " latent"]
    factor: Float[Tensor, "latent latent"]

    def __init__(self, *, generator: Mapping[str, Any]) -> None:
        super().__init__()
        settings = dict(generator)
        name = settings.pop("architecture", None)
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise PriorError(
                f"expected a known architecture inside a whitened prior, got '{name}'; choose one "
                f"of {', '.join(ARCHITECTURES)}"
            )
        self.generator = ARCHITECTURES[name](**settings)
        self.latent_shape = self.generator.latent_shape
        self.image_shape = self.generator.image_shape
        size = int(torch.Size(self.latent_shape).numel())
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("factor", torch.eye(size))

    @classmethod
    def of(cls, generator: Generator) -> "Whitened":
        """Returns a copy of a generator with the identity in front; of a whitened one, a copy."""
        if isinstance(generator, Whitened):
            copy = cls(**generator.config())
            copy.load_state_dict(generator.state_dict())
        else:
            inner = {"architecture": architecture_of(generator), **generator.config()}
            copy = cls(generator=inner)
            copy.generator.load_state_dict(generator.state_dict())
        return copy.to(next(generator.parameters())).eval()

    @torch.no_grad()
    def fitted(self, latents: Float[Tensor, "n *latent"]) -> "Whitened":
        """Returns the same generator with N(0, I) standing for the Gaussian of these latents.

        The new coordinates are the principal axes of the latents, the largest first; along an axis
        on which they do not vary the new generator does not vary either.

        Raises:
            PriorError: fewer than two latents, which have no covariance.
        """
        if len(latents) < 2:
            raise PriorError(
                f"expected at least 2 latents to fit a Gaussian to, got {len(latents)}; learn from "
                "more images"
            )
        flat = latents.flatten(1).double()
        values, axes = torch.linalg.eigh(torch.cov(flat.T))
        own = (axes * values.clamp_min(0).sqrt()).flip(1)
        fitted = Whitened.of(self)
        factor, mean = self.factor.double(), self.mean.double()
        fitted.mean.copy_(mean + factor @ flat.mean(dim=0))
        fitted.factor.copy_(factor @ own)
        return fitted

    def _inner_latents(self, z: Tensor) -> Tensor:
        return (self.mean + z.flatten(1) @ self.factor.T).unflatten(1, self.latent_shape)

    def forward(
        self, z: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns G(mean + A z)."""
        return self.generator(self._inner_latents(z))

    def blocks(self) -> tuple[Block, ...]:
        """Returns G's blocks, the first with the change of coordinates before it."""
        first, *others = self.generator.blocks()
        return (lambda z: first(self._inner_latents(z)), *others)

    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        inner = {"architecture": architecture_of(self.generator), **self.generator.config()}
        return {"generator": inner}
