"""The layers of StyleGAN2: equalised weights, modulated convolutions, smooth resampling.

Weights are stored with unit variance and scaled where they are used ("equalised learning rate",
Karras et al. 2018), so that Adam moves all of them by the same share of their size.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_TAPS = (1.0, 3.0, 3.0, 1.0)


def wide(x: Tensor) -> Tensor:
    """Returns x in single precision where it has less, as under autocast."""
    return x.float() if x.dtype in {torch.bfloat16, torch.float16} else x


def leaky(x: Tensor) -> Tensor:
    """Returns leaky ReLU with slope 0.2, scaled to keep the second moment."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def blur(x: Float[Tensor, "batch channel height width"], *, padding: int) -> Tensor:
    """Returns x filtered with the outer product of [1, 3, 3, 1] / 8, zeros around it.

    [1, 3, 3, 1] is [1, 1] three times over itself: three means of 2 x 2 pixels, which is several
    times as fast as a convolution of each channel by itself.

    Args:
        x: images or features.
        padding: zeros at every side; the result is 2 * padding - 3 pixels larger.
    """
    x = F.pad(x, (padding,) * 4)
    for _ in range(len(_TAPS) - 1):
        x = F.avg_pool2d(x, 2, stride=1)
    return x


def upsampled(x: Float[Tensor, "batch channel height width"]) -> Tensor:
    """Returns x at twice the size: a zero after every pixel, then four times the blur."""
    batch, channel, height, width = x.shape
    spread = F.pad(x[..., :, None, :, None], (0, 1, 0, 0, 0, 1))
    spread = spread.reshape(batch, channel, 2 * height, 2 * width)
    # One zero already stands after the last pixel; the filter wants two before and one after.
    return 4 * blur(F.pad(spread, (1, 0, 1, 0)), padding=1)


class EqualLinear(nn.Module):
    """A linear layer with equalised weights.

    Args:
        inputs: features in.
        outputs: features out.
        bias: starting value of the bias.
        rate: factor on weights and bias where they are used, and so on how fast they learn.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.rate = rate
        self.gain = rate / math.sqrt(inputs)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """Returns W x + b."""
        return F.linear(x, self.weight * self.gain, self.bias * self.rate)


class EqualConv(nn.Module):
    """A convolution with equalised weights that keeps the size, or halves it after a blur.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the kernel, odd.
        down: halve height and width.
        bias: whether there is one.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, down: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain = 1 / math.sqrt(inputs * kernel**2)
        self.kernel, self.down = kernel, down

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Tensor:
        """Returns the convolution."""
        weight = self.weight * self.gain
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.kernel // 2)
        return F.conv2d(blur(x, padding=1 + self.kernel // 2), weight, self.bias, stride=2)


class ModulatedConv(nn.Module):
    """A convolution whose kernel is scaled by the style of each image (Karras et al. 2020, 2.2).

    The kernel s_i w_oik of equation 1 is never formed. A convolution is linear: scaling its input
    channels by s and its output channels by the demodulation of equation 3,
    1 / sqrt(sum_ik (s_i w_oik)^2), is the same, with one kernel for all images of a batch.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the kernel, odd.
        style: length of w.
        demodulate: scale the output to unit variance.
        up: double height and width.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style: int,
        *,
        demodulate: bool = True,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.affine = EqualLinear(style, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.gain = 1 / math.sqrt(inputs * kernel**2)
        self.kernel, self.demodulate, self.up = kernel, demodulate, up

    def forward(
        self, x: Float[Tensor, "batch inputs height width"], w: Float[Tensor, "batch style"]
    ) -> Tensor:
        """Returns the modulated convolution of every image with its own style."""
        style = self.affine(w)
        weight = self.weight * self.gain
        x = x * style[:, :, None, None].to(x.dtype)
        if self.up:
            # Zeros between the pixels, the kernel, then the blur: the order of the published code.
            x = 4 * blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), padding=1)
        else:
            x = F.conv2d(x, weight, padding=self.kernel // 2)
        if not self.demodulate:
            return x
        energy = wide(style).square() @ weight.square().sum(dim=(2, 3)).T
        return x * (energy + 1e-8).rsqrt()[:, :, None, None].to(x.dtype)
