"""The same weights with and without a derivative: what no attack could work on is not cleared."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gradinv.audit.cell as cell_module
from gradinv.audit.runner import Monitor, run_audit
from gradinv.cli import main
from tests.audit.world import config


class Heard(Monitor):
    def __init__(self):
        self.notes = []

    def note(self, line):
        self.notes.append(line)


def audited(how, monitor=None):
    return run_audit(
        config(
            model=f"tiny_net:{how}", batch_size=1, attack=("gi-x:steps=40",), steps_scale=1.0,
        ),
        Path(how),
        monitor=monitor,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["rounds", "detaches", "casts"])
def test_a_network_without_a_derivative_leaves_it_open_and_the_reason_is_said(how):
    heard = Heard()
    audit = audited(how, heard)
    row, _ = audit["summary"]
    assert row["level"] == "OPEN"
    assert "rounds, casts or detaches what it gets" in row["verdict"]
    assert [found["kind"] for found in audit["preflight"]["none"]] == ["no-derivative"]
    (note,) = heard.notes
    assert "take that operation out of the network" in note
    assert note in audit["notes"]
    assert "rounds, casts or detaches" in Path(how, "audit.json").read_text()


def test_the_same_weights_with_a_derivative_give_everything_away_and_nothing_is_said():
    heard = Heard()
    audit = audited("sees", heard)
    assert (audit["summary"][0]["level"], heard.notes) == ("SEVERE", [])
    assert audit["preflight"] == {"none": []}


def test_a_cost_that_never_falls_leaves_it_open_whatever_the_preflight_saw(monkeypatch):
    def stands(*arguments, **settings):
        found = attack_cell(*arguments, **settings)
        stages = tuple(replace(stage, start=stage.objective) for stage in found.stages)
        return replace(found, stages=stages, images=torch.full_like(found.images, 0.5))

    attack_cell = cell_module.attack_cell
    monkeypatch.setattr(cell_module, "attack_cell", stands)
    audit = run_audit(config(), Path("run"))
    row, _ = audit["summary"]
    assert (row["stuck"], row["level"]) == (2, "OPEN")
    assert "its matching cost never fell on 2 of 2 batches" in row["verdict"]


def test_both_commands_on_one_update_say_it_on_screen(capsys):
    for how, said in (("rounds", True), ("sees", False)):
        words = f"observe --data images --channels 1 --batch-size 1 --model tiny_net:{how}"
        assert main([*words.split(), "--device", "cpu", "--out", f"{how}.safetensors"]) == 0
        assert ("has no derivative with respect to it" in capsys.readouterr().err) == said
        words = f"invert {how}.safetensors --attack gi-x:steps=3 --device cpu --out {how}"
        assert main(words.split()) == 0
        assert ("has no derivative with respect to it" in capsys.readouterr().err) == said
        content = json.loads(Path(how, "invert.json").read_text())
        assert [found["kind"] for found in content["preflight"]] == ["no-derivative"] * said
