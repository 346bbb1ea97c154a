"""DCGAN (Radford et al. 2016) for 32 and 64 pixels, with a discriminator of today.

Deviations from the paper: the generator starts as a chain of bilinear upsamplings with random
channel mixing of He's scale instead of N(0, 0.02), so that signals keep their size in eval mode too
(an untrained generator is what GI-w and GIML start from) and no checkerboard has to be unlearned;
sigmoid instead of tanh, because images are in [0, 1]; spectral normalisation (Miyato et al. 2018)
or none instead of batch normalisation in the discriminator, and a minibatch standard deviation
channel (Karras et al. 2018).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gradinv.errors import PriorError
from gradinv.models.footprint import weights_bytes
from gradinv.priors.footprint import without_memory
from gradinv.priors.generator import Block, Generator, register
from gradinv.room import require_room


def _levels(image_size: int) -> int:
    """Returns how many times 4 doubles to ``image_size``."""
    levels = int(math.log2(image_size / 4)) if image_size >= 8 else 0
    if levels < 1 or 4 * 2**levels != image_size:
        raise PriorError(
            f"expected an image size of 4 times a power of two (32, 64), got {image_size}; "
            "choose --image-size 32 or 64"
        )
    return levels


@torch.no_grad()
def _initialize(layer: nn.ConvTranspose2d) -> None:
    """Random channel mixing, He's scale; bilinear upsampling in space where the layer upsamples."""
    scale = math.sqrt(2 / layer.in_channels)
    if layer.stride[0] == 1:
        nn.init.normal_(layer.weight, std=scale)
        return
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
    mixing = torch.randn(*layer.weight.shape[:2], 1, 1) * scale
    # A little of a random kernel, so that the channels can differ in space from the first step on.
    noise = torch.randn_like(layer.weight) * (0.25 * scale)
    layer.weight.copy_(mixing * torch.outer(taps, taps) + noise)


@register("dcgan")
class DCGAN(Generator):
    """Transposed convolutions from 4x4 to the image, batch norm and ReLU between them.

    Args:
        image_size: height and width in pixels, 4 times a power of two.
        channels: 1 or 3.
        base_channels: channels of the last hidden layer; doubled at every smaller resolution.
        latent_dim: length of z, standard normal.

    Raises:
        PriorError: a size that is no whole number above 0, or an image size that cannot be.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        channels: int = 3,
        base_channels: int = 48,
        latent_dim: int = 128,
    ) -> None:
        super().__init__()
        sizes = {
            "image_size": image_size, "channels": channels, "base_channels": base_channels,
            "latent_dim": latent_dim,
        }  # fmt: skip
        if any(type(size) is not int or size < 1 for size in sizes.values()):
            raise PriorError(
                "expected image_size, channels, base_channels and latent_dim as whole numbers "
                f"above 0, got {', '.join(f'{name} {size}' for name, size in sizes.items())}; "
                "mend the settings"
            )
        levels = _levels(image_size)
        self.latent_shape = (latent_dim,)
        self.image_shape = (channels, image_size, image_size)
        self.base_channels = base_channels
        widths = [base_channels * 2**level for level in reversed(range(levels))]
        layers: list[nn.Module] = []
        previous = latent_dim
        for index, width in enumerate(widths):
            stride, padding = (1, 0) if index == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(previous, width, 4, stride, padding, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            previous = width
        layers.append(nn.ConvTranspose2d(previous, channels, 4, 2, 1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                _initialize(module)

    def config(self) -> dict[str, int]:
        """Returns the constructor's arguments."""
        return {
            "image_size": self.image_shape[1],
            "channels": self.image_shape[0],
            "base_channels": self.base_channels,
            "latent_dim": self.latent_shape[0],
        }

    def blocks(self) -> tuple[Block, ...]:
        """Returns one block for each resolution: a transposed convolution, batch norm and ReLU."""
        inner = [self.layers[start : start + 3] for start in range(0, len(self.layers) - 1, 3)]
        last = self.layers[-1]

        def first(z: Tensor) -> Tensor:
            return inner[0](z[:, :, None, None])

        def to_image(features: Tensor) -> Tensor:
            return torch.sigmoid(last(features))

        return (first, *inner[1:], to_image)

    def forward(
        self, z: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns images in [0, 1]."""
        return torch.sigmoid(self.layers(z[:, :, None, None]))


class MinibatchStd(nn.Module):
    """Appends the standard deviation over groups of 4 images as one more channel."""

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Tensor:
        """Returns x with one channel more; the batch must divide by 4."""
        batch, channel, height, width = x.shape
        groups = x.float().reshape(-1, 4, channel, height, width)
        std = (groups.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        std = std.repeat_interleave(4).to(x.dtype).view(batch, 1, 1, 1)
        return torch.cat([x, std.expand(batch, 1, height, width)], dim=1)


class Discriminator(nn.Module):
    """Strided convolutions; one score an image.

    Args:
        image_size: height and width in pixels, 4 times a power of two.
        channels: 1 or 3.
        base_channels: channels of the first layer; doubled at every smaller resolution.
        spectral_norm: bound every layer's spectral norm by 1.
    """

    def __init__(
        self, *, image_size: int, channels: int, base_channels: int, spectral_norm: bool = True
    ) -> None:
        super().__init__()

        def bound(layer: nn.Conv2d) -> nn.Module:
            return parametrizations.spectral_norm(layer) if spectral_norm else layer

        layers: list[nn.Module] = []
        previous = channels
        for level in range(_levels(image_size)):
            width = base_channels * 2**level
            layers += [
                bound(nn.Conv2d(previous, width, 4, 2, 1)),
                nn.LeakyReLU(0.2),
            ]
            previous = width
        layers += [
            MinibatchStd(),
            bound(nn.Conv2d(previous + 1, previous, 3, 1, 1)),
            nn.LeakyReLU(0.2),
            bound(nn.Conv2d(previous, 1, 4)),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch"]:
        """Returns scores; larger means more real. Pixels are taken in [0, 1]."""
        return self.layers(2 * x - 1).flatten()


class Encoder(nn.Module):
    """Strided convolutions from an image to mean and log-variance of its latent.

    Needed only while a prior is trained with a reconstruction term.

    Args:
        image_size: height and width in pixels, 4 times a power of two.
        channels: 1 or 3.
        base_channels: channels of the first layer; doubled at every smaller resolution.
        latent_dim: length of z.
    """

    def __init__(
        self, *, image_size: int, channels: int, base_channels: int, latent_dim: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = channels
        for level in range(_levels(image_size)):
            width = base_channels * 2**level
            layers += [
                nn.Conv2d(previous, width, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
            previous = width
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(previous * 16, 2 * latent_dim))

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Returns mean and log-variance. Pixels are taken in [0, 1]."""
        mean, log_variance = self.layers(2 * x - 1).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-8, 4)


def require_generator_fits(
    image_shape: tuple[int, int, int], *, base_channels: int, latent_dim: int
) -> None:
    """Checks that a generator can fit into this machine's memory.

    Raises:
        PriorError: it cannot.
    """
    ghost = without_memory(
        DCGAN,
        image_size=image_shape[1],
        channels=image_shape[0],
        base_channels=base_channels,
        latent_dim=latent_dim,
    )
    lower = "--base-channels, --latent or --image-size"
    require_room(weights_bytes(ghost), "a prior", lower, PriorError)


def untrained_dcgan(
    image_shape: tuple[int, int, int], base_channels: int, latent: int, *, seed: int
) -> DCGAN:
    """Returns a generator with random weights, in eval mode.

    Raises:
        PriorError: as :class:`DCGAN`, or it cannot fit into memory.
    """
    require_generator_fits(image_shape, base_channels=base_channels, latent_dim=latent)
    channels, _, image_size = image_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = DCGAN(
            image_size=image_size,
            channels=channels,
            base_channels=base_channels,
            latent_dim=latent,
        )
    return generator.eval()
