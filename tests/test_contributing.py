"""docs/contributing.md: its snippets are run, have an effect, and its rooms exist."""

import importlib
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gradinv
from gradinv.evaluation.evaluate import metric_of
from gradinv.priors import load_generator, prior_named
from gradinv.priors.generator import save_generator
from tests.attacks.tiny import tiny_batch, tiny_victim

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "gradinv"
TEXT = (ROOT / "docs" / "contributing.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snippets")
    snippets = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    (folder / "contributed.py").write_text("\n".join(snippets))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("contributed")


def found(update, attack, **more):
    return gradinv.invert(update, tiny_victim(), attack=attack, progress=False, **more).images


def differ(one, other):
    return (one - other).abs().max() > 1e-3


def test_the_snippets_make_values_that_count(here):
    update = gradinv.observe(tiny_victim(), tiny_batch())
    plain = found(update, "contributed:mine")
    assert differ(plain, found(update, "gi-x:steps=30"))
    assert differ(plain, found(update, "contributed:dark"))
    assert differ(plain, found(update, "contributed:mine:distance=contributed:Fourth"))


def test_the_defence_of_the_snippet(here):
    update = gradinv.observe(tiny_victim(), tiny_batch(), defense="contributed:Rounded:0.05")
    assert update.defenses == (here.Rounded(0.05),)
    unaware = replace(update, defenses=())
    assert differ(found(update, "contributed:mine"), found(unaware, "contributed:mine"))


def test_the_prior_of_the_snippet(here, generator):
    prior = prior_named("contributed:painted")
    save_generator(prior, Path("saved"), {})
    latents = prior.sample_latents(2, generator)
    assert torch.equal(load_generator(Path("saved"))(latents), prior(latents))
    update = gradinv.observe(tiny_victim(), tiny_batch())
    assert differ(
        found(update, "gi-z:steps=3", prior=prior), found(update, "gi-z:steps=3", prior="saved")
    ) == torch.tensor(data=False)


def test_the_metric_of_the_snippet(here):
    values = metric_of("contributed:worst")(torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), 0.5))
    assert values.tolist() == [0.5, 0.5]


def _modules():
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    }


def test_the_page_names_only_modules_that_exist():
    modules = _modules()
    named = set(re.findall(r"`(gradinv(?:\.\w+)+)", TEXT))
    assert named
    for name in named:
        parent, _, attribute = name.rpartition(".")
        assert name in modules or hasattr(importlib.import_module(parent), attribute), name


def _rooms(layers):
    return [room.strip(" ()") for layer in layers for room in layer.split("|")]


def test_the_settings_of_the_project_name_only_rooms_that_exist():
    modules = _modules()
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        for container in contract.get("containers", []):
            for room in _rooms(contract["layers"]):
                assert f"{container}.{room}" in modules, room
        for key in ("source_modules", "forbidden_modules"):
            assert set(contract.get(key, [])) <= modules
    for pattern in PROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]:
        assert list(ROOT.glob(pattern)), pattern


def test_the_page_gives_the_order_that_is_checked():
    (order,) = re.findall(r"Imports go one way: `([^`]*)`", TEXT)
    (layers,) = [
        c["layers"] for c in PROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "layers"
    ]
    assert [room.strip() for room in order.split(">")] == _rooms(layers)
