"""Every example in a docstring runs and says what it gives."""

import doctest
import importlib
from pathlib import Path

import pytest

import gradinv

ROOT = Path(gradinv.__file__).parent


def modules_with_examples():
    for path in sorted(ROOT.rglob("*.py")):
        if ">>>" in path.read_text("utf-8"):
            inside = path.relative_to(ROOT.parent).with_suffix("")
            yield ".".join(inside.parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_the_examples_of(name):
    module = importlib.import_module(name)
    outcome = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_each_public_function_has_an_example():
    for name in gradinv.__all__:
        value = getattr(gradinv, name)
        if name == "audit":
            value = importlib.import_module("gradinv.api").audit
        if callable(value) and not isinstance(value, type):
            assert ">>>" in (value.__doc__ or ""), name
