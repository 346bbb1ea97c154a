"""The matching cost: gradient distances d, and the regularisers beside them.

Distances and regularisers are values. A distance sees the trial gradient and a :class:`Target`; a
regulariser sees normalised images, batch-norm statistics or latents, according to its class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradinv.attacks.consensus import GroupConsistency
from gradinv.errors import AttackError
from gradinv.federated.checks import check_clients
from gradinv.federated.observation import Observation
from gradinv.models.batchnorm import BatchStatistics


@dataclass(frozen=True, eq=False)
class Target:
    """What the trial gradient is compared with.

    Attributes:
        gradient: the observed gradient by parameter name.
        mask: which coordinates survived a known sparsification, by parameter name; None where no
            sparsification is known. The gradient is zero elsewhere. The attacker sees the zeros, or
            knows how many there were before noise covered them, so it may use them.
    """

    gradient: Mapping[str, Tensor]
    mask: Mapping[str, Tensor] | None = None

    @classmethod
    def of(cls, observation: Observation) -> "Target":
        """Returns what an update says: its gradient, without noise where nothing else is left.

        Raises:
            ObservationError: the update is the sum of several clients'.
        """
        check_clients(observation.clients)
        mask = observation.sparsity_mask
        if mask is None:
            return cls(dict(observation.gradient))
        return cls({name: value * mask[name] for name, value in observation.gradient.items()}, mask)

    def largest(self, count: int) -> "Target":
        """Returns the target with only the ``count`` tensors of largest norm."""
        names = sorted(self.gradient, key=lambda name: -self.gradient[name].norm().item())[:count]
        mask = self.mask
        return Target(
            {name: value for name, value in self.gradient.items() if name in names},
            None if mask is None else {name: mask[name] for name in names},
        )

    def masked(self, name: str, trial: Tensor) -> Tensor:
        """Returns the trial gradient of one tensor on the surviving coordinates."""
        return trial if self.mask is None else trial * self.mask[name]


@runtime_checkable
class Distance(Protocol):
    """A gradient distance d(trial, observed)."""

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns the distance; 0 where the two are equal."""
        ...


def _products(
    trial: Mapping[str, Tensor], target: Target
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Returns <a, g>, |a|^2 and |g|^2 of every tensor, without one long vector."""
    inner, own, observed = [], [], []
    for name, g in target.gradient.items():
        a = target.masked(name, trial[name])
        inner.append((a * g).sum())
        own.append(a.square().sum())
        observed.append(g.square().sum())
    return inner, own, observed


@dataclass(frozen=True)
class Cosine:
    """1 - <a, g> / (|a| |g|) over all tensors as one vector (Geiping et al. 2020, eq. 4)."""

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns a value between 0 and 2."""
        inner, own, observed = (torch.stack(terms).sum() for terms in _products(trial, target))
        return 1 - inner / (own.sqrt() * observed.sqrt()).clamp_min(torch.finfo(own.dtype).tiny)


def is_signal(squares: Float[Tensor, "*restart tensor"]) -> Bool[Tensor, "*restart tensor"]:
    """Returns which tensors of a gradient are more than rounding errors, from |g|^2 of each.

    A bias in front of batch norm in train mode has a gradient of zero that is computed as some
    1e-6 of the others (1e-15 in float64), more where batch norm enlarges what it gets: terms that
    cancel are larger than their sum. Alone, that has no direction to compare.
    """
    least = (1024 * torch.finfo(squares.dtype).eps) ** 2
    return squares > least * squares.sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class LayerCosine:
    """The mean of each tensor's own 1 - cosine, over those whose observed gradient is not zero.

    It is 1 for a tensor whose trial gradient is zero, as behind ReLUs that are all off.
    """

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns a value between 0 and 2."""
        inner, own, observed = (torch.stack(terms) for terms in _products(trial, target))
        used, live = is_signal(observed), is_signal(own)
        scale = (own.where(live, 1) * observed.where(used, 1)).sqrt()
        cosines = (inner / scale).where(live, 0)
        return (1 - cosines[used]).mean()


@dataclass(frozen=True)
class SquaredL2:
    """|a - g|^2 over all tensors as one vector (Zhu et al. 2019, eq. 3)."""

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns a value of at least 0."""
        return torch.stack([
            (target.masked(name, trial[name]) - g).square().sum()
            for name, g in target.gradient.items()
        ]).sum()  # fmt: skip


@dataclass(frozen=True)
class L1:
    """|a - g|_1 over all tensors as one vector."""

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns a value of at least 0."""
        return torch.stack([
            (target.masked(name, trial[name]) - g).abs().sum()
            for name, g in target.gradient.items()
        ]).sum()  # fmt: skip


@dataclass(frozen=True)
class TotalVariation:
    """Differences of neighbouring pixels, on normalised images.

    The default is mean |dx| + mean |dy|, as the code of Geiping et al. 2020 and Jeon et al. 2021
    computes it. ``squared`` gives the sum of squared differences of Jeon et al. 2021, eq. 4,
    divided by the number of images.

    Attributes:
        weight: lambda_TV, a factor on normalised pixel units.
        squared: the paper's form instead of its code's.
    """

    weight: float
    squared: bool = False

    def __call__(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, ""]:
        """Returns the weighted penalty of one batch of normalised images."""
        dx = images[..., :, 1:] - images[..., :, :-1]
        dy = images[..., 1:, :] - images[..., :-1, :]
        if self.squared:
            penalty = (dx.square().sum() + dy.square().sum()) / images.shape[0]
        else:
            penalty = dx.abs().mean() + dy.abs().mean()
        return self.weight * penalty

    def with_gradient(
        self, images: Float[Tensor, "restart batch channel height width"]
    ) -> tuple[Float[Tensor, " restart"], Float[Tensor, "restart batch channel height width"]]:
        """Returns the penalty of every restart and its gradient, without autograd.

        Where neighbouring pixels are equal the slope of |.| is 0, as autograd has it.
        """
        values = images.new_zeros(len(images))
        gradient = torch.zeros_like(images)
        for axis in (-1, -2):
            after = images.narrow(axis, 1, images.shape[axis] - 1)
            difference = after - images.narrow(axis, 0, images.shape[axis] - 1)
            if self.squared:
                count = images.shape[1]
                size, slope = difference.square(), difference.mul(2 * self.weight / count)
            else:
                count = difference[0].numel()
                size, slope = difference.abs(), difference.sign_().mul_(self.weight / count)
            values.add_(size.flatten(1).sum(1), alpha=self.weight / count)
            gradient.narrow(axis, 1, images.shape[axis] - 1).add_(slope)
            gradient.narrow(axis, 0, images.shape[axis] - 1).sub_(slope)
        return values, gradient


@dataclass(frozen=True)
class ImageNorm:
    """Euclidean norm of each normalised image, averaged (Yin et al. 2021, the l2 term)."""

    weight: float

    def __call__(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, ""]:
        """Returns the weighted penalty of one batch of normalised images."""
        return self.weight * images.flatten(1).norm(dim=1).mean()

    def with_gradient(
        self, images: Float[Tensor, "restart batch channel height width"]
    ) -> tuple[Float[Tensor, " restart"], Float[Tensor, "restart batch channel height width"]]:
        """Returns the penalty of every restart and its gradient; 0 for an image of zeros."""
        norms = images.flatten(2).norm(dim=2)
        safe = norms.clamp_min(torch.finfo(norms.dtype).tiny)[..., None, None, None]
        return self.weight * norms.mean(1), self.weight / images.shape[1] * images / safe


@dataclass(frozen=True)
class BatchNormMatching:
    """Sum over layers of |mu - mu*| + |var - var*| (Yin et al. 2021, eq. 9).

    The default follows released code: norms unsquared and the first layer weighed ten times.
    ``squared`` squares the norms, as the paper's equation does.

    Attributes:
        weight: of the sum.
        first: factor on the first layer.
        squared: the paper's form.
    """

    weight: float
    first: float = 10.0
    squared: bool = False

    def __call__(
        self, trial: Mapping[str, BatchStatistics], observed: Mapping[str, BatchStatistics]
    ) -> Float[Tensor, ""]:
        """Returns the weighted penalty.

        Raises:
            AttackError: a layer of the network has no observed statistics.
        """
        missing = [name for name in trial if name not in observed]
        if missing or not trial:
            raise AttackError(
                "expected observed statistics of every batch-norm layer, got none for "
                f"{', '.join(missing) or 'a network without batch norm'}; "
                "reveal them, or use an attack without +bn"
            )
        terms = []
        for index, (name, statistics) in enumerate(trial.items()):
            mean = (statistics.mean - observed[name].mean).norm()
            var = (statistics.var - observed[name].var).norm()
            term = mean.square() + var.square() if self.squared else mean + var
            terms.append(term * (self.first if index == 0 else 1.0))
        return self.weight * torch.stack(terms).sum()


@dataclass(frozen=True)
class LatentNorm:
    """Euclidean norm of all latents of a batch, unsquared as in the code of Jeon et al. 2021."""

    weight: float

    def __call__(self, latents: Float[Tensor, "batch *latent"]) -> Float[Tensor, ""]:
        """Returns the weighted penalty of one batch of latents."""
        return self.weight * latents.norm()


@dataclass(frozen=True)
class LatentKL:
    """KL(N(m_j, v_j) || N(0, 1)) of each latent z_j, summed over the batch (Li et al. 2022).

    m_j and v_j are mean and variance over the coordinates of z_j:
    1/2 sum_j (m_j^2 + v_j - 1 - ln v_j).
    """

    weight: float

    def __call__(self, latents: Float[Tensor, "batch *latent"]) -> Float[Tensor, ""]:
        """Returns the weighted penalty of one batch of latents."""
        var, mean = torch.var_mean(latents.flatten(1), dim=1, correction=0)
        var = var.clamp_min(torch.finfo(var.dtype).tiny)
        return self.weight * 0.5 * (mean.square() + var - 1 - var.log()).sum()


ImageRegularizer = TotalVariation | ImageNorm
LatentRegularizer = LatentNorm | LatentKL
Regularizer = ImageRegularizer | BatchNormMatching | LatentRegularizer | GroupConsistency
