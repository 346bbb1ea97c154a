"""What every way to compute the matching cost and its gradient takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradinv.engine.clipped import through_clips
from gradinv.engine.distances import Distance, Target
from gradinv.engine.terms import (
    ImageTerm,
    Regularizer,
    StatisticsTerm,
    check_terms,
    seeing,
    with_gradient,
)
from gradinv.errors import AttackError
from gradinv.federated.checks import check_clients
from gradinv.federated.defenses import format_defenses
from gradinv.federated.loss import Loss
from gradinv.federated.observation import Observation
from gradinv.models.batchnorm import BatchStatistics
from gradinv.models.normalize import normalization_of


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The cost at one point of every restart.

    Attributes:
        cost: matching plus the regularisers on images and statistics.
        matching: the gradient distance alone.
        gradient: dc/dx of ``cost``.
        label_gradient: dc/dy of ``cost``, where soft labels y were given.
    """

    cost: Float[Tensor, " restart"]
    matching: Float[Tensor, " restart"]
    gradient: Float[Tensor, "restart batch channel height width"]
    label_gradient: Float[Tensor, "restart batch class"] | None = None


@runtime_checkable
class Engine(Protocol):
    """The matching cost and its gradient with respect to the images, for any number of restarts."""

    @property
    def way(self) -> str:
        """How the gradient is computed."""
        ...

    @property
    def reason(self) -> str | None:
        """Why a slower way than the exact R-operator was taken; None where it was not."""
        ...

    def evaluate(self, images: Float[Tensor, "restart batch channel height width"]) -> Evaluated:
        """Returns cost, matching cost and dc/dx of every restart."""
        ...

    def matching(
        self, images: Float[Tensor, "restart batch channel height width"]
    ) -> Float[Tensor, " restart"]:
        """Returns the matching cost alone; infinity where it is not finite."""
        ...


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


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be matched, and the terms beside it; the same for every way.

    Attributes:
        model: f_theta in the observation's mode.
        loss: what the client minimises.
        labels: classes of the batch; None where soft labels come with every call.
        distance: d, behind the defences that the update went through where it sees them.
        target: what the trial gradient is compared with.
        image_terms: regularisers on normalised images.
        statistics_terms: regularisers on what enters the batch-norm layers.
        statistics: what those compare with.
        mean: of the network's normalisation.
        std: of the network's normalisation.
    """

    model: nn.Module
    loss: Loss
    labels: Int[Tensor, " batch"] | None
    distance: Distance
    target: Target
    image_terms: tuple[ImageTerm, ...]
    statistics_terms: tuple[StatisticsTerm, ...]
    statistics: dict[str, BatchStatistics]
    mean: Float[Tensor, "channel 1 1"]
    std: Float[Tensor, "channel 1 1"]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        observation: Observation,
        *,
        distance: Distance,
        regularizers: Sequence[Regularizer],
        target: Target | None,
        soft_labels: bool = False,
    ) -> "Problem":
        """Returns the problem that an observation poses.

        Args:
            model: f_theta in the observation's mode.
            observation: g and what is known beside it; labels must be known, or soft ones given.
            distance: d.
            regularizers: those on images and on batch-norm statistics are used here.
            target: what to compare with; the observation's gradient when None.
            soft_labels: every call brings one distribution over the classes for each image, and
                the observation's labels are not looked at (Zhu et al. 2019).

        Raises:
            AttackError: the labels, or statistics that a regulariser needs, were not revealed; or
                a few tensors are to be compared of an update whose defences act on all together.
            ObservationError: the update is the sum of several clients'.
            ConfigError: a regulariser that does not say what it sees.
        """
        if observation.labels is None and not soft_labels:
            raise AttackError(
                "expected the labels of the batch in the update, got none; "
                "observe with the labels revealed"
            )
        check_terms(regularizers)
        statistics_terms = seeing(regularizers, "statistics")
        if statistics_terms and observation.bn_statistics is None:
            raise AttackError(
                "expected batch-norm statistics in the update for an attack with +bn, got none; "
                "reveal them (--reveal-bn exact or running), or use the attack without +bn"
            )
        check_clients(observation.clients)
        target = target or Target.of(observation)
        lengthy = through_clips(distance, observation.defenses)
        if lengthy is not distance and len(target.gradient) < len(observation.gradient):
            raise AttackError(
                f"expected every tensor of an update under {format_defenses(observation.defenses)} "
                f"for {type(distance).__name__}, since all together decide what was sent, got "
                f"{len(target.gradient)} of {len(observation.gradient)}; match them all, or attack "
                "with a cosine distance where lengths alone were changed"
            )
        like = next(iter(target.gradient.values()))
        mean, std = pixel_units(model, observation.image_shape, like)
        return cls(
            model=model,
            loss=observation.protocol.loss,
            labels=None if soft_labels else observation.labels,
            distance=lengthy,
            target=target,
            image_terms=seeing(regularizers, "images"),
            statistics_terms=statistics_terms,
            statistics=dict(observation.bn_statistics or {}),
            mean=mean,
            std=std,
        )

    def image_penalty(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, ""]:
        """Returns the sum of the image terms of one batch."""
        normalised = (images - self.mean) / self.std
        return torch.stack([term(normalised) for term in self.image_terms]).sum()

    def image_penalty_with_gradient(
        self, images: Float[Tensor, "restart batch channel height width"]
    ) -> tuple[Float[Tensor, " restart"], Float[Tensor, "restart batch channel height width"]]:
        """Returns the sum of the image terms of every restart, and its gradient."""
        normalised = (images - self.mean) / self.std
        value, gradient = images.new_zeros(len(images)), torch.zeros_like(images)
        for term in self.image_terms:
            own_value, own_gradient = with_gradient(term, normalised)
            value, gradient = value + own_value, gradient + own_gradient
        return value, gradient / self.std
