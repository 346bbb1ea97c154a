"""Numbers of an attack as text: what can be set, and what is refused."""

import pytest

from gradinv.attacks.attack import Adam
from gradinv.attacks.presets import preset
from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.attacks.search.schedules import Constant, CosineDecay, StepDecay
from gradinv.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "schedule"),
    [("step", StepDecay()), ("cosine", CosineDecay()), ("constant", Constant())],
)
def test_a_schedule_is_set_for_all_stages(word, schedule):
    assert {stage.schedule for stage in preset(f"gi-z/w:schedule={word}").stages} == {schedule}


def test_a_schedule_needs_a_learning_rate():
    with pytest.raises(ConfigError, match=r"expected a constant schedule with LBFGS"):
        preset("dlg:schedule=cosine")


def test_signs_are_set_for_all_stages():
    assert preset("gi-x-unsigned:signed=yes:signed=no").stages == preset("gi-x-unsigned").stages
    assert preset("gi-x-unsigned:signed=yes").stages != preset("gi-x-unsigned").stages
    z, w = preset("gi-z/w:signed=yes").stages
    assert (z.optimizer, w.optimizer) == (Adam(0.1, signed=True), Adam(5e-4, signed=True))
    with pytest.raises(ConfigError, match=r"step with Adam for signed=yes, got LBFGS in dlg"):
        preset("dlg:signed=yes")
    with pytest.raises(ConfigError, match=r"expected signed=yes or signed=no, got 'signed=1'"):
        preset("gi-x:signed=1")


def test_any_attack_can_average_over_its_starts():
    assert preset("gi-x:averaged=3").averaged == 3
    assert preset("gi-x:averaged=3:averaged=no").averaged is None
    assert preset("gi-z:latents=w+:tv=0.1").latents == "w+"
    assert preset("gi-z").latents is None
    for wrong in ("0.5", "1,2", "inf", "nan"):
        with pytest.raises(
            ConfigError, match=r"one factor of at least 1 on the best matching cost"
        ):
            preset(f"gi-x:averaged={wrong}")
    with pytest.raises(ConfigError, match=r"expected attack settings such as"):
        preset("gi-x:averaged=yes")


def test_restarts_that_go_on():
    assert [stage.keep for stage in preset("gi-z/w:keep=3").stages] == [3, None]
    assert [stage.keep for stage in preset("gi-z/w:keep=all").stages] == [None, None]
    for wrong in ("0", "1.5", "1,2"):
        with pytest.raises(ConfigError, match="expected one whole number of restarts of gi-z/w"):
            preset(f"gi-z/w:keep={wrong}")
    with pytest.raises(ConfigError, match="expected several stages for keep=, got one in gi-x"):
        preset("gi-x:keep=2")


def test_settings_follow_each_other():
    (stage,) = preset("gi-x:lr=0.4:tv=0.003:steps=7:signed=no:schedule=cosine").stages
    assert stage.optimizer == Adam(0.4)
    assert stage.steps == 7
    assert stage.regularizers == (TotalVariation(0.003),)
    assert stage.schedule == CosineDecay()
