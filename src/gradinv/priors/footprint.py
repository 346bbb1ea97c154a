"""What a prior takes of memory, before any is taken."""

import math

from gradinv.errors import ConfigError
from gradinv.models.footprint import memory_of, outputs_bytes, weights_bytes
from gradinv.priors.dcgan import DCGAN, Discriminator, without_memory
from gradinv.priors.gan import TrainingConfig
from gradinv.room import require_room

# Weights, gradient and Adam's two moments of both networks, and the average of the generator's.
_COPIES_TRAINED, _COPIES_AVERAGED = 4, 1
# A layer's output and its gradient.
_COPIES_OF_OUTPUTS = 2


def require_training_fits(
    config: TrainingConfig, images: int, image_shape: tuple[int, int, int], device_type: str
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
    sizes = {
        "image_size": image_shape[1],
        "channels": image_shape[0],
        "base_channels": config.base_channels,
    }
    generator = without_memory(DCGAN, **sizes, latent_dim=config.latent_dim)
    judge = without_memory(Discriminator, **sizes, spectral_norm=False)
    needed = _COPIES_TRAINED * (weights_bytes(generator) + weights_bytes(judge))
    needed += _COPIES_AVERAGED * weights_bytes(generator)
    needed += _COPIES_OF_OUTPUTS * outputs_bytes(judge, (config.batch_size, *image_shape))
    there, whose = memory_of(device_type)
    lower = "--batch-size, --base-channels, --latent or --image-size"
    require_room(needed, "a training", lower, ConfigError, there=there, whose=whose)
