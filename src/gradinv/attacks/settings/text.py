"""The numbers of an attack as text: ``tv=0.03:lr=0.1,5e-4:schedule=cosine``."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, get_args

from gradinv.attacks.attack import Adam, Attack, LocalTraining, Way
from gradinv.attacks.search.denoising import Denoising
from gradinv.attacks.search.schedules import Constant, CosineDecay, Schedule, StepDecay
from gradinv.attacks.search.spaces import Pixels
from gradinv.engine.distances import distance_of
from gradinv.errors import ConfigError, did_you_mean

SCHEDULES: dict[str, Schedule] = {
    "step": StepDecay(),
    "cosine": CosineDecay(),
    "constant": Constant(),
}


def with_settings(attack: Attack, text: str) -> Attack:
    """Returns an attack with other numbers.

    A value for all stages or one for each, separated by commas: ``tv`` (weight of total variation),
    ``lr`` (learning rate), ``steps``. One for the attack: ``restarts``; ``averaged`` (``no``, or
    how many times worse than the best a restart may match that takes part in the mean); ``keep``
    (restarts that go on to the next stage, or ``all``);
    ``schedule`` (``step``, ``cosine`` or ``constant``); ``signed`` (``yes`` or ``no``: whether Adam
    gets the sign of the gradient); ``latents`` (``z``, or what else the prior has: ``w``, ``w+``
    and ``w+n`` of StyleGAN2); ``denoise`` (``no``, or the numbers of
    :class:`~gradinv.attacks.search.denoising.Denoising` from the first on); ``distance``. No TV
    weight suits every network, defence and data set, and the best cannot be known without them;
    that is why it can be set.

    ``fedavg=approximate`` takes an update of several local steps for one gradient.
    ``way=frozen-pattern`` computes dc/dx by a difference quotient that is right within about one
    percent: faster than the exact way with one restart, slower with several, which it takes one
    after the other (docs/engine.md).

    Args:
        attack: whose numbers are taken where the text has none.
        text: ``key=value`` separated by colons; empty for no change.

    Raises:
        ConfigError: a key that there is not, or a value that does not fit.
    """
    return attack.changed(partial(_with_each, text)) if text else attack


def _with_each(text: str, attack: Attack) -> Attack:
    for setting in re.split(r":(?=[^:=]*=|$)", text):
        key, _, value = setting.partition("=")
        if key == "distance":
            attack = replace(attack, distance=distance_of(value))
        elif key in _WORDS:
            words, change = _WORDS[key]
            attack = change(attack, _word(key, value, words))
        elif key == "latents" and value:
            attack = replace(attack, latents=value)
        elif key == "averaged" and value == "no":
            attack = replace(attack, averaged=None)
        elif key == "keep" and value == "all":
            attack = _keeping(attack, None)
        elif key == "denoise" and value == "no":
            attack = _denoising(attack, None)
        elif key in _NUMBERS and (numbers := _numbers(value)):
            attack = _NUMBERS[key](attack, numbers)
        else:
            raise ConfigError(
                "expected attack settings such as tv=0.01, lr=0.03,0.001, steps=400,600 or "
                f"restarts=3, got '{setting}'; write {attack.name}:tv=0.01"
            )
    return attack


def _numbers(text: str) -> list[float]:
    """Returns numbers separated by commas; none where one is no number."""
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        return []


def _word(key: str, value: str, words: Sequence[str]) -> str:
    if value not in words:
        raise ConfigError(
            f"expected {' or '.join(f'{key}={word}' for word in words)}, got '{key}={value}'; "
            f"{did_you_mean(value, words)}"
        )
    return value


def _with_restarts(attack: Attack, values: Sequence[float]) -> Attack:
    if len(values) != 1 or not float(values[0]).is_integer():
        raise ConfigError(
            f"expected one whole number of restarts for {attack.name}, got "
            f"{', '.join(map(str, values))}; write {attack.name}:restarts=3"
        )
    return attack.with_restarts(int(values[0]))


def _with_averaging(attack: Attack, values: Sequence[float]) -> Attack:
    if len(values) != 1 or not 1 <= values[0] < math.inf:
        raise ConfigError(
            f"expected one factor of at least 1 on the best matching cost for {attack.name}, got "
            f"{', '.join(map(str, values))}; write {attack.name}:averaged=3 or averaged=no"
        )
    return replace(attack, averaged=values[0])


def _with_survivors(attack: Attack, values: Sequence[float]) -> Attack:
    if len(values) != 1 or not (float(values[0]).is_integer() and values[0] >= 1):
        raise ConfigError(
            f"expected one whole number of restarts of {attack.name} that go on, got "
            f"{', '.join(map(str, values))}; write {attack.name}:keep=2 or keep=all"
        )
    return _keeping(attack, int(values[0]))


def _keeping(attack: Attack, count: int | None) -> Attack:
    """Returns the attack with as many restarts going on after every stage but the last.

    Raises:
        ConfigError: it has one stage.
    """
    *before, last = attack.stages
    if not before:
        raise ConfigError(
            f"expected several stages for keep=, got one in {attack.name}; leave it out"
        )
    return replace(attack, stages=(*(replace(stage, keep=count) for stage in before), last))


def _with_denoising(attack: Attack, values: Sequence[float]) -> Attack:
    every, *rest = values
    if not every.is_integer() or len(rest) >= len(fields(Denoising)):
        raise ConfigError(
            f"expected a whole number of steps and at most 3 shares for {attack.name}, got "
            f"{', '.join(map(str, values))}; write {attack.name}:denoise=5,0.3,0.05,0.95"
        )
    return _denoising(attack, Denoising(int(every), *rest))


def _denoising(attack: Attack, denoising: Denoising | None) -> Attack:
    """Returns the attack whose stages over pixels all denoise so, or not at all.

    Raises:
        ConfigError: it has none.
    """
    if not any(isinstance(stage.space, Pixels) for stage in attack.stages):
        raise ConfigError(
            f"expected a stage over pixels for denoise=, got none in {attack.name}; leave it out"
        )
    stages = tuple(
        replace(stage, denoising=denoising) if isinstance(stage.space, Pixels) else stage
        for stage in attack.stages
    )
    return replace(attack, stages=stages)


def _with_schedule(attack: Attack, name: str) -> Attack:
    """Returns the attack with one schedule for all stages."""
    stages = [replace(stage, schedule=SCHEDULES[name]) for stage in attack.stages]
    return replace(attack, stages=tuple(stages))


def _with_signs(attack: Attack, word: str) -> Attack:
    """Returns the attack whose stages give Adam the signs of the gradient, or do not."""
    stages = []
    for stage in attack.stages:
        if not isinstance(stage.optimizer, Adam):
            raise ConfigError(
                f"expected stages that step with Adam for signed={word}, got "
                f"{type(stage.optimizer).__name__} in {attack.name}; leave signed= out"
            )
        optimizer = replace(stage.optimizer, signed=word == "yes")
        stages.append(replace(stage, optimizer=optimizer))
    return replace(attack, stages=tuple(stages))


_NUMBERS: Mapping[str, Callable[[Attack, Sequence[float]], Attack]] = {
    "tv": Attack.with_total_variation,
    "lr": Attack.with_learning_rates,
    "steps": Attack.with_steps,
    "restarts": _with_restarts,
    "averaged": _with_averaging,
    "keep": _with_survivors,
    "denoise": _with_denoising,
}

_WORDS: Mapping[str, tuple[Sequence[str], Callable[[Attack, Any], Attack]]] = {
    "fedavg": (get_args(LocalTraining), lambda attack, word: replace(attack, fedavg=word)),
    "way": (get_args(Way), lambda attack, word: replace(attack, way=word)),
    "schedule": (tuple(SCHEDULES), _with_schedule),
    "signed": (("yes", "no"), _with_signs),
}
