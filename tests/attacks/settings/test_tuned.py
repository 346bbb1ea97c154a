"""Settings that were found by tuning: which an update gets, and that changes reach all of them."""

from dataclasses import replace

import pytest
from torch import nn

from benchmarks.tune import CHOICES
from gradinv.attacks import PRESETS, preset
from gradinv.attacks.search.optimizers import Adam
from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.attacks.search.schedules import CosineDecay
from gradinv.attacks.settings import Shown, Tuned, settings_of
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_victim

UPDATES = {
    Shown.SHALLOW: ("none", "eval"),
    Shown.PART: ("sparsify:0.5", "eval"),
    Shown.TRAIN: ("none", "train"),
    Shown.NOISE: ("sparsify:0.5+noise:0.1", "train"),
}


def resolved(attack, kind):
    defense, mode = UPDATES.get(kind, ("none", "eval"))
    model = tiny_victim(norm=kind is not Shown.WHOLE).train(mode == "train")
    return attack.resolved(tiny_observation(model, tiny_batch(), defense=defense), model, None)


TUNED = [name for name, attack in PRESETS.items() if isinstance(attack, Tuned)]


@pytest.mark.parametrize("kind", Shown)
@pytest.mark.parametrize("name", TUNED)
def test_an_update_gets_the_settings_of_its_kind(name, kind):
    given = preset(f"{name}:{settings_of(name)[kind]}")
    own = resolved(preset(name), kind)
    assert own.stages == given.stages
    assert (own.name, own.restarts) == (name, preset(name).restarts)


def test_settings_are_those_that_are_written_down():
    (stage,) = resolved(preset("gi-z"), Shown.PART).stages
    assert (stage.optimizer, stage.schedule) == (Adam(0.35), CosineDecay())
    assert stage.regularizers == (TotalVariation(2.5e-5),)
    latents, weights = resolved(preset("gi-z/w:published"), Shown.NOISE).stages
    assert (latents.steps, latents.optimizer, latents.keep) == (500, Adam(0.03), 1)
    assert (weights.steps, weights.optimizer) == (5000, Adam(0.001))
    assert preset("gi-z/w:published").restarts == 3


def test_a_deep_network_is_none_of_few_layers():
    deep = nn.Sequential(*[nn.BatchNorm2d(1) for _ in range(9)], tiny_victim(norm=False)).eval()
    seen = tiny_observation(deep, tiny_batch())
    assert Shown.of(seen, deep) is Shown.WHOLE
    assert Shown.of(seen, deep[1:]) is Shown.SHALLOW


@pytest.mark.parametrize("defense", ["none", "sparsify:0.5"])
def test_batch_norm_over_the_batch_matters_more_than_what_a_sparsification_left(defense):
    for mode in ("train", "eval"):
        model = tiny_victim(norm=True).train(mode == "train")
        seen = tiny_observation(model, tiny_batch(), defense=defense)
        assert (Shown.of(seen, model) is Shown.TRAIN) == (mode == "train")


def test_a_network_without_batch_norm_shows_a_whole_gradient_in_train_mode():
    model = tiny_victim(norm=False).train()
    seen = tiny_observation(model, tiny_batch())
    assert Shown.of(seen, model) is Shown.WHOLE


@pytest.mark.parametrize("kind", Shown)
def test_what_is_set_holds_for_every_update(kind):
    (stage,) = resolved(preset("gi-x:lr=0.7:steps=10").scaled(0.5), kind).stages
    assert isinstance(stage.optimizer, Adam)
    assert (stage.optimizer.lr, stage.steps) == (0.7, 5)
    attack = preset("gi-x")
    for changed in (
        attack.with_steps([3.0]), attack.with_total_variation([0.5]),
        attack.with_learning_rates([0.2]), attack.with_restarts(3),
    ):  # fmt: skip
        assert isinstance(changed, Tuned)
        assert resolved(changed, kind) != resolved(attack, kind)


def test_stages_of_ones_own_are_run_as_they_are():
    mine = preset("gi-x-unsigned:lr=0.9").stages
    assert resolved(replace(preset("gi-x"), stages=mine), Shown.PART).stages == mine


def test_whatever_else_is_replaced_is_kept():
    attack = replace(preset("gi-x"), tensors=1, averaged=3.0)
    own = resolved(attack, Shown.PART)
    assert (own.tensors, own.averaged) == (1, 3.0)
    assert own.stages == resolved(preset("gi-x"), Shown.PART).stages


def test_all_that_is_kept_can_be_run_and_tuned():
    assert {"gi-x", "gi-z", "gi-z/x", "gi-z/w"} <= set(TUNED) <= set(CHOICES)
    for name in TUNED:
        assert {*settings_of(name)} - {"published"} == {*Shown}
        assert "'kinds'" in str(preset(name).describe())


def test_without_an_entry_there_are_none():
    assert settings_of("dlg") == {}
