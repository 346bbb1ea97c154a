"""The architectures that can be trained on images, by the names that the command line knows."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gradinv.errors import ConfigError
from gradinv.priors.flow import FlowConfig
from gradinv.priors.gan import TrainingConfig
from gradinv.priors.stylegan2 import StyleGAN2Config
from gradinv.priors.trainer import Settings

TRAINED: Mapping[str, type[Settings]] = {
    settings.architecture: settings for settings in (TrainingConfig, StyleGAN2Config, FlowConfig)
}


def training_settings(architecture: str, given: Mapping[str, Any]) -> Settings:
    """Returns how to train an architecture; its own defaults stand where nothing is given.

    Args:
        architecture: one of :data:`TRAINED`.
        given: settings by name.

    Raises:
        ConfigError: settings that this architecture does not have, or values without a meaning.
    """
    kind = TRAINED[architecture]
    known = {field.name for field in fields(kind)}
    foreign = [name for name in given if name not in known]
    if foreign:
        others = [
            name
            for name, other in TRAINED.items()
            if {field.name for field in fields(other)}.issuperset(foreign)
        ]
        raise ConfigError(
            f"expected settings that {architecture} has, got {', '.join(foreign)}; leave "
            f"{'it' if len(foreign) == 1 else 'them'} out, or train "
            f"{' or '.join(others) or 'another architecture'}"
        )
    return kind(**given)
