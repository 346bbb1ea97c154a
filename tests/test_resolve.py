"""One way to say by a text which value is meant."""

import sys
from pathlib import Path

import pytest

from gradinv.errors import AttackError, ConfigError
from gradinv.resolve import resolve

KNOWN = {"gi-x": 1, "gi-z": 2}


def named(spec: str):
    return resolve(spec, KNOWN, kind="attack", error=AttackError)


@pytest.mark.parametrize(("spec", "settings"), [("gi-x", ""), ("gi-x:tv=1:lr=2", "tv=1:lr=2")])
def test_own_names(spec, settings):
    found = named(spec)
    assert (found.value, found.name, found.settings, found.outside) == (1, "gi-x", settings, False)


@pytest.mark.parametrize(("spec", "settings"), [("mine_a:thing", ""), ("mine_a:thing:b:3", "b:3")])
def test_names_from_outside_are_found_in_the_working_directory(spec, settings):
    Path("mine_a.py").write_text("thing = object()\n")
    path = list(sys.path)
    found = named(spec)
    assert found.value is sys.modules["mine_a"].thing
    assert (found.name, found.settings, found.outside) == ("mine_a:thing", settings, True)
    assert sys.path == path


def test_nothing_that_is_found_is_called():
    Path("mine_b.py").write_text("def thing():\n    raise SystemExit\n")
    assert named("mine_b:thing").value is sys.modules["mine_b"].thing


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gi-w", r"expected attacks among gi-x, gi-z or package\.module:object, got 'gi-w'; did"),
        ("gi-w:0.1", "got 'gi-w' in 'gi-w:0.1'; did you mean 'gi-"),
        ("", "got ''; choose one of gi-x, gi-z"),
        ("gi-y:tv", r"expected attack 'gi-y:tv' .* importable module, got Module.*\(did you"),
        (":tv", "to name an importable module, got ValueError"),
        ("mine_c:z", "expected attack 'z' in mine_c, got nothing of that name; choose"),
        ("mine_c:some", "got nothing of that name; did you mean 'something'?"),
        ("mine_d:thing", "got ZeroDivisionError: division by zero; check the name, or run where m"),
    ],
)
def test_what_names_nothing(spec, message):
    Path("mine_c.py").write_text("something = 1\n")
    Path("mine_d.py").write_text("1 / 0\n")
    with pytest.raises(AttackError, match=message):
        named(spec)


def test_the_expected_thing_can_be_said_in_other_words():
    with pytest.raises(ConfigError, match="expected a defence such as clip:1, got 'x'; choose"):
        resolve("x", {"clip": 1}, kind="defence", expected="a defence such as clip:1")
