"""What the starts of an attack take of memory, before they take it."""

import math

import torch

from gradinv.attacks.attack import Attack
from gradinv.attacks.search.spaces import OfGenerator
from gradinv.errors import AttackError
from gradinv.federated.observation import Observation
from gradinv.models.footprint import memory_of, weights_bytes
from gradinv.priors.generator import Generator
from gradinv.room import require_room

_FLOAT = 4
_COPIES_OF_IMAGES = 2  # the point shown as pictures, and dc/dx
_COPIES_OF_POINT = 4  # the point, its gradient and Adam's two moments


def require_starts_fit(
    attack: Attack, observation: Observation, prior: Generator | None, device: torch.device | str
) -> None:
    """Checks that all starts of an attack can lie in memory side by side.

    A lower bound: what is searched and the pictures. What a network computes for them is taken a
    few starts at a time.

    Args:
        attack: with its settings resolved.
        observation: the update that is attacked.
        prior: the generator, for attacks that search one.
        device: to compute on.

    Raises:
        AttackError: they cannot.
    """
    restarts, needed = attack.restarts, 0
    image = _FLOAT * math.prod(observation.image_shape)
    for stage in attack.stages:
        point = image
        if isinstance(stage.space, OfGenerator) and prior is not None:
            latent = _FLOAT * math.prod(prior.latent_shape)
            point = latent + (weights_bytes(prior) if stage.space.weights else 0)
        own = _COPIES_OF_IMAGES * image + _COPIES_OF_POINT * point
        needed = max(needed, restarts * observation.batch_size * own)
        restarts = min(restarts, stage.keep or restarts)
    there, whose = memory_of(device)
    require_room(
        needed,
        f"a search by {attack.name}",
        "restarts or --batch-size",
        AttackError,
        there=there,
        whose=whose,
    )
