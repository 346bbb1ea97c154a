"""The last linear layer of a network, found by what it computes and never by its position."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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
        alone: whether the gradient of W and b is of this use of them alone; where they are used
            elsewhere too it proves nothing.
    """

    name: str
    weight: Float[Tensor, "class feature"]
    bias: Float[Tensor, " class"] | None
    features: Float[Tensor, "image feature"]
    alone: bool

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
    seen: dict[str, list[_Call]] = {}
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
            for name, calls in seen.items()
            if calls[-1].output.data_ptr() == output.data_ptr()
            and calls[-1].returned.numel() == output.numel()
            # What is done to it in place leaves it where it is.
            and torch.equal(calls[-1].returned.flatten(), output.flatten())
            and calls[-1].features.ndim == 2
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
    alone = _alone(model, layer, len(seen[name]))
    return Head(name, layer.weight.detach(), bias, seen[name][-1].features, alone)


def _alone(model: nn.Module, layer: nn.Linear, calls: int) -> bool:
    """Whether the layer is called once, and no other module has its weight or its bias."""
    own = {id(value) for value in layer.parameters(recurse=False)}
    others = [module for module in model.modules() if module is not layer]
    shared = any(id(value) in own for other in others for value in other.parameters(recurse=False))
    return calls == 1 and not shared


class _Call(NamedTuple):
    """One call of a layer.

    Attributes:
        features: that went in.
        output: that came out, in its memory.
        returned: a copy of it.
    """

    features: Tensor
    output: Tensor
    returned: Tensor


def _recorder(
    seen: dict[str, list[_Call]], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.setdefault(name, []).append(_Call(inputs[0], output, output.clone()))

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
