"""What a prior takes of memory, before any is taken."""

import math
from collections.abc import Callable

from torch import nn

from gradinv.errors import ConfigError, PriorError
from gradinv.models.footprint import memory_of, on_meta, outputs_bytes, weights_bytes
from gradinv.priors.trainer import Settings
from gradinv.room import require_room

# Weights, gradient and Adam's two moments of both networks, and the average of the generator's.
_COPIES_TRAINED, _COPIES_AVERAGED = 4, 1
# A layer's output and its gradient.
_COPIES_OF_OUTPUTS = 2


def without_memory(kind: Callable[..., nn.Module], **sizes: int) -> nn.Module:
    """Returns a network without memory.

    Raises:
        PriorError: the number of its elements does not fit into 64 bits.
    """
    try:
        return on_meta(kind, **sizes)
    except (RuntimeError, OverflowError) as error:
        asked = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise PriorError(
            f"expected a prior whose size can be counted, got one of {asked}; lower them"
        ) from error


def training_bytes(generator: nn.Module, judge: nn.Module | None, shape: tuple[int, ...]) -> int:
    """Returns the bytes that a training takes at least.

    Args:
        generator: what is trained and averaged.
        judge: what is trained beside it, if anything; what sees ``shape``.
        shape: of a batch of images.
    """
    needed = (_COPIES_TRAINED + _COPIES_AVERAGED) * weights_bytes(generator)
    if judge is not None:
        needed += _COPIES_TRAINED * weights_bytes(judge)
        needed += _COPIES_OF_OUTPUTS * outputs_bytes(judge, shape)
    return needed


def require_training_fits(
    config: Settings, images: int, image_shape: tuple[int, int, int], device_type: str
) -> None:
    """Checks that a training can fit into memory; a lower bound.

    Args:
        config: how to train.
        images: how many there are.
        image_shape: of each.
        device_type: where to train. The images are decoded on this machine in any case.

    Raises:
        ConfigError: it cannot.
    """
    pixels = images * math.prod(image_shape)
    require_room(pixels, "a set of images", "--image-size or the number of images", ConfigError)
    needed = config.footprint(image_shape)
    there, whose = memory_of(device_type)
    lower = "--batch-size, --base-channels, --latent or --image-size"
    require_room(needed, "a training", lower, ConfigError, there=there, whose=whose)
