"""A slower way, and a line search on kinks, are said once and everywhere."""

import json
from pathlib import Path

import pytest

from gradinv.attacks import preset
from gradinv.audit.ways import notes_of_ways, way_notes
from gradinv.cli import main
from gradinv.federated import FedAvg, FedSGD, Protocol
from gradinv.models import build_model
from tests.audit.world import build

PLAIN = "Computed by plain double backward, which is slower: the exact engine has no rule for "


@pytest.fixture(autouse=True)
def _world(tmp_path, monkeypatch):
    build(tmp_path)
    monkeypatch.chdir(tmp_path)


def network(name: str):
    return build_model(name, num_classes=3, channels=1, image_size=16, seed=0).eval()


def notes(model: str, attack: str, protocol: Protocol = FedSGD()) -> list[str]:  # noqa: B008 - frozen
    return way_notes([preset(attack)], network(model), (1, 16, 16), protocol)


def test_the_operation_without_a_rule_is_named():
    assert notes("tiny_net:gated", "gi-x") == [f"{PLAIN}Softmax (3)."]
    assert notes("tiny_net:make", "gi-x") == []


def test_what_is_by_autograd_whatever_the_network_is_no_fallback():
    assert notes("tiny_net:gated", "gi-x:way=plain") == []
    assert notes("tiny_net:gated", "dlg") == []
    assert notes("tiny_net:gated", "gi-x", FedAvg()) == []


@pytest.mark.parametrize("attack", ["dlg", "idlg"])
def test_a_line_search_needs_a_smooth_network(attack):
    (note,) = notes("tiny_net:leaky", attack)
    assert note.startswith("L-BFGS needs a smooth network, and this one has LeakyReLU: what")
    assert f"what {attack} did not find" in note
    assert "--model lenet" in note
    assert notes("lenet", attack) == []
    assert notes("tiny_net:leaky", "gi-x") == []


def test_only_notes_of_ways_go_to_the_screen():
    made = [*notes("tiny_net:gated", "gi-x"), *notes("tiny_net:leaky", "dlg")]
    assert len(made) == 2
    assert notes_of_ways(["This audits data.", *made]) == made


COMMON = ["--image-size", "16", "--batch-size", "2"]


def audit(*arguments: str) -> int:
    return main(
        ["audit", "--data", "images", *COMMON, "--batches", "2", "--attack", "gi-x:steps=2",
         "--defense", "none", "--workers", "1", "--out", "run", *arguments]
    )  # fmt: skip


def test_a_fallback_is_said_once_on_screen_in_the_file_and_in_the_report(capsys):
    assert audit("--model", "tiny_net:gated") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count(PLAIN) == 1
    stored = json.loads(Path("run/audit.json").read_text())["notes"]
    assert [note for note in stored if note.startswith(PLAIN)] == [f"{PLAIN}Softmax (3)."]
    assert Path("run/report.html").read_text().count(PLAIN) == 1


def test_a_network_with_hardsigmoid_is_audited_without_a_word(capsys):
    assert audit("--model", "tiny_net:mobile") == 0
    assert "double backward" not in capsys.readouterr().out


def test_an_operation_without_a_second_derivative_is_one_line(capsys):
    assert audit("--model", "tiny_net:hard") == 2
    error = capsys.readouterr().err
    assert "got the operation hardsigmoid, which has no second derivative in PyTorch" in error
    assert "Traceback" not in error
    assert sum("gradinv: error:" in line for line in error.splitlines()) == 1


def test_an_inversion_says_it_too(capsys):
    assert main(["observe", "--data", "images", *COMMON, "--model", "tiny_net:gated",
                 "--out", "u.safetensors"]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["invert", "u.safetensors", "--attack", "gi-x:steps=2", "--out", "found"]) == 0
    assert capsys.readouterr().out.count(PLAIN) == 1
    assert json.loads(Path("found/invert.json").read_text())["notes"] == [f"{PLAIN}Softmax (3)."]
