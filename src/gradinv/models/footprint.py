"""What a network takes of memory, found on PyTorch's ``meta`` device, which takes none."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradinv import room
from gradinv.errors import GradinvError, ModelError
from gradinv.room import require_room

# Weights, the update and the gradient that is compared with it; a layer's output and its gradient.
_COPIES_OF_WEIGHTS, _COPIES_OF_OUTPUTS = 3, 2


def on_meta(factory: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    """Builds a network of our own without memory for its tensors."""
    with torch.device("meta"):
        return factory(**arguments)


def weights_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters and buffers."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(value.numel() * value.element_size() for value in tensors)


def _ghost(model: nn.Module) -> nn.Module:
    """Returns a copy on the meta device, without one in memory on the way there."""
    tensors: dict[int, Any] = {id(value): value.to("meta") for value in model.buffers()}
    for value in model.parameters():
        tensors[id(value)] = nn.Parameter(value.detach().to("meta"), requires_grad=False)
    # What deepcopy has seen already it takes from here.
    return copy.deepcopy(model, tensors).to("meta")


def outputs_bytes(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Returns the bytes of what the layers put out for images of a shape.

    A foreign network may do what the meta device cannot, such as to look at a value, or refuse to
    be copied; of that one only the images count.
    """
    total = 4 * math.prod(shape)
    sizes: list[int] = []

    def add(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    try:
        ghost = _ghost(model)
        for layer in ghost.modules():
            if not any(True for _ in layer.children()):
                layer.register_forward_hook(add)
        with torch.no_grad():
            ghost(torch.empty(shape, device="meta"))
    except Exception:  # foreign code, which may raise anything; real images tell it in time
        return total
    return total + sum(sizes)


def required_bytes(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Returns the bytes that an attack on a batch of a shape needs at least: with one restart."""
    needed = _COPIES_OF_WEIGHTS * weights_bytes(model)
    return needed + _COPIES_OF_OUTPUTS * outputs_bytes(model, shape)


def require_fits(
    model: nn.Module,
    shape: tuple[int, int, int, int],
    *,
    lower: str,
    error: type[GradinvError] = ModelError,
) -> None:
    """Checks that an attack on a batch can fit into memory.

    A lower bound: one restart (:mod:`gradinv.attacks.footprint` counts all of them). On a graphics
    card its memory counts.

    Args:
        model: the network.
        shape: of the batch of images.
        lower: what to lower.
        error: the class of the error.

    Raises:
        GradinvError: of that class; it cannot.
    """
    needed = required_bytes(model, shape)
    there, whose = memory_of(next(model.parameters()).device)
    require_room(needed, "a batch", lower, error, there=there, whose=whose)


def memory_of(device: torch.device | str) -> tuple[int | float, str]:
    """Returns the bytes of a device's memory, and whose they are; infinite where it does not tell.

    Of a graphics card all of it, whatever others have taken at the moment.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return room.machine_bytes(), "this machine"
    if kind == "cuda":
        return torch.cuda.mem_get_info(device)[1], "this graphics card"
    return math.inf, "this device"
