"""The input layer's linear system as a cost, for a search behind R-GAP."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.attacks.recursion.peeling import Peeled
from gradinv.engine import Evaluated
from gradinv.engine.terms import ImageTerm, Regularizer, seeing


class SystemEngine:
    """|A u - b|^2 / |b|^2 and its gradient, in place of a distance of gradients.

    Args:
        peeled: the input layer's system.
        units: mean and std of the network's normalisation.
        regularizers: those on images are used here.
    """

    way = "closed form above, its input layer's system here"
    reason = None

    def __init__(
        self,
        peeled: Peeled,
        units: tuple[Tensor, Tensor],
        regularizers: Sequence[Regularizer] = (),
    ) -> None:
        self.before = peeled.before
        self.mean, self.std = (unit.double() for unit in units)
        self.terms: tuple[ImageTerm, ...] = seeing(regularizers, "images")
        system = peeled.inner
        # The normal matrix once: every step costs one product with it.
        size = system.right.square().sum()
        self.gram = (system.matrix.T @ system.matrix / size).to(self.mean.device)
        self.linear = (system.matrix.T @ system.right / size).to(self.mean.device)

    def _costs(
        self, images: Float[Tensor, "restart 1 channel height width"]
    ) -> Float[Tensor, " restart"]:
        u = self.before(images.flatten(0, 1)).flatten(1)
        return ((u @ self.gram) * u).sum(dim=1) - 2 * u @ self.linear + 1

    def evaluate(
        self,
        images: Float[Tensor, "restart 1 channel height width"],
        labels: Tensor | None = None,  # noqa: ARG002 - the system holds what they say
    ) -> Evaluated:
        """Returns the cost of every restart and its gradient."""
        x = images.detach().double().requires_grad_()
        with torch.enable_grad():
            matching = cost = self._costs(x)
            normalised = (x - self.mean) / self.std
            for term in self.terms:
                cost = cost + torch.stack([term(batch) for batch in normalised])
        (gradient,) = torch.autograd.grad(cost.sum(), x)
        return Evaluated(
            cost.detach().to(images), matching.detach().to(images), gradient.to(images)
        )

    @torch.no_grad()
    def matching(
        self,
        images: Float[Tensor, "restart 1 channel height width"],
        labels: Tensor | None = None,  # noqa: ARG002 - the system holds what they say
    ) -> Float[Tensor, " restart"]:
        """Returns the cost alone; infinity where it is not finite."""
        costs = self._costs(images.detach().double()).to(images)
        return torch.nan_to_num(costs, nan=torch.inf, posinf=torch.inf)
