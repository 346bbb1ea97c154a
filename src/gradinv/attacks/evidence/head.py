"""The last linear layer of a network, found by what it computes and never by its position."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from gradinv.errors import AttackError
from gradinv.federated.client import logits

# Sides of the random grids that are enlarged to smooth images: from two halves to fine texture.
_GRIDS = (2, 4, 8)


@dataclass(frozen=True, eq=False)
class Head:
    """z = W h + b, the layer whose output is the logits, and what random images make of it.

    Attributes:
        name: of the module.
        weight: W.
        bias: b; None for a layer without one.
        features: h of the images that were sent through the network.
    """

    name: str
    weight: Float[Tensor, "class feature"]
    bias: Float[Tensor, " class"] | None
    features: Float[Tensor, "image feature"]

    @property
    def weight_name(self) -> str:
        """Name of the parameter W."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def bias_name(self) -> str:
        """Name of the parameter b."""
        return f"{self.name}.bias" if self.name else "bias"


@torch.no_grad()
def find_head(model: nn.Module, images: Float[Tensor, "image channel height width"]) -> Head:
    """Returns the linear layer whose output is the network's output.

    Sends the images through the network, in its mode, and compares what every linear layer returns
    with what the network returns.

    Raises:
        AttackError: no linear layer's output is the logits, or it gets more than one vector for
            each image.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        module.register_forward_hook(_recorder(seen, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        output = logits(model, images)
    finally:
        for handle in handles:
            handle.remove()
    # A view of the layer's output, such as a flattened one, lies at the same place in memory.
    name = next(
        (
            name
            for name, (features, result) in seen.items()
            if result.data_ptr() == output.data_ptr()
            and result.numel() == output.numel()
            and features.ndim == 2
        ),
        None,
    )
    if name is None:
        raise AttackError(
            "expected a network that ends in a linear layer whose output is the logits, got "
            f"{', '.join(seen) or 'no linear layer'} with something behind it; take what follows "
            "the layer out of forward (a softmax belongs into the loss), or reveal the labels"
        )
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    bias = None if layer.bias is None else layer.bias.detach()
    return Head(name, layer.weight.detach(), bias, seen[name][0])


def _recorder(
    seen: dict[str, tuple[Tensor, Tensor]], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = (inputs[0], output)

    return record


def random_images(
    count: int, image_shape: tuple[int, int, int], source: torch.Generator
) -> Float[Tensor, "image channel height width"]:
    """Returns images in [0, 1], half of them uniform noise, half smooth with texture of all scales.

    What a server without data can ask its network about: noise alone would excite the filters of
    fine detail only.
    """
    channels, height, width = image_shape
    noise = torch.rand((count - count // 2, channels, height, width), generator=source)
    smooth = torch.zeros((count // 2, channels, height, width))
    for side in _GRIDS:
        grid = torch.randn((count // 2, channels, side, side), generator=source)
        smooth += functional.interpolate(grid, size=(height, width), mode="bilinear")
    return torch.cat([noise, (0.5 + 0.35 * smooth).clamp(0, 1)])
