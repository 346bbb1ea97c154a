"""The scripts in examples/ run, in seconds, and show what they say."""

import importlib.util
import re
from pathlib import Path

import pytest

from gradinv.cli import main
from gradinv.priors import load_generator

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    tested = {"own_model", "own_update", "two_defenses", "own_attack", "own_generator"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_own_model(capsys):
    result = example("own_model").main(steps=60)
    printed = capsys.readouterr().out
    assert printed.startswith("Attack")
    assert result.verdicts[0].sentence in printed
    assert list(Path().iterdir()) == [], "nothing is written"


def test_own_update(capsys):
    module = example("own_update")
    found = module.main(steps=150)
    assert found.images.shape == (1, 1, 16, 16)
    assert float(capsys.readouterr().out.split("PSNR ")[1].split()[0]) > 15


def test_two_defenses(capsys):
    result = example("two_defenses").main(steps=40, batches=2)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert {verdict.defense for verdict in result.verdicts} == {"sparsify:0.9", "clip:1+noise:0.1"}


def test_own_attack(capsys):
    module = example("own_attack")
    result = module.main(steps=30)
    rows = {row["attack"]: row for row in result.rows}
    assert set(rows) == {"gi-x:steps=30", "contrast", "candidates"}
    assert rows["contrast"]["psnr_mean"] != pytest.approx(rows["gi-x:steps=30"]["psnr_mean"])
    assert "contrast" in capsys.readouterr().out


def test_own_generator(capsys):
    example("own_generator").main(steps=150)
    error, grey = (
        float(word) for word in re.findall(r"(\d\S*)(?:;|$)", capsys.readouterr().out.strip())
    )
    assert error < grey / 20


def test_own_generator_by_one_command(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    command = "prior wrap own_generator:Blobs --latent 6 --set side=16 --out my-prior"
    assert command in (EXAMPLES / "own_generator.py").read_text()
    assert main(command.split()) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "my-prior, samples in my-prior/samples.png"
    assert load_generator(Path("my-prior")).image_shape == (1, 16, 16)
