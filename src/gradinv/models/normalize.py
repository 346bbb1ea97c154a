"""Normalisation as a layer, so that nobody outside a network ever sees its mean and std."""

import math
from collections.abc import Callable, Sequence
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.errors import ModelError


class Normalize(nn.Module):
    """(x - mean) / std, channel by channel; x in [0, 1].

    Args:
        mean: one value for each channel.
        std: one positive value for each channel.
        buffers: keep both as buffers, which stand in the network's state. Without them the layer
            has no state, and adds no name to that of a network that it belongs to.

    Raises:
        ModelError: the lengths differ, or a value is not finite or a std not positive.
    """

    mean: Float[Tensor, "channel 1 1"]
    std: Float[Tensor, "channel 1 1"]

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, buffers: bool = True
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ModelError(
                f"expected one mean and one std for each channel, got {len(mean)} means and "
                f"{len(std)} stds; give as many as the images have channels"
            )
        if not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
            raise ModelError(
                f"expected finite means and positive stds, got mean {list(mean)} and std "
                f"{list(std)}; give those of the training images in [0, 1]"
            )
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
            if buffers:
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Normalize":
        """Moves or converts the values, which torch does for buffers alone."""
        super()._apply(fn, recurse)
        if not self._buffers:
            self.mean, self.std = fn(self.mean), fn(self.std)
        return self

    @no_type_check  # torch.fx hands in proxies, which the tests' shape checks would refuse
    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns the normalised images."""
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        """Shows the values in ``print(model)``."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def normalization_of(model: nn.Module) -> Normalize | None:
    """Returns the first :class:`Normalize` in the module tree, or None when there is none.

    Published learning rates and total-variation weights live in normalised pixel space
    ((x - mean) / std), so a search over pixels asks for this layer.
    """
    return next((module for module in model.modules() if isinstance(module, Normalize)), None)
