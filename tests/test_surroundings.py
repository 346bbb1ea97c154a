"""Where and when a command runs, and by how many threads its caller computes, changes no bit."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gradinv
from gradinv.attacks.driver import Search
from gradinv.federated import client
from gradinv.files import load_tensors, read_json
from tests.attacks.tiny import tiny_batch, tiny_victim
from tests.audit.world import build

AUDIT = shlex.split(
    "audit --data images --channels 1 --model tiny_net:make --batch-size 3 --batches 2 "
    "--attack gi-x+bn --attack gi-z/w --attack ggl --prior prior --reveal-bn exact "
    "--defense none --defense sparsify:0.5+noise:0.001 --steps-scale 0.01 --restarts 2 "
    "--workers 1 --device cpu --out run"
)
# As a program that shares the process may have done.
CHILD = (
    "import locale, sys; locale.setlocale(locale.LC_ALL, ''); "
    "from gradinv.cli import main; sys.exit(main(sys.argv[1:]))"
)
COMMA = ("de_DE.utf8", "fr_FR.utf8", "de_DE.UTF-8", "fr_FR.UTF-8")


def comma_locale() -> str:
    """Returns a locale whose numbers have a comma, if the machine has one; else that of C."""
    known = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=True).stdout
    return next((name for name in COMMA if name in known.split()), "C")


def results(run: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Returns the rows of the cells without seconds, and every tensor of their files."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k != "seconds"}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    cells = timeless(read_json(run / "audit.json")["cells"])
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted((run / "cells").glob("*.safetensors")):
        found, _ = load_tensors(file, what="a cell")
        tensors |= {f"{file.name}/{name}": value for name, value in found.items()}
    return cells, tensors


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="it has no locale program")
def test_surroundings_change_no_bit(tmp_path):
    """Locale, time zone, hash seed, threads, a long path, and files made in another order."""
    here, there = tmp_path / "here", tmp_path / ("d" * 120) / ("e" * 120)
    here.mkdir()
    there.mkdir(parents=True)
    build(here)
    # Names that languages sort in different orders.
    (here / "images/eel").rename(here / "images/Äl")
    (here / "images/cat/3.png").rename(here / "images/cat/Z.png")
    (here / "images/cat/4.png").rename(here / "images/cat/ä.png")
    for file in sorted((file for file in here.rglob("*") if file.is_file()), reverse=True):
        to = there / file.relative_to(here)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)
    surroundings = {
        here: {
            "LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1",
        },
        there: {
            "LC_ALL": comma_locale(), "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "1",
            "OMP_NUM_THREADS": "2",
        },
    }  # fmt: skip
    for folder, variables in surroundings.items():
        subprocess.run(
            [sys.executable, "-c", CHILD, *AUDIT],
            cwd=folder, env={**os.environ, **variables}, capture_output=True, check=True,
        )  # fmt: skip
    expected, found = results(here / "run"), results(there / "run")
    assert len(expected[0]) == 12
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value), name


@pytest.fixture
def threads(monkeypatch):
    """Notes by how many threads steps and gradients are computed."""
    seen: list[int] = []
    step, gradient = Search._step, client.loss_gradient

    def spy_step(self: Search, progress: float) -> None:
        seen.append(torch.get_num_threads())
        step(self, progress)

    def spy_gradient(*arguments: Any, **settings: Any) -> Any:
        seen.append(torch.get_num_threads())
        return gradient(*arguments, **settings)

    monkeypatch.setattr(Search, "_step", spy_step)
    monkeypatch.setattr("gradinv.federated.observing.loss_gradient", spy_gradient)
    yield seen
    torch.set_num_threads(1)


def test_threads_of_the_caller_change_nothing(threads):
    """Their number is asserted too: sums as small as these do not depend on it."""
    model, batch = tiny_victim(), tiny_batch(batch=4)

    def run() -> list[torch.Tensor]:
        update = gradinv.observe(model, batch, defense="noise:0.001")
        found = gradinv.invert(update, model, attack="gi-x:steps=3", restarts=2, progress=False)
        return [*update.gradient.values(), found.images]

    expected = run()
    torch.set_num_threads(2)
    for value, wanted in zip(run(), expected, strict=True):
        assert torch.equal(value, wanted)
    assert torch.get_num_threads() == 2
    assert len(threads) > 6
    assert set(threads) == {1}


def test_threads_of_the_caller_change_no_audit(threads):
    source = torch.Generator().manual_seed(0)
    images, labels = torch.rand(12, 1, 16, 16, generator=source), torch.arange(12) % 3
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3)).eval()

    def run() -> list[dict[str, Any]]:
        found = gradinv.audit(
            model, images, labels, batch_size=2, attack="gi-x:steps=3", progress=False
        )
        return [{k: v for k, v in row.items() if k != "seconds"} for row in found.rows]

    expected = run()
    torch.set_num_threads(2)
    assert run() == expected
    assert torch.get_num_threads() == 2
    assert set(threads) == {1}
