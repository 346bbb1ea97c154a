import os
import re
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gradinv.cli import main
from gradinv.cli import prior as module
from gradinv.files import load_tensors, read_json
from gradinv.priors import gan, load_generator, training
from tests.outside import Painter

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
    assert "training 100%, step 3, the last; measuring what samples are worth" in captured.err
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


WRAP = "prior wrap tests.outside:Painter --latent 5 --range=-1,1 --out wrapped"


def test_a_network_from_elsewhere_becomes_a_prior(capsys):
    assert main([*WRAP.split(), "--set", "side=16"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "16x16 pixels, grey; all checks passed",
        "cannot be used by gifd: it is no sequence of layers",
        "wrapped, samples in wrapped/samples.png",
    ]
    prior = load_generator(Path("wrapped"))
    assert prior.image_shape == (1, 16, 16)
    assert main(["prior", "show", "wrapped"]) == 0
    assert "tests.outside:Painter" in capsys.readouterr().out
    card = read_json(Path("wrapped/card.json"))
    assert card["command"] == f"gradinv {WRAP} --set side=16"
    # A second one does not overwrite it.
    assert main(WRAP.split()) == 2
    assert "got model.safetensors of a prior" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [("s.toml", "side = 16"), ("s.json", '{"side": 16}'), ("s.json", '{"side": 4}')],
)
def test_settings_from_a_file_and_beside_it(name, content):
    Path(name).write_text(content)
    further = ["--set", "side=16"] if "4" in content else []
    assert main([*WRAP.split(), "--settings", name, *further]) == 0
    assert load_generator(Path("wrapped")).image_shape == (1, 16, 16)


def test_weights_are_loaded_and_wrappers_names_taken_off(capsys):
    weights = {f"module.{name}": value for name, value in Painter(8).state_dict().items()}
    save_file(weights, "w.safetensors")
    assert main([*WRAP.split(), "--weights", "w.safetensors"]) == 0
    assert "took module. off the names" in capsys.readouterr().out
    found = load_generator(Path("wrapped")).state_dict()
    assert torch.equal(found["module.layer.weight"], weights["module.layer.weight"])


def test_the_seed_decides_random_weights():
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        assert main([*WRAP.split()[:-1], name, "--seed", str(seed)]) == 0
    a, b, c = (load_generator(Path(name)).state_dict() for name in "abc")
    assert torch.equal(a["module.layer.weight"], b["module.layer.weight"])
    assert not torch.equal(a["module.layer.weight"], c["module.layer.weight"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--latent five", "expected whole numbers such as 100,1,1 as --latent, got 'five'"),
        ("--range=0", "expected the values of black and white as --range, got '0'"),
        ("--range=a,b", "expected two numbers such as --range=-1,1 as --range, got 'a,b'"),
        ("--set side", "expected a setting as --set NAME=VALUE, got 'side'"),
        ("--set 1=2", "expected a setting as --set NAME=VALUE, got '1=2'"),
        ("--set width=3", "to be made of the settings {'width': 3}, got TypeError"),
        ("--settings none.toml", "expected settings as TOML at none.toml"),
        ("--settings none.json", "expected a JSON file at none.json"),
        ("--settings list.json", "expected an object of settings in list.json, got list"),
        ("--part g_ema", "expected --weights beside --part, got none"),
        ("--weights none.pt", "expected a generator's weights as a safetensors file at none.pt"),
        ("--weights other.safetensors", "layer.weight is missing; layer.bias is missing; a is"),
        ("--seed -1", "--seed"),
        ("--latent-scale 0", "a scale above 0"),
        ("--image-size 64", "expected --image-size of at most the module's own 8, got 64"),
    ],
)
def test_a_network_that_cannot_be_wrapped(words, message, capsys):
    Path("list.json").write_text("[]")
    save_file({"a": torch.zeros(1)}, "other.safetensors")
    # What is given here takes the place of the same option there.
    option = words.replace("=", " ").split()[0]
    usual = re.sub(rf"{option}[= ]\S+ ", "", WRAP)
    assert main([*usual.split(), *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("wrapped").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere:Painter", "to name an importable module"),
        ("Painter", "expected a generator as package.module:Class, got 'Painter'"),
        ("tests.outside:Pointer", "did you mean 'Painter'"),
        ("tests.outside:Painter:8", "without '8'; give settings with --set NAME=VALUE"),
        ("tests.outside:mine", "to be a torch.nn.Module, or what makes one, got Attack"),
    ],
)
def test_what_is_no_network(spec, message, capsys):
    assert main(["prior", "wrap", spec, *WRAP.split()[3:]]) == 2
    assert message in capsys.readouterr().err
    assert not Path("wrapped").exists()
