"""What a checkpoint must have in common with the run that goes on from it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradinv.attacks.attack import Attack
from gradinv.federated.observation import Observation
from gradinv.models.weights import fingerprint
from gradinv.priors.generator import Generator


def run_identity(
    observation: Observation, attack: Attack, seed: int, prior: Generator | None
) -> dict[str, Any]:
    """Returns attack, update and all that is known beside it, prior and seed, each as a digest."""
    settings = json.dumps(replace(attack, reference="").describe(), sort_keys=True)
    statistics = observation.bn_statistics or {}
    return {
        "attack": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "update": _digest(observation.gradient),
        "labels": _digest({} if observation.labels is None else {"labels": observation.labels}),
        "order": None if observation.order is None else [list(own) for own in observation.order],
        "statistics": _digest({
            f"{name} {part}": value
            for name, own in statistics.items()
            for part, value in (("mean", own.mean), ("var", own.var))
        }),
        "prior": None if prior is None else fingerprint(prior),
        "seed": seed,
    }  # fmt: skip


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns 16 hex characters that tell one set of tensors from another."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode())
        # Its bytes, since numpy does not know every type.
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
