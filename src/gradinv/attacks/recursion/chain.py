"""A network as a chain of layers, each of which can be undone: what R-GAP can take apart."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gradinv.errors import AttackError
from gradinv.models.normalize import Normalize
from gradinv.models.tracer import Tracer

LARGEST = 8192
"""Most inputs of a convolution: its linear system is dense."""
_EDGE = 1e-7  # the inverse of a saturated sigmoid is infinite


@dataclass(frozen=True, eq=False)
class Link:
    """One layer, at one image.

    Attributes:
        name: of the module.
        layer: the module; reshaping has none.
        entering: shape of what enters it, without the batch.
    """

    name: str
    layer: nn.Module | None
    entering: tuple[int, ...]

    @property
    def inputs(self) -> int:
        """How many numbers enter it."""
        return math.prod(self.entering)


def chain_of(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Link, ...]:
    """Returns the layers in the order in which one image passes them.

    Raises:
        AttackError: the network is no chain, or some of its layers cannot be undone; each is named
            with the reason.
    """
    try:
        graph = Tracer().trace(model)
    except Exception as error:  # tracing runs foreign code, which may raise anything
        raise _refusal([f"a network that torch.fx cannot trace ({error})"]) from error
    problems: list[str] = []
    steps: list[tuple[str, nn.Module | None]] = []
    used: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in {"placeholder", "output"}:
            continue
        name, layer = _layer_of(node, model)
        reason = _why_not(node, layer)
        if reason is not None:
            problems.append(f"{name} ({reason})")
        used[name] = used.get(name, 0) + 1
        if layer is not None and used[name] > 1:
            problems.append(f"{name} (used more than once)")
        steps.append((name, layer))
    if problems:
        raise _refusal(problems)
    links = _shaped(steps, next(model.parameters()), image_shape)
    large = [
        f"{link.name} with {link.inputs} inputs (at most {LARGEST})"
        for link in links
        if isinstance(link.layer, nn.Conv2d) and link.inputs > LARGEST
    ]
    if large:
        raise _refusal(large)
    if not isinstance(links[-1].layer, nn.Linear):
        raise _refusal([f"{links[-1].name} at its end"])
    return links


def _refusal(problems: list[str]) -> AttackError:
    return AttackError(
        "expected a plain chain of convolutions, linear layers and strictly monotone activations "
        f"that ends in a linear layer for r-gap, got {', '.join(problems)}; attack with gi-x or "
        "gi-z/w, which take any network, or audit --model leakynet"
    )


def _layer_of(node: fx.Node, model: nn.Module) -> tuple[str, nn.Module | None]:
    if node.op == "call_module":
        return str(node.target), model.get_submodule(str(node.target))
    target: Any = node.target
    return (target if isinstance(target, str) else getattr(target, "__name__", str(target))), None


def _why_not(node: fx.Node, layer: nn.Module | None) -> str | None:
    """Returns what keeps a step from being undone, or None."""
    if len(node.all_input_nodes) != 1 or len(node.users) != 1:
        return "a branch or a shortcut: its parts cannot be told apart"
    if layer is None:
        flattens = node.target in {"flatten", torch.flatten}
        return None if flattens else "an operation outside a layer"
    return _why_not_layer(layer)


def _why_not_layer(layer: nn.Module) -> str | None:
    kind = type(layer).__name__
    if isinstance(layer, _BatchNorm):
        live = layer.training or layer.running_mean is None
        return "batch norm in train mode mixes all positions" if live else None
    if isinstance(layer, _DropoutNd):
        return "dropout in train mode removes what cannot be rebuilt" if layer.training else None
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return None if plain and isinstance(layer.padding, tuple) else "no plain convolution"
    if "Pool" in kind:
        return f"{kind} pools: several inputs share an output"
    if isinstance(layer, nn.ReLU | nn.ReLU6):
        return f"{kind} is not strictly monotone: negative inputs are lost"
    if isinstance(layer, nn.LeakyReLU) and layer.negative_slope <= 0:
        return "LeakyReLU without a positive slope"
    known = (nn.Linear, nn.Flatten, nn.Identity, Normalize, nn.LeakyReLU, nn.Sigmoid, nn.Tanh)
    return None if isinstance(layer, known) else f"{kind} has no rule"


@torch.no_grad()
def _shaped(
    steps: list[tuple[str, nn.Module | None]], like: Tensor, image_shape: tuple[int, int, int]
) -> tuple[Link, ...]:
    x = like.new_zeros((1, *image_shape))
    links = []
    for name, layer in steps:
        links.append(Link(name, layer, tuple(x.shape[1:])))
        x = x.flatten(1) if layer is None else layer(x)
    return tuple(links)


def undo(link: Link, leaving: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what entered a layer that only maps or reshapes, and dl/d of it.

    Args:
        link: an activation, batch norm in eval mode, normalisation or reshaping.
        leaving: what left it, of one image.
        slope: dl/d leaving.
    """
    layer = link.layer
    leaving, slope = leaving.reshape(link.entering), slope.reshape(link.entering)
    if isinstance(layer, nn.LeakyReLU):
        factor = torch.where(leaving < 0, layer.negative_slope, 1.0).to(leaving)
        return leaving / factor, slope * factor
    if isinstance(layer, nn.Sigmoid):
        inside = leaving.clamp(_EDGE, 1 - _EDGE)
        return torch.logit(inside), slope * inside * (1 - inside)
    if isinstance(layer, nn.Tanh):
        inside = leaving.clamp(_EDGE - 1, 1 - _EDGE)
        return torch.atanh(inside), slope * (1 - inside.square())
    if isinstance(layer, _BatchNorm | Normalize):
        scale, shift = _affine(layer, leaving)
        return (leaving - shift) / scale, slope * scale
    return leaving, slope


def _affine(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns scale and shift of a layer that maps each channel by x -> scale x + shift."""
    if isinstance(layer, Normalize):
        std = layer.std.to(like)
        return 1 / std, -layer.mean.to(like) / std
    assert isinstance(layer, _BatchNorm)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = (layer.running_var.to(like) + layer.eps).rsqrt()
    shift = -layer.running_mean.to(like) * scale
    if layer.affine:
        weight, bias = layer.weight.detach().to(like), layer.bias.detach().to(like)
        scale, shift = scale * weight, shift * weight + bias
    shape = (-1, *[1] * (like.ndim - 1))
    return scale.reshape(shape), shift.reshape(shape)
