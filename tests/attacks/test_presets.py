import pytest

from gradinv.attacks.objectives import TotalVariation
from gradinv.attacks.presets import PRESETS, preset
from gradinv.errors import AttackError, ConfigError

NAMES = [
    "gi-x",
    "gi-x-unsigned",
    "gi-x+bn",
    "gi-z",
    "gi-w",
    "gi-z/x",
    "gi-z/w",
    "gi-z/w+bn",
    "gi-zw-joint",
    "gi-w/z",
    "r-gap",
    "r-gap+prior",
]


def test_the_names_of_the_contract_are_there():
    assert list(PRESETS) == NAMES
    assert all(attack.reference for attack in PRESETS.values())


def test_who_needs_what():
    assert {name for name in NAMES if not PRESETS[name].needs_prior} == {
        "gi-x", "gi-x-unsigned", "gi-x+bn", "r-gap",
    }  # fmt: skip
    assert {name for name in NAMES if PRESETS[name].needs_bn} == {"gi-x+bn", "gi-z/w+bn"}


def test_gi_x_differs_from_the_papers_form_by_the_sign_alone():
    signed, unsigned = PRESETS["gi-x"].stages[0], PRESETS["gi-x-unsigned"].stages[0]
    assert signed.optimizer.signed
    assert not unsigned.optimizer.signed
    assert signed.optimizer.lr == unsigned.optimizer.lr


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(AttackError, match=r"got 'gi-zw'; did you mean"):
        preset("gi-zw")
    with pytest.raises(AttackError, match="choose one of gi-x, "):
        preset("#")


def test_tv_weights_can_be_set_for_all_stages_or_each():
    assert [s.regularizers for s in preset("gi-z/w:tv=0,0.5").stages] == [
        (TotalVariation(0.0),), (TotalVariation(0.5),),
    ]  # fmt: skip
    assert all(s.regularizers == (TotalVariation(0.2),) for s in preset("gi-z/w:tv=0.2").stages)
    assert len(preset("gi-x+bn:tv=1").stages[0].regularizers) == 3


@pytest.mark.parametrize("settings", ["tv=", "tv=a", "adam=1", "tv", "tv=1:", "lr=0.1:tv=x"])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match=r"expected attack settings such as tv=0\.01"):
        preset(f"gi-x:{settings}")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ("tv=1,2,3", "TV weights of at least 0"),
        ("tv=-1", "TV weights of at least 0"),
        ("lr=0", "learning rates above 0"),
        ("steps=1.5", "whole numbers of steps"),
        ("steps=0", "whole numbers of steps"),
    ],
)
def test_settings_must_fit_the_stages(settings, what):
    with pytest.raises(ConfigError, match=rf"expected 1 or 2 {what} for gi-z/w \(z then w\)"):
        preset(f"gi-z/w:{settings}")


def test_a_closed_form_has_no_settings():
    with pytest.raises(ConfigError, match=r"expected no settings for r-gap.*got TV weights"):
        preset("r-gap:tv=0.1")
    assert preset("r-gap").scaled(0.5).total_steps == 0
    assert [stage.space.name for stage in preset("r-gap+prior:tv=0.1").stages] == ["z", "w"]


def test_learning_rates_and_steps_can_be_set_for_each_stage():
    z, w = preset("gi-z/w:lr=0.1,0.2:steps=3,4").stages
    assert (z.optimizer.lr, w.optimizer.lr) == (0.1, 0.2)
    assert (z.steps, w.steps) == (3, 4)


def test_steps_scale_and_restarts():
    attack = preset("gi-z/w")
    assert attack.scaled(0.5).total_steps == attack.total_steps / 2
    assert attack.scaled(1e-9).total_steps == len(attack.stages)
    assert attack.with_restarts(7).restarts == 7
    with pytest.raises(ConfigError, match="expected a positive factor on the steps, got -1"):
        attack.scaled(-1.0)
    with pytest.raises(ConfigError, match="expected at least 1 restart, got 0"):
        attack.with_restarts(0)


def test_an_attack_describes_every_number():
    text = str(preset("gi-z/w").describe())
    assert "'lr': 0.03" in text
    assert "'kind': 'TotalVariation'" in text
