"""The terms beside the gradient distance: what is known of images, statistics and latents.

Each is a value that declares what it sees (:mod:`gradinv.engine.terms`); anyone's own that does so
takes part in the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.engine.terms import Sees
from gradinv.errors import AttackError
from gradinv.models.batchnorm import BatchStatistics


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

    sees: ClassVar[Sees] = "images"
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

    sees: ClassVar[Sees] = "images"
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

    sees: ClassVar[Sees] = "statistics"
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

    sees: ClassVar[Sees] = "latents"
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

    sees: ClassVar[Sees] = "latents"
    weight: float

    def __call__(self, latents: Float[Tensor, "batch *latent"]) -> Float[Tensor, ""]:
        """Returns the weighted penalty of one batch of latents."""
        var, mean = torch.var_mean(latents.flatten(1), dim=1, correction=0)
        var = var.clamp_min(torch.finfo(var.dtype).tiny)
        return self.weight * 0.5 * (mean.square() + var - 1 - var.log()).sum()
