"""What a caller may give as a text or as a value, as values."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from gradinv.attacks import Attack, preset
from gradinv.audit.inputs import load_prior as load_prior_named
from gradinv.errors import ConfigError
from gradinv.evaluation.evaluate import Metric, metric_of
from gradinv.federated import Defense, format_defenses, parse_defense
from gradinv.models.batchnorm import Mode
from gradinv.priors import Generator

Defenses = str | Defense | tuple[Defense, ...]
"""A defence: a spec, a value, or a chain of values."""


def mode_of(model: nn.Module) -> Mode:
    """Returns the mode that the model is in."""
    return "train" if model.training else "eval"


def device_of(model: nn.Module) -> torch.device:
    """Returns where the model's parameters lie; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def attacks_by_name(given: str | Attack | Sequence[str | Attack]) -> dict[str, Attack]:
    """Returns attacks by what a table calls them.

    Raises:
        AttackError: a name that no attack has.
        ConfigError: none, or two of one name.
    """
    items = [given] if isinstance(given, str | Attack) else list(given)
    attacks: dict[str, Attack] = {}
    for item in items:
        name = item if isinstance(item, str) else item.name
        if name in attacks:
            raise ConfigError(
                f"expected attacks of different names, got {name} twice; give one of them another "
                "name with dataclasses.replace(attack, name=...)"
            )
        attacks[name] = preset(item) if isinstance(item, str) else item
    if not attacks:
        raise ConfigError("expected at least one attack, got none; try 'gi-x'")
    return attacks


def metrics_by_name(given: Mapping[str, Metric] | Sequence[str] | str) -> dict[str, Metric]:
    """Returns further metrics by what a table calls them.

    Raises:
        ConfigError: nothing of a name.
    """
    if isinstance(given, Mapping):
        return dict(given)
    specs = [given] if isinstance(given, str) else given
    return {spec: metric_of(spec) for spec in specs}


def chain_of(given: Defenses) -> tuple[Defense, ...]:
    """Returns one defence as a chain of values.

    Raises:
        ConfigError: a spec that says nothing.
    """
    if isinstance(given, str):
        return parse_defense(given)
    return given if isinstance(given, tuple) else (given,)


def defenses_by_spec(given: str | Defense | Sequence[Defenses]) -> dict[str, tuple[Defense, ...]]:
    """Returns defences by their specs.

    A tuple is a chain where it stands in a list, and several settings where it stands alone.

    Raises:
        ConfigError: none, one of them twice, or a spec that says nothing.
    """
    items = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    defenses: dict[str, tuple[Defense, ...]] = {}
    for item in items:
        chain = chain_of(item)
        spec = item if isinstance(item, str) else format_defenses(chain)
        if spec in defenses:
            raise ConfigError(
                f"expected each defence once, got {spec} more than once; leave the repetition out"
            )
        defenses[spec] = chain
    if not defenses:
        raise ConfigError("expected at least one defence, got none; try 'none'")
    return defenses


def prior_of(given: Generator | str | Path | None, device: torch.device) -> Generator | None:
    """Returns a generator on the device.

    Raises:
        PriorError: it cannot be loaded.
        StorageError: a file in the folder is not what it should be.
    """
    if given is None or isinstance(given, str | Path):
        path = None if given is None else str(given)
        return load_prior_named(path, device=device, embedded=False)
    return given if device_of(given) == device else copy.deepcopy(given).to(device)


def name_of(prior: Generator | str | Path | None) -> str | None:
    """Returns what a report calls a prior."""
    if prior is None or isinstance(prior, str | Path):
        return None if prior is None else str(prior)
    return type(prior).__qualname__
