"""The residual discriminator of StyleGAN2 (Karras et al. 2020, section 4.1)."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from gradinv.priors.dcgan import MinibatchStd
from gradinv.priors.stylegan2.generator import widths
from gradinv.priors.stylegan2.layers import EqualConv, EqualLinear, leaky


class Residual(nn.Module):
    """Two convolutions, the second halving the size, beside a 1x1 convolution.

    Args:
        inputs: channels in.
        outputs: channels out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.same = EqualConv(inputs, inputs, 3)
        self.down = EqualConv(inputs, outputs, 3, down=True)
        self.skip = EqualConv(inputs, outputs, 1, down=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features of half the size."""
        return (leaky(self.down(leaky(self.same(x)))) + self.skip(x)) / math.sqrt(2)


class StyleDiscriminator(nn.Module):
    """Images to scores.

    Args:
        image_size: a power of two from 8 to 1024.
        channels: 1 or 3.
        base_channels: channels at the image's size; doubled at every smaller one, to 512.
    """

    def __init__(self, *, image_size: int, channels: int, base_channels: int) -> None:
        super().__init__()
        of = widths(image_size, base_channels)
        self.colors = EqualConv(channels, of[image_size], 1)
        sizes = list(reversed(of))
        self.blocks = nn.Sequential(*(Residual(of[size], of[size // 2]) for size in sizes[:-1]))
        self.spread = MinibatchStd()
        self.last = EqualConv(of[4] + 1, of[4], 3)
        self.hidden = EqualLinear(of[4] * 16, of[4])
        self.score = EqualLinear(of[4], 1)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch"]:
        """Returns scores; larger means more real. Pixels are taken in [0, 1]."""
        x = self.blocks(leaky(self.colors(2 * x - 1)))
        x = leaky(self.last(self.spread(x)))
        return self.score(leaky(self.hidden(x.flatten(1)))).flatten()
