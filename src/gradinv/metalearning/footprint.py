"""What a learning of a prior holds of memory at least, told before its first step."""

import math

import torch

from gradinv.errors import ConfigError
from gradinv.metalearning.learner import LearningConfig
from gradinv.metalearning.tasks import TaskSet
from gradinv.models.footprint import memory_of, outputs_bytes, weights_bytes
from gradinv.priors import Generator
from gradinv.room import require_room

# The weights, those before a step and after it, their gradient and the two moments of the inner
# Adam; those of the last finished step.
_COPIES_OF_WEIGHTS = 6 + 1
# The images of a step, their costs' gradient, and what the layers of the generator put out.
_COPIES_OF_IMAGES = 2
# Every image's latent and its two moments, and those of the last finished step.
_COPIES_OF_LATENTS = 6


def require_learning_fits(
    tasks: TaskSet, prior: Generator, config: LearningConfig, device: torch.device
) -> None:
    """Checks that a learning can fit into memory; a lower bound.

    Args:
        tasks: the updates.
        prior: what is learned, where it starts.
        config: how.
        device: where to compute.

    Raises:
        ConfigError: it cannot.
    """
    # Those with the fewest images: a lower bound.
    step = sum(sorted(task.batch_size for task in tasks.tasks)[: config.tasks])
    each = outputs_bytes(prior, (1, *prior.latent_shape))
    each += _COPIES_OF_IMAGES * 4 * math.prod(tasks.image_shape)
    needed = _COPIES_OF_WEIGHTS * weights_bytes(prior) + step * each
    needed += _COPIES_OF_LATENTS * 4 * math.prod(prior.latent_shape) * tasks.images
    there, whose = memory_of(device)
    lower = "the updates of a step (--tasks), or the prior's size (--base-channels, --latent)"
    require_room(needed, "a learning", lower, ConfigError, there=there, whose=whose)
