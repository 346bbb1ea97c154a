"""Sizes that no machine can hold are refused with an estimate, before memory is taken."""

import json
import re
import shlex
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

from gradinv.cli import main
from gradinv.files import load_tensors, save_tensors
from gradinv.room import GIB

ESTIMATE = (
    r"gradinv: error: (\S+: )?expected (a|an) [a-z0-9/ -]+ that fits into the 0\.5 GiB of this "
    r"machine, got one that needs about [\d.e+]+ GiB; lower .*\n"
)

AUDIT = "audit --data images --channels 1 --batches 1 --attack gi-z --workers 1 --out run"
COMMANDS = {
    "audit": f"{AUDIT} --prior prior",
    "observe": "observe --data images --channels 1 --out u.safetensors",
    "prior train": "prior train images --channels 1 --steps 1 --out trained",
    "learn-prior": "learn-prior --simulate images --channels 1 --steps 1 --out learned",
    "watch": "watch --watched images --data images --channels 1 --attack gi-z --workers 1 --out w",
}
SIZES = {
    "batch": "--batch-size 100000",
    "image": "--image-size 8192",
    "width": "--base-channels 8192",
    "latent": "--latent 100000000",
}
BUILT = {"width", "latent"}
HUGE = {"base_channels": 2**17}


@pytest.fixture(autouse=True)
def _half_a_gib(monkeypatch):
    monkeypatch.setattr("gradinv.room.machine_bytes", lambda: GIB // 2)


def refused(words: str, capsys: pytest.CaptureFixture[str], what: str = "") -> None:
    capsys.readouterr()
    assert main([*shlex.split(words), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(ESTIMATE, said)
    assert what in said


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("command", COMMANDS)
def test_on_the_command_line(command, size, capsys):
    if size in BUILT and command in {"audit", "observe"}:
        pytest.skip("it builds no generator")
    if size == "batch" and command == "prior train":
        pytest.skip("more images than the folder has: tests/priors/test_footprint.py")
    refused(f"{COMMANDS[command]} {SIZES[size]}", capsys)


SMALL = "--channels 1 --batch-size 1 --model lenet"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--attack gi-x --restarts 100000", "an attack with gi-x"),
        ("--attack gi-x --attack dlg --restarts 100000", "an attack with gi-x"),
        ("--attack dlg --restarts 100000", "an attack with dlg"),
        ("--attack gi-z --prior prior --restarts 10000000", "an attack with gi-z"),
        ("--attack standard --restarts 10000000", "an attack with standard"),
        ("--attack gi-x --restarts 2000 --workers 4", "an audit by 4 processes"),
        ("--attack gi-x --protocol fedavg --local-epochs 100000", "an attack with gi-x"),
        ("--attack gi-x --protocol fedavg --local-epochs 1000000000000", "an attack with gi-x"),
    ],
)
def test_all_that_an_audit_holds_at_once(words, what, capsys):
    started = time.monotonic()
    refused(f"audit --data images {SMALL} --batches 1 --out run {words}", capsys, what)
    assert time.monotonic() - started < 5
    assert not Path("run").exists()


@pytest.mark.usefixtures("_update")
def test_all_restarts_of_one_attack(capsys):
    refused("invert u.safetensors --attack gi-x --restarts 10000000 --out i", capsys, "gi-x")


@pytest.mark.usefixtures("_update")
def test_a_batch_that_an_import_claims(capsys):
    tensors, _ = load_tensors(Path("u.safetensors"), what="an update")
    gradient = {
        name.removeprefix("gradient/"): value
        for name, value in tensors.items()
        if name.startswith("gradient/")
    }
    save_file(gradient, "g.safetensors")
    words = "import g.safetensors --channels 1 --num-classes 3 --batch-size 1000000000"
    assert main(shlex.split(f"{words} --out imported.safetensors")) == 2
    assert re.fullmatch(ESTIMATE, capsys.readouterr().err)
    assert not Path("imported.safetensors").exists()


def test_a_picture_of_more_samples_than_there_is_room_for(capsys):
    assert main(shlex.split("prior show prior --rows 100000000 --out p.png")) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(ESTIMATE, said)
    assert said.endswith("; lower --rows\n")


@pytest.fixture
def _update(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("gradinv.room.machine_bytes", lambda: 64 * GIB)
        words = f"{COMMANDS['observe']} --batch-size 2 --device cpu --save-weights w.safetensors"
        assert main(shlex.split(words)) == 0


@pytest.mark.parametrize("claim", [{"batch_size": 100000}, {"image_shape": [1, 8192, 8192]}])
@pytest.mark.parametrize("command", ["invert", "learn-prior"])
@pytest.mark.usefixtures("_update")
def test_in_the_header_of_an_update(command, claim, capsys):
    tensors, header = load_tensors(Path("u.safetensors"), what="an update")
    del tensors["labels"]
    Path("updates").mkdir()
    save_tensors(Path("updates/u.safetensors"), tensors, {**header, **claim})
    if command == "invert":
        refused("invert updates/u.safetensors --attack gi-x --out i", capsys)
        return
    assert main(shlex.split("learn-prior updates --steps 1 --device cpu --out learned")) == 2
    said = capsys.readouterr().err
    assert re.search(r"that fits into the 0\.5 GiB .* needs about [\d.e+]+ GiB; lower", said)


@pytest.mark.parametrize("command", ["audit", "invert", "learn-prior"])
@pytest.mark.usefixtures("_update")
def test_in_the_settings_of_a_prior(command, capsys):
    settings = json.loads(Path("prior/config.json").read_text())
    Path("prior/config.json").write_text(json.dumps({**settings, **HUGE}))
    words = {
        "audit": COMMANDS["audit"] + " --batch-size 1",
        "invert": "invert u.safetensors --attack gi-z --prior prior --out i",
        "learn-prior": COMMANDS["learn-prior"] + " --start prior",
    }
    refused(words[command], capsys)
