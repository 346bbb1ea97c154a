"""How good a prior is, computed without downloads: kernel distance, precision and recall.

The features come from a fixed random network (or one that is given). Random features order priors
of one data set and one image size; their values mean nothing across data sets and are no FID.
"""

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.priors.generator import Generator


class RandomFeatures(nn.Module):
    """Three random convolutions; per channel the mean, the deviation and a 2x2 map of each level.

    Args:
        channels: 1 or 3.
        seed: of the weights; part of the metric's definition.
    """

    def __init__(self, channels: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.convolutions = nn.ModuleList()
        previous = channels
        for width in (32, 64, 128):
            convolution = nn.Conv2d(previous, width, 4, 2, 1)
            weight = torch.randn(convolution.weight.shape, generator=generator)
            convolution.weight.data = weight * (2 / (previous * 16)) ** 0.5
            nn.init.zeros_(convolution.bias if convolution.bias is not None else torch.empty(0))
            self.convolutions.append(convolution)
            previous = width
        self.requires_grad_(False)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch feature"]:
        """Returns the features of images in [0, 1]."""
        features = []
        x = 2 * x - 1
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
            pooled = nn.functional.adaptive_avg_pool2d(x, 2)
            features += [pooled.flatten(1), x.std(dim=(2, 3))]
        return torch.cat(features, dim=1)


@dataclass(frozen=True)
class Quality:
    """Distance between generated and real images.

    Attributes:
        kernel_distance: unbiased squared MMD, cubic polynomial kernel (Binkowski et al. 2018).
        precision: fraction of generated images inside the real manifold (Kynkaanniemi et al. 2019).
        recall: fraction of real images inside the generated manifold.
        samples: images of each kind.
        features: the network that the features come from.
    """

    kernel_distance: float
    precision: float
    recall: float
    samples: int
    features: str

    def as_dict(self) -> dict[str, float | int | str | None]:
        """Returns the values as JSON holds them; None where one is not finite.

        That happens where all real images are the same, so that no feature has a scale.
        """
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def kernel_distance(
    real: Float[Tensor, "n feature"], fake: Float[Tensor, "m feature"]
) -> Float[Tensor, ""]:
    """Returns the unbiased estimate of MMD^2 with k(a, b) = (<a, b> / d + 1)^3, as KID uses."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal_mean(k: Tensor) -> Tensor:
        n = k.shape[0]
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1))

    return (
        off_diagonal_mean(kernel(real, real))
        + off_diagonal_mean(kernel(fake, fake))
        - 2 * kernel(real, fake).mean()
    )


def coverage(
    points: Float[Tensor, "n feature"], manifold: Float[Tensor, "m feature"], *, neighbours: int = 3
) -> Float[Tensor, ""]:
    """Returns the fraction of points within some manifold point's k-nearest-neighbour radius."""
    radius = torch.cdist(manifold, manifold).kthvalue(neighbours + 1, dim=1).values
    return (torch.cdist(points, manifold) <= radius).any(dim=1).float().mean()


@torch.no_grad()
def measure_quality(
    generator: Generator,
    real: Float[Tensor, "n channel height width"],
    *,
    seed: int = 0,
    features: nn.Module | None = None,
) -> Quality:
    """Compares as many samples of the generator as there are real images.

    Args:
        generator: the prior, in eval mode.
        real: images in [0, 1]; 1,000 or more give steady values.
        seed: of the latents.
        features: a network from images to vectors; a fixed random one when none is given.
    """
    network = features if features is not None else RandomFeatures(real.shape[1]).to(real)
    source = torch.Generator().manual_seed(seed)
    fake_features = [
        network(generator(generator.sample_latents(len(chunk), source)))
        for chunk in real.split(250)
    ]
    real_features = torch.cat([network(chunk) for chunk in real.split(250)]).double()
    fake = torch.cat(fake_features).double()
    # One scale for both, from the real images, so that no single feature decides; a feature that
    # hardly varies in them is not blown up to do so.
    mean, std = real_features.mean(dim=0), real_features.std(dim=0)
    std = std.clamp_min(0.1 * std.mean().item())
    real_features, fake = (real_features - mean) / std, (fake - mean) / std
    return Quality(
        kernel_distance=kernel_distance(real_features, fake).item(),
        precision=coverage(fake, real_features).item(),
        recall=coverage(real_features, fake).item(),
        samples=len(real),
        features="given" if features is not None else "random-3conv-seed0",
    )
