"""The matching cost and its gradient with respect to the images, for any number of restarts.

Everything that searches goes through this one interface: a space turns its point into images, the
engine returns dc/dx, and one vector-Jacobian product takes dc/dx back to z or w. Ways to compute
it can so be exchanged; here is plain double backward, which works for any module.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradinv.attacks.objectives import (
    BatchNormMatching,
    Distance,
    ImageNorm,
    Regularizer,
    Target,
    TotalVariation,
)
from gradinv.errors import AttackError
from gradinv.federated.client import loss_gradient
from gradinv.federated.observation import Observation
from gradinv.models.batchnorm import record_batch_statistics
from gradinv.models.normalize import normalization_of


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The cost at one point of every restart.

    Attributes:
        cost: matching plus the regularisers on images and statistics.
        matching: the gradient distance alone.
        gradient: dc/dx of ``cost``.
    """

    cost: Float[Tensor, " restart"]
    matching: Float[Tensor, " restart"]
    gradient: Float[Tensor, "restart batch channel height width"]


def pixel_units(
    model: nn.Module, image_shape: tuple[int, int, int], like: Tensor
) -> tuple[Float[Tensor, "channel 1 1"], Float[Tensor, "channel 1 1"]]:
    """Returns mean and std of the network's normalisation layer.

    A network without one is taken to expect pixels in [0, 1]; mean 0.5 and std 0.25 then give the
    search about the units that published settings were made for.
    """
    layer = normalization_of(model)
    if layer is not None:
        return layer.mean.to(like), layer.std.to(like)
    shape = (image_shape[0], 1, 1)
    return like.new_full(shape, 0.5), like.new_full(shape, 0.25)


class PlainDoubleBackward:
    """c = d(grad l(x), g) + regularisers, differentiated by autograd alone (the oracle).

    Only the images get a gradient; neither theta nor a generator's w accumulates one.

    Args:
        model: f_theta in the observation's mode.
        observation: g and what is known beside it; labels must be known.
        distance: d.
        regularizers: those on images and on batch-norm statistics are used here.
        target: what to compare with; the observation's gradient when None.
    """

    def __init__(
        self,
        model: nn.Module,
        observation: Observation,
        *,
        distance: Distance,
        regularizers: Sequence[Regularizer] = (),
        target: Target | None = None,
    ) -> None:
        if observation.labels is None:
            raise AttackError(
                "expected the labels of the batch in the update, got none; "
                "observe with the labels revealed"
            )
        self.model = model
        self.labels: Int[Tensor, " batch"] = observation.labels
        self.distance = distance
        self.target = target or Target(dict(observation.gradient), observation.sparsity_mask)
        self.image_terms = [
            term for term in regularizers if isinstance(term, TotalVariation | ImageNorm)
        ]
        self.statistics_terms = [
            term for term in regularizers if isinstance(term, BatchNormMatching)
        ]
        self.statistics = observation.bn_statistics
        if self.statistics_terms and self.statistics is None:
            raise AttackError(
                "expected batch-norm statistics in the update for an attack with +bn, got none; "
                "reveal them (--reveal-bn exact or running), or use the attack without +bn"
            )
        like = next(iter(self.target.gradient.values()))
        self.mean, self.std = pixel_units(model, observation.image_shape, like)

    def _cost(
        self, images: Float[Tensor, "batch channel height width"], *, create_graph: bool
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Returns cost and matching cost of one batch."""
        recorder = record_batch_statistics(self.model) if self.statistics_terms else nullcontext()
        with recorder as recorded:
            trial = loss_gradient(self.model, images, self.labels, create_graph=create_graph)
        matching = self.distance(trial, self.target)
        cost = matching
        for term in self.statistics_terms:
            assert recorded is not None
            assert self.statistics is not None
            cost = cost + term(recorded.statistics, self.statistics)
        normalised = (images - self.mean) / self.std
        for term in self.image_terms:
            cost = cost + term(normalised)
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
        values = [
            self.distance(loss_gradient(self.model, batch, self.labels), self.target).detach()
            for batch in images.detach()
        ]
        return torch.nan_to_num(torch.stack(values), nan=torch.inf, posinf=torch.inf)
