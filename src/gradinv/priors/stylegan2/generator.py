"""The generator of StyleGAN2: mapping network, synthesis network with skips, noise inputs."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.errors import PriorError
from gradinv.priors.generator import Generator, register
from gradinv.priors.stylegan2.layers import EqualLinear, ModulatedConv, leaky, upsampled, wide

Noise = Literal["fixed", "redrawn", "none"]
Output = Literal["sigmoid", "clamp"]

_WIDEST = 512
_LARGEST = 1024


def widths(image_size: int, base_channels: int) -> dict[int, int]:
    """Returns the channels at every resolution from 4: doubled at every smaller one, to 512.

    Raises:
        PriorError: an image size that is no power of two from 8 to 1024.
    """
    if image_size not in {2**power for power in range(3, 11)}:
        raise PriorError(
            f"expected an image size that is a power of two from 8 to {_LARGEST} for stylegan2, "
            f"got {image_size}; choose --image-size 32 or 64"
        )
    levels = int(math.log2(image_size)) - 1
    return {
        4 * 2**level: min(_WIDEST, base_channels * 2 ** (levels - 1 - level))
        for level in range(levels)
    }


class Mapping(nn.Module):
    """z to w: a normalisation and fully connected layers that learn a hundredth as fast.

    Args:
        latent: length of z.
        style: length of w.
        layers: how many.
    """

    average: Float[Tensor, " style"]

    def __init__(self, latent: int, style: int, layers: int) -> None:
        super().__init__()
        sizes = [latent, *[style] * layers]
        self.layers = nn.ModuleList(
            EqualLinear(inputs, outputs, rate=0.01) for inputs, outputs in pairwise(sizes)
        )
        self.register_buffer("average", torch.zeros(style))

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch style"]:
        """Returns w."""
        x = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            x = leaky(layer(x))
        return x


class StyledConv(nn.Module):
    """A modulated convolution, noise, bias and leaky ReLU.

    Args:
        inputs: channels in.
        outputs: channels out.
        style: length of w.
        size: of the result, in pixels.
        up: double the size.
    """

    noise: Float[Tensor, "size size"]

    def __init__(
        self, inputs: int, outputs: int, style: int, size: int, *, up: bool = False
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style, up=up)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(size, size))

    def forward(self, x: Tensor, w: Float[Tensor, "batch style"], noise: Noise | Tensor) -> Tensor:
        """Returns the features of the next layer; a noise of its own for each image if given."""
        x = self.conv(x, w)
        if isinstance(noise, Tensor):
            x = x + noise * self.strength
        elif noise == "redrawn":
            drawn = torch.randn(len(x), 1, *self.noise.shape, device=x.device, dtype=x.dtype)
            x = x + drawn * self.strength.to(x.dtype)
        elif noise == "fixed":
            x = x + (self.noise * self.strength).to(x.dtype)
        return leaky(x + self.bias[:, None, None].to(x.dtype))


class ToRGB(nn.Module):
    """A modulated 1x1 convolution to colours, without demodulation.

    Args:
        inputs: channels in.
        channels: of the image.
        style: length of w.
    """

    def __init__(self, inputs: int, channels: int, style: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, channels, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, w: Float[Tensor, "batch style"]) -> Tensor:
        """Returns this resolution's share of the colours."""
        return wide(self.conv(x, w)) + self.bias[:, None, None]


class Synthesis(nn.Module):
    """Styles to colours: one block of two convolutions for each resolution, skips between colours.

    Args:
        image_size: in pixels.
        channels: of the image.
        base_channels: of the features at the image's size.
        style: length of w.
    """

    def __init__(self, image_size: int, channels: int, base_channels: int, style: int) -> None:
        super().__init__()
        of = widths(image_size, base_channels)
        self.constant = nn.Parameter(torch.randn(of[4], 4, 4))
        self.first = StyledConv(of[4], of[4], style, 4)
        self.first_colors = ToRGB(of[4], channels, style)
        self.up, self.same, self.colors = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for size in list(of)[1:]:
            self.up.append(StyledConv(of[size // 2], of[size], style, size, up=True))
            self.same.append(StyledConv(of[size], of[size], style, size))
            self.colors.append(ToRGB(of[size], channels, style))
        self.layers = 2 * len(of)
        self.noise_sizes = (4, *(size for size in list(of)[1:] for _ in range(2)))

    def forward(
        self, w: Float[Tensor, "batch layer style"], noise: Noise | Sequence[Tensor]
    ) -> Tensor:
        """Returns colours: from about -1 to 1, or their logits.

        Args:
            w: a style for each layer.
            noise: where it comes from, or (batch, 1, size, size) for each of ``noise_sizes``.
        """
        each = [noise] * len(self.noise_sizes) if isinstance(noise, str) else noise
        x = self.constant.expand(len(w), *self.constant.shape)
        x = self.first(x, w[:, 0], each[0])
        # A block's colours see the style of the next block's first convolution.
        image = self.first_colors(x, w[:, 1])
        blocks = zip(self.up, self.same, self.colors, strict=True)
        for block, (up, same, colors) in enumerate(blocks):
            x = up(x, w[:, 2 * block + 1], each[2 * block + 1])
            x = same(x, w[:, 2 * block + 2], each[2 * block + 2])
            image = upsampled(image) + colors(x, w[:, 2 * block + 3])
        return image


@register("stylegan2")
class StyleGAN2(Generator):
    """The generator of Karras et al. 2020 with output skips.

    ``forward`` takes z. The paper on gradient inversion searches one w for each layer (W+) with
    the mapping network frozen; :meth:`latent_space` gives that space, and it is the one that
    attacks take when nobody asks for another.

    Args:
        image_size: a power of two from 8 to 1024.
        channels: 1 or 3.
        base_channels: channels of the last block; doubled at every smaller resolution, to 512.
        latent_dim: length of z and of w.
        mapping_layers: of the mapping network.
        truncation: share of the way from the average w that a style goes; 1 for all of it.
        noise: "fixed" in the prior's buffers, "none", or "redrawn" at every call, which makes
            images depend on more than their latents.
        output: "sigmoid" of the colours, or colours from [-1, 1] "clamp"ed, as published weights
            have it.
        shown_size: height and width to average the images to, as an attack on smaller ones does;
            their own by default.

    Raises:
        PriorError: sizes that cannot be.
    """

    default_space = "w+"

    def __init__(
        self,
        *,
        image_size: int = 32,
        channels: int = 3,
        base_channels: int = 32,
        latent_dim: int = 256,
        mapping_layers: int = 4,
        truncation: float = 1.0,
        noise: Noise = "fixed",
        output: Output = "sigmoid",
        shown_size: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "channels": channels, "base_channels": base_channels, "latent_dim": latent_dim,
            "mapping_layers": mapping_layers,
        }  # fmt: skip
        if any(type(size) is not int or size < 1 for size in sizes.values()):
            raise PriorError(
                f"expected {', '.join(sizes)} as whole numbers above 0, got "
                f"{', '.join(f'{name} {size}' for name, size in sizes.items())}; mend the settings"
            )
        if noise not in get_args(Noise) or output not in get_args(Output):
            raise PriorError(
                f"expected noise {', '.join(get_args(Noise))} and output "
                f"{', '.join(get_args(Output))}, got {noise} and {output}; mend the settings"
            )
        if shown_size is not None and not (
            type(shown_size) is int and 1 <= shown_size <= image_size
        ):
            raise PriorError(
                f"expected images to be averaged to at most their own {image_size} pixels, got "
                f"{shown_size}; choose a smaller --image-size"
            )
        if not 0 <= truncation <= 1:
            raise PriorError(
                f"expected a truncation from 0 to 1, got {truncation}; take 1 for none"
            )
        self.mapping = Mapping(latent_dim, latent_dim, mapping_layers)
        self.synthesis = Synthesis(image_size, channels, base_channels, latent_dim)
        self.latent_shape = (latent_dim,)
        shown = shown_size or image_size
        self.image_shape = (channels, shown, shown)
        self.image_size, self.shown_size = image_size, shown_size
        self.base_channels, self.mapping_layers = base_channels, mapping_layers
        self.truncation, self.noise, self.output = truncation, noise, output

    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "image_size": self.image_size,
            "channels": self.image_shape[0],
            "base_channels": self.base_channels,
            "latent_dim": self.latent_shape[0],
            "mapping_layers": self.mapping_layers,
            "truncation": self.truncation,
            "noise": self.noise,
            "output": self.output,
            **({} if self.shown_size is None else {"shown_size": self.shown_size}),
        }

    @property
    def layers(self) -> int:
        """How many styles an image has."""
        return self.synthesis.layers

    def styles(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch style"]:
        """Returns the w of every z, truncated."""
        w = self.mapping(z)
        if self.truncation < 1:
            w = torch.lerp(self.mapping.average.to(w), w, self.truncation)
        return w

    def bounded(
        self, colors: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel shown_height shown_width"]:
        """Returns the images in [0, 1] that the colours of the synthesis network stand for."""
        images = (
            torch.sigmoid(colors) if self.output == "sigmoid" else (colors / 2 + 0.5).clamp(0, 1)
        )
        return images if self.shown_size is None else F.adaptive_avg_pool2d(images, self.shown_size)

    def forward(
        self, z: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns images in [0, 1]."""
        w = self.styles(z)[:, None].expand(-1, self.layers, -1)
        return self.bounded(self.synthesis(w, self.noise))

    def latent_space(self, name: str) -> Generator:
        """Returns the generator from z, w (one style), w+ (one a layer) or w+n (the noise too).

        Raises:
            PriorError: another name.
        """
        # Imported here: what it holds is made from this class.
        from gradinv.priors.stylegan2.latents import SPACES, LayeredLatents

        if name == "z":
            return self
        if name not in SPACES:
            raise PriorError(
                f"expected latents of stylegan2, z, {', '.join(SPACES)}, got '{name}'; take one"
            )
        return LayeredLatents(self, name)
