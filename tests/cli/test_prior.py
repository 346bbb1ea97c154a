import os
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradinv.cli import main
from gradinv.cli import prior as module
from gradinv.files import load_tensors, read_json
from gradinv.priors import gan, load_generator, training

TRAIN = shlex.split(
    "prior train many --channels 1 --base-channels 4 --latent 8 --batch-size 4 --steps 3 "
    "--device cpu --precision fp32 --out trained"
)


@pytest.fixture
def many():
    source = np.random.default_rng(0)
    for name in ("a", "b"):
        Path("many", name).mkdir(parents=True)
        for index in range(4):
            pixels = source.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("many", name, f"{index}.png"))


def test_a_prior_is_trained_and_says_how(many, capsys):
    assert main(TRAIN) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "trained, samples in trained/samples.png"
    assert "kernel distance" in captured.out
    assert "gradinv: training 33%, step 1" in captured.err
    assert load_generator(Path("trained")).image_shape == (1, 32, 32)
    card = read_json(Path("trained/card.json"))
    assert card["command"] == "gradinv " + " ".join(TRAIN)
    assert (card["data"], card["steps"], card["state"]) == ("many", 3, "finished")
    assert card["config"]["base_channels"] == 4
    assert card["config"]["latent_dim"] == 8


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_continues(many, capsys, monkeypatch):
    assert main(TRAIN) == 0
    whole, _ = load_tensors(Path("trained/model.safetensors"), what="a prior")
    original = module.show_training

    def press_once(shown, progress):
        if progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        original(shown, progress)

    monkeypatch.setattr(module, "show_training", press_once)
    parts = [*TRAIN[:-1], "parts"]
    assert main(parts) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "gradinv: stopped; to continue: gradinv " + " ".join(parts)
    assert main(parts) == 0
    found, _ = load_tensors(Path("parts/model.safetensors"), what="a prior")
    assert all((found[name] == whole[name]).all() for name in whole)


def test_ctrl_c_while_the_quality_is_measured_leaves_at_once(many, monkeypatch, capsys):
    original = training.measure_quality

    def slow(*_arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(training, "measure_quality", slow)
    started = time.monotonic()
    assert main(TRAIN) == 130
    assert time.monotonic() - started < 30
    assert capsys.readouterr().err.splitlines()[-1].startswith("gradinv: stopped; to continue:")
    # All steps are kept: the same command measures, and is done.
    monkeypatch.setattr(training, "measure_quality", original)
    monkeypatch.setattr(gan.GanTrainer, "step", lambda _: pytest.fail("another step"))
    assert main(TRAIN) == 0


def test_without_a_bound_it_takes_half_an_hour(many, monkeypatch):
    seen = {}

    def spy(images, **settings):
        seen.update(settings)
        return original(images, **(settings | {"minutes": None, "steps": 1}))

    original = module.train_prior
    monkeypatch.setattr(module, "train_prior", spy)
    unbounded = [word for word in TRAIN if word not in {"--steps", "3"}]
    assert main(unbounded) == 0
    assert (seen["minutes"], seen["steps"]) == (30.0, None)


def test_a_prior_is_shown(capsys):
    assert main(shlex.split("prior show prior --rows 2 --seed 4")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "prior-samples.png"
    table = [line.split() for line in lines]
    assert ["images", "32x32", "pixels,", "1", "channel"] in table
    assert ["latent", "8"] in table
    assert ["data", "nothing"] in table
    with Image.open("prior-samples.png") as picture:
        assert picture.size == (8 * 32, 2 * 32)


def test_a_picture_goes_where_it_is_told(capsys):
    assert main(shlex.split("prior show prior --out here/p.png")) == 0
    assert Path("here/p.png").is_file()


def test_a_card_is_flat_text():
    card = {"a": {"b": 1, "c": {"d": 0.123456}}, "e": None}
    assert module._lines(card) == [("a: b", "1"), ("a: c: d", "0.1235"), ("e", "None")]


@pytest.mark.parametrize("option", ["--steps", "--minutes", "--lr", "--latent", "--base-channels"])
def test_a_bound_or_size_of_zero_is_refused(option, many, capsys):
    assert main(["prior", "train", "many", "--out", "trained", option, "0"]) == 2
    assert f"expected {option} above 0" in capsys.readouterr().err
    assert not Path("trained").exists()
