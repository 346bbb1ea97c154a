"""Normalisation that a client does before its network, so that no name in the network changes.

A layer in front would rename every parameter, and the weights that a company has would no longer
load. So the network gets another forward pass and keeps everything else.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

from torch import nn

from gradinv.errors import ModelError
from gradinv.models.normalize import Normalize, normalization_of

_NAME = "outside_normalization"
Network = TypeVar("Network", bound=nn.Module)


def normalized_outside(model: Network, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Returns the network of images in [0, 1] that normalises them and then does what it did.

    f(x) = model((x - mean) / std). What is returned shares layers, parameters and buffers with
    ``model``, under the same names, and is of a subclass of its class; ``model`` itself goes on
    taking normalised images. The normalisation has no parameter and no buffer. It is in
    ``modules()``, so that it is found by :func:`~gradinv.models.normalize.normalization_of` and
    traced as one layer, and it moves with the network to another device or type.

    Args:
        model: takes normalised images.
        mean: one value for each channel.
        std: one positive value for each channel.

    Raises:
        ModelError: mean and std are none, or the network normalises by itself, or its forward pass
            is no method of its class.
    """
    normalize = Normalize(mean, std, buffers=False)
    own = normalization_of(model)
    if own is not None:
        raise ModelError(
            "expected a network that takes normalised images with --mean and --std, got one that "
            f"normalises by itself ({own}); leave --mean and --std out, or take its layer out"
        )
    # A forward that an instance has of its own (as a compiled network has) hides that of its class.
    if "forward" in vars(model) or _is_script(model):
        raise ModelError(
            f"expected a network whose forward is a method of its class, got a "
            f"{type(model).__name__} that was compiled or patched; normalise before that is done"
        )
    outside = copy.copy(model)
    object.__setattr__(outside, "__class__", _subclass(type(model)))
    # Not as a submodule: a Sequential would take it for one of its layers, and a state_dict too.
    object.__setattr__(outside, _NAME, normalize)
    return outside


def _is_script(model: nn.Module) -> bool:
    return type(model).__module__.startswith("torch.jit")


@cache
def _subclass(base: type[nn.Module]) -> type[nn.Module]:
    """Returns the class of networks that normalise and then are what they were."""

    def forward(self: Any, images: Any) -> Any:
        return base.forward(self, getattr(self, _NAME)(images))

    def named_modules(
        self: Any, memo: Any = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        # Straight after the network itself, before any layer of its own.
        for place, found in enumerate(base.named_modules(self, memo, prefix, remove_duplicate)):
            yield found
            if place == 0:
                yield f"{prefix}.{_NAME}" if prefix else _NAME, getattr(self, _NAME)

    def apply_(self: Any, fn: Any, recurse: bool = True) -> Any:
        getattr(self, _NAME)._apply(fn, recurse)
        return base._apply(self, fn, recurse)

    def reduce_ex(self: Any, protocol: Any) -> Any:
        # A class that is made while a program runs cannot be found by its name in another process.
        made = base.__reduce_ex__(self, protocol)
        return (_blank, (base,), *made[2:])

    return type(
        base.__name__,
        (base,),
        {
            "forward": forward,
            "named_modules": named_modules,
            "_apply": apply_,
            "__reduce_ex__": reduce_ex,
            "__module__": base.__module__,
            "__doc__": base.__doc__,
        },
    )


def _blank(base: type[nn.Module]) -> nn.Module:
    made = _subclass(base)
    return made.__new__(made)
