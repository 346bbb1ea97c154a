import dataclasses
import shlex
from typing import get_args, get_type_hints

import pytest

from gradinv.audit.plan import AuditConfig
from gradinv.cli.options import (
    Audit,
    Data,
    Invert,
    Observe,
    Prior,
    Report,
    Watch,
    parse,
)
from gradinv.cli.prior_options import PriorShow, PriorTrain
from gradinv.errors import ConfigError
from gradinv.priors.architectures import TRAINED

# The contract of the command line: names and defaults that others rely on.
CONTRACT = {
    "data": None,
    "image_size": 32,
    "model": "convnet",
    "batch_size": 4,
    "mode": "eval",
    "protocol": "fedsgd",
    "attack": ("gi-x", "gi-z/w", "standard"),
    "prior": None,
    "steps_scale": 1.0,
    "restarts": None,
    "seed": 0,
    "device": "auto",
    "out": None,
}


def test_no_options_are_the_defaults_of_the_contract():
    options = parse(["audit"])
    assert isinstance(options, Audit)
    assert options.config == AuditConfig()
    assert not options.json
    for name, value in CONTRACT.items():
        assert getattr(options.config, name) == value


def test_every_option_of_audit_arrives():
    given = {
        "data": "d", "image_size": 64, "channels": 3, "model": "resnet18", "weights": "w",
        "batch_size": 8, "batches": 3, "mode": "train", "protocol": "fedavg",
        "local_epochs": 2, "local_batch_size": 4, "local_lr": 0.1, "local_momentum": 0.9,
        "reveal_order": True, "optimizer": "sgd:weight-decay=0.1", "loss": "bce",
        "attack": ("gi-x", "gi-z"), "defense": ("none", "noise:0.01"), "reveal_bn": "exact",
        "prior": "p", "steps_scale": 0.5, "restarts": 2, "seconds": 9.0, "seed": 4,
        "device": "cpu", "out": "o", "lpips_weights": "l", "workers": 2,
        "metric": ("ssim", "m:f"), "hide_labels": False, "classes": "10", "mean": "0.5",
        "std": "0.25", "candidates": 9, "rounds": 3, "title": "t", "owner": "me",
        "undefended": "no",
    }  # fmt: skip
    assert set(given) == {field.name for field in dataclasses.fields(AuditConfig)}
    arguments = ["audit", "--json"]
    for name, value in given.items():
        for item in value if isinstance(value, tuple) else (value,):
            option = "--" + name.replace("_", "-")
            if item is not False:
                arguments += [option] if item is True else [option, str(item)]
    options = parse(arguments)
    assert isinstance(options, Audit)
    assert options.json
    assert dataclasses.asdict(options.config) == given


def test_labels_can_be_hidden():
    options = parse(["audit", "--hide-labels"])
    assert isinstance(options, Audit)
    assert options.config.hide_labels


def test_a_setting_without_meaning_is_no_usage_error():
    with pytest.raises(ConfigError, match="--seed of at least 0"):
        parse(["audit", "--seed", "-1"])


def test_the_other_commands():
    assert parse(["invert", "u", "--attack", "gi-x"]) == Invert(update="u", attack="gi-x")
    assert parse(["observe", "--out", "u", "--batch", "2"]) == Observe(out="u", batch=2)
    assert parse(["prior", "show"]) == Prior(PriorShow())
    train = parse(["prior", "train", "d", "--arch", "dcgan", "--minutes", "5", "--out", "p"])
    assert train == Prior(PriorTrain(data="d", out="p", minutes=5.0))
    assert parse(["report", "run"]) == Report(run="run")
    assert parse(["data", "check", "d", "--json"]) == Data("check", "d", json=True)


def _defaults(text: str) -> dict[str, str]:
    """Returns the default of each architecture that a hint such as "48; stylegan2 32" names."""
    words = text.removeprefix("(default: ").removesuffix(")").split("; ")
    named = [word.split(" ") for word in words]
    return {parts[0] if len(parts) == 2 else "dcgan": parts[-1] for parts in named}


def test_training_defaults_are_those_of_the_library():
    """They are repeated in the options, because torch is too slow to import for a help text."""
    own = PriorTrain(data="d", out="p")
    said = get_type_hints(PriorTrain, include_extras=True)
    renamed = {"latent_dim": "latent"}
    for architecture, settings in TRAINED.items():
        for setting in dataclasses.fields(settings):
            option = renamed.get(setting.name, setting.name)
            if option in {"ema", "precision"}:
                continue
            default = getattr(own, option)
            if default is None:
                text = next(
                    part.help_behavior_hint
                    for part in said[option].__metadata__
                    if hasattr(part, "help_behavior_hint")
                )
                # "48; stylegan2 32": of dcgan, and of others by name.
                words = {"dcgan": "", **_defaults(text)}
                default = words.get(architecture, words["dcgan"])
                kind = type(setting.default)
                assert kind(default) == setting.default, (architecture, option)
            else:
                assert default == setting.default, (architecture, option)


def test_every_architecture_that_trains_can_be_named():
    choices = get_args(get_type_hints(PriorTrain)["arch"])
    assert set(choices) == set(TRAINED)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("observe --out u --defense none --defense clip:1", "expected --defense once, got 2 times"),
        ("observe --out u --batch_size 2 --batch-size=3", "expected --batch-size once, got 2"),
        ("invert u --attack gi-x --attack gi-z --attack dlg", "expected --attack once, got 3"),
        ("learn-prior u --out p --defense none --defense none", "expected --defense once"),
        ("prior train d --out p --seed 1 --seed 2", "expected --seed once"),
        ("audit --attack gi-x --attack gi-z --seed 1 --seed 2", "expected --seed once"),
        ("watch --watched a --watched b --attack gi-z", "expected --watched once"),
        ("audit --json --json", "expected --json once"),
    ],
)
def test_an_option_of_one_value_is_given_once(arguments, said):
    with pytest.raises(ConfigError) as error:
        parse(arguments.split())
    assert said in str(error.value)


@pytest.mark.parametrize("command", ["audit", "watch --watched a"])
def test_attacks_and_defences_of_an_audit_may_be_repeated(command):
    given = "--attack gi-x --attack gi-z --defense none --defense=clip:1 --seed 1"
    options = parse([*command.split(), *given.split()])
    assert isinstance(options, Audit | Watch)
    assert options.config.attack == ("gi-x", "gi-z")
    assert options.config.defense == ("none", "clip:1")


def test_no_more_rounds_are_watched_than_there_are():
    with pytest.raises(ConfigError, match="--rounds-watched of at most --rounds, got 5 of 1"):
        parse(shlex.split("learn-prior --simulate d --out p --rounds 1 --rounds-watched 5"))
    # A folder of updates says itself how many rounds it holds.
    assert parse(shlex.split("learn-prior u --out p --rounds 1 --rounds-watched 5"))
