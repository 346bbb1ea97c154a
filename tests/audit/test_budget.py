import pytest

from gradinv.attacks import preset
from gradinv.audit.budget import budget_note, budgets
from gradinv.audit.setup import adjusted, prepare
from tests.audit.world import config


@pytest.mark.parametrize(
    ("spec", "scale", "fraction"),
    [
        ("gi-x", 0.01, 0.01),
        ("gi-x", 1.0, 1.0),
        ("gi-x:steps=300", 1.0, 0.25),
        ("gi-x:steps=300:tv=0.1", 0.5, 0.125),
        ("gi-z/w:steps=600,250", 2.0, 2.0),
        ("r-gap", 0.01, 1.0),
    ],
)
def test_the_budget_is_a_part_of_the_presets_steps(spec, scale, fraction):
    attack = adjusted(preset(spec), config(steps_scale=scale))
    assert budgets({spec: attack}, {spec: preset(spec)}) == {spec: pytest.approx(fraction)}


def test_the_steps_of_standard_are_scaled_too():
    attack = adjusted(preset("standard"), config(steps_scale=0.1))
    fractions = budgets({"standard": attack}, {"standard": preset("standard")})
    assert fractions["standard"] == pytest.approx(0.1, rel=0.05)


def test_the_note_names_those_that_did_less():
    note = budget_note({"gi-x": 0.01, "gi-z/w": 1.0, "gi-z:steps=40": 0.125})
    assert note is not None
    assert note.startswith("A first look only")
    assert "(gi-x 1 %, gi-z:steps=40 12.5 %)" in note
    assert budget_note({"gi-x": 1.0, "gi-z/w": 2.0}) is None


def test_an_audit_says_it_and_stores_it():
    setup = prepare(config(steps_scale=0.01))
    assert any("gi-x 1 %" in note for note in setup.notes())
    assert not any("first look" in note for note in prepare(config(steps_scale=1.0)).notes())
    stored = setup.identity()["settings"]
    assert stored["budget"] == {"gi-x": pytest.approx(0.01)}
    assert stored["batch_norm_layers"] == 1
