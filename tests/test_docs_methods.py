"""docs/methods.md: a row of its table and a section for every attack, with what the preset says."""

import json
import re

import pytest

from benchmarks.results import ROOT
from gradinv.attacks import PRESETS, AnalyticAttack, Attack, preset
from gradinv.attacks.attack import Adam
from gradinv.attacks.search.regularizers import BatchNormMatching, TotalVariation
from gradinv.attacks.standard import Standard

TEXT = (ROOT / "docs" / "methods.md").read_text("utf-8")


def row(attack: Attack) -> list[str]:
    """Returns the cells of the attack's row, of which the preset decides all but the last."""
    anchor = re.sub(r"[^a-z0-9-]", "", attack.name)
    needs = ["one image", "a chain"] if isinstance(attack, AnalyticAttack) else []
    denoiser = "prior that denoises" if attack.needs_denoiser else "prior"
    needs += [denoiser] if attack.needs_prior else []
    needs += ["statistics"] if attack.needs_bn else []
    return [
        f"[`{attack.name}`](#{anchor})",
        ", ".join(stage.space.name for stage in attack.stages),
        ", ".join(str(stage.steps) for stage in attack.stages),
        str(attack.restarts) if attack.stages else "",
        ", ".join(needs),
    ]


def test_the_table_is_what_the_presets_say():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TEXT.splitlines()
        if line.startswith("| [`")
    ]
    assert [cells[:-1] for cells in rows] == [row(attack) for attack in PRESETS.values()]
    assert all(cells[-1] for cells in rows)


def test_the_numbers_beside_the_published_ones_are_those_of_the_presets():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in TEXT.splitlines()
        if line.split("|")[2:3] == [" preset "]
    ]
    assert len(rows) == 4
    for name, _, *numbers in rows:
        attack = PRESETS[name.strip("`")]
        stages = attack.stages
        adams = [stage.optimizer for stage in stages]
        weights = {
            kind: [
                term.weight
                for stage in stages
                for term in stage.regularizers
                if isinstance(term, kind)
            ]
            for kind in (TotalVariation, BatchNormMatching)
        }
        assert [isinstance(adam, Adam) for adam in adams] == [True] * len(stages)
        assert numbers == [
            ", ".join(str(stage.steps) for stage in stages),
            str(attack.restarts),
            ", ".join(str(adam.lr) for adam in adams if isinstance(adam, Adam)),
            ", ".join(str(weight) for weight in weights[TotalVariation]),
            ", ".join(str(weight) for weight in sorted(set(weights[BatchNormMatching]))),
        ]


def test_the_search_that_is_described_is_the_one_that_is_recorded():
    said = {
        cells[0].split("`")[1]: [cells[1], cells[2]]
        for line in TEXT.split("## Settings")[1].split("The presets beside")[0].splitlines()
        if line.startswith("| `")
        and (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }
    for name in ("none", "sparsify"):
        stored = json.loads((ROOT / "results" / f"tuning-convnet-{name}.json").read_text("utf-8"))
        tried = {
            method: [
                ", ".join(
                    map(
                        str, sorted({row[key] for row in stored["rows"] if row["method"] == method})
                    )
                )
                for key in ("tv", "lr")
            ]
            for method in stored["settings"]["method"]
        }
        assert said == tried
        settings = stored["settings"]
        assert (settings["batches"], settings["batch_size"], settings["steps"]) == (1, 4, 300)


def test_every_spec_in_the_text_can_be_run():
    specs = re.findall(r"`(?:--attack )?((?:gi-|gifd|ggl)[^`\s]*:[^`\s]*=[^`\s]*)`", TEXT)
    assert len(specs) >= 8
    for spec in specs:
        assert preset(spec).name == spec.split(":")[0]


@pytest.mark.parametrize("name", PRESETS)
def test_every_attack_has_an_equation_a_source_and_its_deviations(name):
    (section,) = re.findall(rf"^## `{re.escape(name)}`\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    own = isinstance(PRESETS[name], Standard)
    assert section.count("$$") >= 2, "no equation"
    assert "*Ours*" in section if own else re.search(r"\b20[12]\d\b", section), "no source"
    assert own or "*Deviation" in section or "are ours" in section, "no word about deviations"
