"""The velocity field: a U-Net with group normalisation that is told the time."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_GROUP = 8
_WIDTHS = (1, 2, 2)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(_GROUP, channels), channels)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Starts a layer at zero, so that what it is added to is left alone at first."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def time_features(t: Float[Tensor, " batch"], size: int) -> Float[Tensor, "batch size"]:
    """Returns sines and cosines of t at frequencies from 1 to 1,000 (Vaswani et al. 2017)."""
    steps = torch.arange(size // 2, device=t.device, dtype=t.dtype) / max(1, size // 2 - 1)
    angles = t[:, None] * 1000**steps
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """Two convolutions around a skip; the time scales and shifts in between.

    Args:
        inputs: channels in.
        outputs: channels out.
        time: length of the embedded time.
    """

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.before = _norm(inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, 2 * outputs)
        self.between = _norm(outputs)
        self.second = _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Float[Tensor, "batch time"]) -> Tensor:
        """Returns the features of the next layer."""
        h = self.first(F.silu(self.before(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        h = self.second(F.silu(self.between(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Every place looks at every other: what holds an image together.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = _norm(channels)
        self.queries = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Tensor:
        """Returns the features with what was seen added."""
        query, key, value = self.queries(self.before(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        seen = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(seen.transpose(1, 2).reshape(x.shape))


class UNet(nn.Module):
    """Halves the size twice and back; attention at a quarter of it.

    Args:
        channels: of the image.
        base_channels: of the features at the image's size; twice as many below.
    """

    def __init__(self, channels: int, base_channels: int) -> None:
        super().__init__()
        widths = [base_channels * factor for factor in _WIDTHS]
        time = 4 * base_channels
        self.embedding = nn.Sequential(
            nn.Linear(base_channels, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU()
        )
        self.features = base_channels
        self.start = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.halve = nn.ModuleList(), nn.ModuleList()
        previous = widths[0]
        for width in widths:
            self.down.append(Block(previous, width, time))
            self.halve.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
            previous = width
        # The last level is not halved: it is the bottom.
        del self.halve[-1]
        self.middle = Block(previous, previous, time)
        self.attention = Attention(previous)
        self.up = nn.ModuleList()
        for width in reversed(widths):
            self.up.append(Block(previous + width, width, time))
            previous = width
        self.end = nn.Sequential(
            _norm(previous), nn.SiLU(), _zero(nn.Conv2d(previous, channels, 3, padding=1))
        )

    def forward(
        self, x: Float[Tensor, "batch channel height width"], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns the velocity at x and time t in [0, 1]."""
        time = self.embedding(time_features(t, self.features))
        h, kept = self.start(x), []
        for level, block in enumerate(self.down):
            h = block(h, time)
            kept.append(h)
            if level < len(self.halve):
                h = self.halve[level](h)
        h = self.attention(self.middle(h, time))
        for level, block in enumerate(self.up):
            if level:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
            h = block(torch.cat([h, kept.pop()], dim=1), time)
        return self.end(h)
