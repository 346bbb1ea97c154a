"""The cost of a stage at a point of its search space, and the gradient there.

A point is a mapping from the names of the space's parameters to tensors with a leading restart
dimension. It need not have as many restarts as the space: an optimiser may ask for a few of them
(a line search) or for many points of each (a population).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from gradinv.attacks.search.spaces import Scene, SearchSpace
from gradinv.engine import Engine, Evaluated, PlainDoubleBackward
from gradinv.engine.terms import Regularizer, seeing

Point = Mapping[str, Tensor]


class _Rendering(nn.Module):
    """Everything that a space shows at a point, in one call."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def forward(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns images, latents and soft labels."""
        return self.space(), self.space.latents(), self.space.labels()


@dataclass(frozen=True, eq=False)
class StageCost:
    """c(point) of one stage, for optimisers to ask.

    Attributes:
        space: what is searched.
        engine: the cost as far as images and statistics go, with its gradient.
        regularizers: those on latents and on all restarts together are added here; the engine has
            the others.
        scene: pixel units.
        progress: of the stage, 0 to 1.
    """

    space: SearchSpace
    engine: Engine
    regularizers: tuple[Regularizer, ...]
    scene: Scene
    progress: float = 0.0

    def evaluate(
        self, point: Point | None = None
    ) -> tuple[Float[Tensor, " restart"], dict[str, Tensor]]:
        """Returns the cost of every restart and its gradient by parameter name.

        Args:
            point: every parameter of the space, with any number of restarts; where the space
                stands when None. Only what is searched gets a gradient.
        """
        point = dict(self.space.named_parameters()) if point is None else point
        moving = {name for name, value in self.space.named_parameters() if value.requires_grad}
        leaves = {
            name: value.detach().requires_grad_(name in moving) for name, value in point.items()
        }
        with torch.enable_grad():
            images, latents, labels = self._render(leaves)
            evaluated = self._evaluate(images, labels)
            cost, outputs, directions = evaluated.cost, [images], [evaluated.gradient]
            if labels is not None:
                assert evaluated.label_gradient is not None
                outputs.append(labels)
                directions.append(evaluated.label_gradient)
            penalty = self._penalty(images, latents)
        if penalty is not None:
            cost = cost + penalty.detach()
            if penalty.requires_grad:
                outputs.append(penalty)
                directions.append(torch.ones_like(penalty))
        # One vector-Jacobian product takes dc/dx to whatever is searched.
        searched = {name: value for name, value in leaves.items() if name in moving}
        gradients = torch.autograd.grad(outputs, list(searched.values()), directions)
        return cost, dict(zip(searched, gradients, strict=True))

    @torch.no_grad()
    def value(self, point: Point) -> Float[Tensor, " restart"]:
        """Returns matching cost and latent terms alone, without any gradient with respect to x."""
        images, latents, labels = self._render(point)
        cost = self.matching(images, labels)
        penalty = self._penalty(images, latents)
        return cost if penalty is None else cost + penalty

    def matching(
        self,
        images: Float[Tensor, "restart batch channel height width"],
        labels: Float[Tensor, "restart batch class"] | None,
    ) -> Float[Tensor, " restart"]:
        """Returns the matching cost of pictures alone; infinity where it is not finite."""
        if labels is None:
            return self.engine.matching(images)
        assert isinstance(self.engine, PlainDoubleBackward)  # the way that takes soft labels
        return self.engine.matching(images, labels)

    def _evaluate(self, images: Tensor, labels: Tensor | None) -> Evaluated:
        if labels is None:
            return self.engine.evaluate(images)
        assert isinstance(self.engine, PlainDoubleBackward)  # the way that takes soft labels
        return self.engine.evaluate(images, labels)

    def _render(self, point: Point) -> tuple[Tensor, Tensor | None, Tensor | None]:
        named = {f"space.{name}": value for name, value in point.items()}
        return functional_call(_Rendering(self.space), named, ())

    def _penalty(self, images: Tensor, latents: Tensor | None) -> Tensor | None:
        """Returns the terms that the engine does not know, of every restart."""
        penalties: list[Tensor] = []
        if latents is not None:
            penalties += [
                torch.stack([term(z) for z in latents])
                for term in seeing(self.regularizers, "latents")
            ]
        penalties += [
            term((images - self.scene.mean) / self.scene.std)
            for term in seeing(self.regularizers, "restarts")
            if self.progress >= getattr(term, "start", 0.0)
        ]
        return torch.stack(penalties).sum(dim=0) if penalties else None
