"""Numbers that were found by tuning, kept as data beside where they come from.

What suits an update that shows everything does not suit one that shows a part, or one that is full
of noise, or a deeper network: a server sees what it has, and takes the settings of that kind.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any

from torch import nn

from gradinv.attacks.attack import Attack, Stage
from gradinv.attacks.settings.text import with_settings
from gradinv.federated.defense import noise_of
from gradinv.federated.observation import Observation
from gradinv.models.batchnorm import batch_norm_layers
from gradinv.priors.generator import Generator

_SHALLOW = 8  # batch-norm layers: ConvNet has 6, ResNet18 20; nothing between them was tried


class Shown(StrEnum):
    """What an update shows of the gradient; the values are the names in ``tuned.toml``."""

    WHOLE = "whole"
    """All of it."""
    SHALLOW = "shallow"
    """All of it, of a network of few layers with batch norm: total variation is needed least."""
    PART = "part"
    """What a sparsification left of it."""
    TRAIN = "train"
    """All or a part of it, of a network whose batch norm looks at the whole batch."""
    NOISE = "noise"
    """It lies under noise."""

    @classmethod
    def of(cls, observation: Observation, model: nn.Module) -> "Shown":
        """Returns what a server that knows defences and mode can tell of an update."""
        if noise_of(observation.defenses):
            return cls.NOISE
        layers = batch_norm_layers(model)
        if layers and observation.protocol.mode == "train":
            return cls.TRAIN
        if observation.sparsity_mask is not None:
            return cls.PART
        if not layers:
            return cls.WHOLE
        return cls.SHALLOW if len(layers) <= _SHALLOW else cls.WHOLE


@cache
def settings_of(name: str) -> Mapping[str, str]:
    """Returns the settings of an attack, by what an update shows, and the ``published`` ones.

    Empty where none were found. Where they come from stands beside them in ``tuned.toml``.
    """
    text = resources.files("gradinv.attacks.settings").joinpath("tuned.toml").read_text("utf-8")
    return {kind: entry["settings"] for kind, entry in tomllib.loads(text).get(name, {}).items()}


@dataclass(frozen=True)
class Tuned(Attack):
    """An attack with stages for each kind of update; its own are those for a whole gradient.

    Attributes:
        kinds: the stages by what an update shows.
    """

    kinds: tuple[tuple[Shown, tuple[Stage, ...]], ...] = ()

    @classmethod
    def of(cls, attack: Attack) -> "Tuned":
        """Returns an attack with what ``tuned.toml`` has for it."""
        known = settings_of(attack.name)
        kinds = tuple((kind, with_settings(attack, known[kind]).stages) for kind in Shown)
        return cls(**{**_fields(attack), "stages": dict(kinds)[Shown.WHOLE]}, kinds=kinds)

    def resolved(
        self,
        observation: Observation,
        model: nn.Module,
        prior: Generator | None,  # noqa: ARG002 - what standard looks at
    ) -> Attack:
        """Returns the attack with the stages for this update, or its own if they were replaced."""
        stages = dict(self.kinds)
        own = _fields(self)
        if self.stages == stages[Shown.WHOLE]:
            own["stages"] = stages[Shown.of(observation, model)]
        return Attack(**own)

    def changed(self, change: Callable[[Attack], Attack]) -> "Tuned":
        """Returns the attack with a change to the stages of all kinds."""
        plain = Attack(**_fields(self))
        kinds = tuple((k, change(replace(plain, stages=own)).stages) for k, own in self.kinds)
        return Tuned(**_fields(change(plain)), kinds=kinds)

    def scaled(self, factor: float) -> "Tuned":
        """Returns the attack with every stage's steps multiplied."""
        return self.changed(lambda attack: attack.scaled(factor))

    def with_total_variation(self, weights: Sequence[float]) -> "Tuned":
        """Returns the attack with other TV weights."""
        return self.changed(lambda attack: attack.with_total_variation(weights))

    def with_learning_rates(self, rates: Sequence[float]) -> "Tuned":
        """Returns the attack with other learning rates."""
        return self.changed(lambda attack: attack.with_learning_rates(rates))

    def with_steps(self, steps: Sequence[float]) -> "Tuned":
        """Returns the attack with other numbers of steps."""
        return self.changed(lambda attack: attack.with_steps(steps))


def _fields(attack: Attack) -> dict[str, Any]:
    """Returns what every attack has."""
    return {own.name: getattr(attack, own.name) for own in fields(Attack)}
