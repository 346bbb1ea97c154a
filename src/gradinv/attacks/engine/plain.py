"""Plain double backward: works for any module, and is what the other ways are tested against."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.attacks.engine.base import Evaluated, Problem
from gradinv.attacks.objectives import Distance, Regularizer, Target
from gradinv.federated.client import loss_gradient
from gradinv.federated.observation import Observation
from gradinv.models.batchnorm import record_batch_statistics


class PlainDoubleBackward:
    """c = d(grad l(x), g) + regularisers, differentiated by autograd alone (the oracle).

    Only the images get a gradient; neither theta nor a generator's w accumulates one.

    Args:
        model: f_theta in the observation's mode.
        observation: g and what is known beside it; labels must be known.
        distance: d.
        regularizers: those on images and on batch-norm statistics are used here.
        target: what to compare with; the observation's gradient when None.
        reason: why this way was taken in place of a faster one.
    """

    way = "plain"

    def __init__(
        self,
        model: nn.Module,
        observation: Observation,
        *,
        distance: Distance,
        regularizers: Sequence[Regularizer] = (),
        target: Target | None = None,
        reason: str | None = None,
    ) -> None:
        self.problem = Problem.of(
            model, observation, distance=distance, regularizers=regularizers, target=target
        )
        self.target = self.problem.target
        self.reason = reason

    def _cost(
        self, images: Float[Tensor, "batch channel height width"], *, create_graph: bool
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Returns cost and matching cost of one batch."""
        problem = self.problem
        with_statistics = bool(problem.statistics_terms)
        recorder = record_batch_statistics(problem.model) if with_statistics else nullcontext()
        with recorder as recorded:
            trial = loss_gradient(problem.model, images, problem.labels, create_graph=create_graph)
        matching = problem.distance(trial, self.target)
        cost = matching
        for term in problem.statistics_terms:
            assert recorded is not None
            cost = cost + term(recorded.statistics, problem.statistics)
        if problem.image_terms:
            cost = cost + problem.image_penalty(images)
        return cost, matching

    def evaluate(self, images: Float[Tensor, "restart batch channel height width"]) -> Evaluated:
        """Returns cost, matching cost and dc/dx of every restart."""
        costs, matchings, gradients = [], [], []
        for batch in images.detach():
            x = batch.requires_grad_()
            with torch.enable_grad():
                cost, matching = self._cost(x, create_graph=True)
            (gradient,) = torch.autograd.grad(cost, x)
            costs.append(cost.detach())
            matchings.append(matching.detach())
            gradients.append(gradient)
        return Evaluated(torch.stack(costs), torch.stack(matchings), torch.stack(gradients))

    def matching(
        self, images: Float[Tensor, "restart batch channel height width"]
    ) -> Float[Tensor, " restart"]:
        """Returns the matching cost alone; infinity where it is not finite."""
        model, labels, distance = self.problem.model, self.problem.labels, self.problem.distance
        values = [
            distance(loss_gradient(model, batch, labels), self.target).detach()
            for batch in images.detach()
        ]
        return torch.nan_to_num(torch.stack(values), nan=torch.inf, posinf=torch.inf)
