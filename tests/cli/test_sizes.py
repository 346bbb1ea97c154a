"""Sizes that no machine can hold are refused with an estimate, before memory is taken."""

import json
import re
import shlex
from pathlib import Path

import pytest

from gradinv.cli import main
from gradinv.files import load_tensors, save_tensors
from gradinv.room import GIB

ESTIMATE = (
    r"gradinv: error: (\S+: )?expected (a|an) [a-z ]+ that fits into the 0\.5 GiB of this machine, "
    r"got one that needs about [\d.e+]+ GiB; lower .*\n"
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


def refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*shlex.split(words), "--device", "cpu"]) == 2
    assert re.fullmatch(ESTIMATE, capsys.readouterr().err)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("command", COMMANDS)
def test_on_the_command_line(command, size, capsys):
    if size in BUILT and command in {"audit", "observe"}:
        pytest.skip("it builds no generator")
    if size == "batch" and command == "prior train":
        pytest.skip("more images than the folder has: tests/priors/test_footprint.py")
    refused(f"{COMMANDS[command]} {SIZES[size]}", capsys)


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
