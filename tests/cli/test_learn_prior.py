import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch

from gradinv.cli import learn_prior as module
from gradinv.cli import main
from gradinv.cli.prior_options import LearnPrior
from gradinv.files import load_tensors, read_json
from gradinv.metalearning import LearningConfig
from gradinv.priors import load_generator

NETWORK = "--model tiny_net:make --channels 1"
SIMULATE = shlex.split(
    f"learn-prior --simulate images {NETWORK} --clients 2 --rounds 2 --batch-size 2 "
    "--defense sparsify:0.5 --base-channels 4 --latent 6 --steps 3 --tasks 2 --device cpu "
    "--out learned"
)


def weights(folder):
    tensors, _ = load_tensors(Path(folder, "model.safetensors"), what="a prior")
    return tensors


def test_a_prior_is_learned_from_a_simulated_federation_and_audited_with(capsys):
    assert main(SIMULATE) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "learned, samples in learned/samples.png"
    assert "gradinv: federation simulated: 4 updates" in captured.err
    assert "gradinv: 4 updates of 8 images, made with 2 networks" in captured.err
    assert "gradinv: learning 33%, step 1 of 3" in captured.err
    card = read_json(Path("learned/card.json"))
    assert (card["learned_from"], card["start"], card["steps"]) == ("gradients", "untrained", 3)
    assert card["command"] == "gradinv " + " ".join(SIMULATE)
    assert "<polyline" in Path("learned/cost.svg").read_text()
    audit = shlex.split(
        f"audit --data images {NETWORK} --batch-size 2 --batches 1 --attack gi-z/w "
        "--prior learned --steps-scale 0.01 --restarts 2 --workers 1 --device cpu --out run"
    )
    assert main(audit) == 0
    plain, cell = read_json(Path("run/audit.json"))["cells"]
    assert (plain["defense"], cell["defense"]) == ("none", "sparsify:0.95")
    assert cell["attack"] == "gi-z/w"
    assert main(shlex.split("prior show learned")) == 0
    assert "gradients" in capsys.readouterr().out


def test_the_whole_way_observe_learn_audit(capsys):
    for batch in range(2):
        observe = f"observe --data images {NETWORK} --batch-size 2 --batch {batch} --device cpu"
        words = shlex.split(f"{observe} --out u/{batch}.safetensors --save-weights u/w.safetensors")
        assert main(words) == 0
    Path("u/bad.safetensors").write_bytes(b"nothing")
    learn = "learn-prior u --base-channels 4 --latent 6 --steps 2 --device cpu --out p"
    assert main(shlex.split(learn)) == 0
    said = capsys.readouterr().err
    assert "gradinv: left out: expected an update or weights as a safetensors file at u/bad" in said
    assert read_json(Path("p/card.json"))["updates"]["left_out"] == 1
    assert load_generator(Path("p")).image_shape == (1, 32, 32)


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_continues(capsys, monkeypatch):
    assert main(SIMULATE) == 0
    original = module.show_learning

    def press_once(shown, progress):
        if progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        original(shown, progress)

    monkeypatch.setattr(module, "show_learning", press_once)
    parts = [*SIMULATE[:-1], "parts"]
    assert main(parts) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "gradinv: stopped; to continue: gradinv " + " ".join(parts)
    assert read_json(Path("parts/card.json"))["state"] == "unfinished"
    assert main(parts) == 0
    whole = weights("learned")
    assert all(torch.equal(value, whole[name]) for name, value in weights("parts").items())


@pytest.mark.parametrize("during", ["show_simulation", "open_tasks"])
def test_ctrl_c_before_the_learning_begins(during, capsys, monkeypatch):
    """At the second of the federation's updates, and while the updates are read."""
    original = getattr(module, during)
    calls = []

    def press_at_the_second(*arguments, **settings):
        calls.append(1)
        if len(calls) == 2 or during == "open_tasks":
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **settings)

    monkeypatch.setattr(module, during, press_at_the_second)
    assert main(SIMULATE) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "gradinv: stopped; to continue: gradinv " + " ".join(SIMULATE)
    assert len(calls) == (2 if during == "show_simulation" else 1)
    assert not Path("learned/card.json").exists()
    monkeypatch.setattr(module, during, original)
    assert main(SIMULATE) == 0
    assert read_json(Path("learned/card.json"))["updates"]["updates"] == 4


@pytest.mark.slow
def test_processes_do_not_change_the_result():
    assert main(SIMULATE) == 0
    assert main([*SIMULATE[:-1], "side", "--workers", "2"]) == 0
    whole = weights("learned")
    assert all(torch.equal(value, whole[name]) for name, value in weights("side").items())


def test_it_goes_on_from_a_prior_and_from_fewer_rounds(capsys):
    assert main(SIMULATE) == 0
    words = "learn-prior learned/updates --rounds-watched 1 --start learned --steps 1 --out more"
    assert main(shlex.split(words)) == 0
    assert "2 updates of 4 images, made with 1 networks" in capsys.readouterr().err
    assert read_json(Path("more/card.json"))["start"] == "learned"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--start", "nowhere"], "expected a prior's folder with model.safetensors"),
        (["--start", "prior", "--image-size", "64"], "set --image-size 32 and --channels 1, or"),
    ],
)
def test_a_prior_to_start_from_is_looked_at_before_a_federation_is_simulated(
    options, message, capsys
):
    assert main([*SIMULATE, *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("learned").exists()


def test_nothing_is_left_where_there_are_no_updates(capsys):
    assert main(shlex.split("learn-prior nowhere --out learned")) == 2
    assert not Path("learned").exists()


def test_options_and_settings_have_the_same_defaults():
    assert module.config_of(LearnPrior(out="p")) == LearningConfig()


def test_the_papers_numbers():
    config = module.config_of(LearnPrior(out="p", paper=True, seed=7))
    assert (config.steps, config.tasks, config.latent_steps, config.weight_steps) == (
        200, 4, 1000, 500,
    )  # fmt: skip
    assert not (config.remember)
    assert not (config.joint)
    assert not (config.keep_moments)
    assert config.seed == 7


def test_a_federation_of_one_class_is_refused(capsys):
    shutil.copytree("images/cat", "one-class/cat")
    assert main([word.replace("images", "one-class") for word in SIMULATE]) == 2
    assert "expected images of at least 2 classes, got only cat" in capsys.readouterr().err
    assert not Path("learned/updates").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "expected a folder of updates or --simulate IMAGES, got neither"),
        ("images --simulate images", "or --simulate IMAGES, got both"),
        ("images --workers 0", "expected --workers of at least 1, got 0"),
        ("images --steps 0", "expected steps above 0 and finite, got 0"),
        ("nowhere", "got none that can be used (no safetensors there)"),
        ("--simulate images --channels 1 --clients 0", "expected clients of at least 1, got 0"),
    ],
)
def test_what_has_no_meaning_is_refused(words, said, capsys):
    assert main(shlex.split(f"learn-prior {words} --out p")) == 2
    assert said in capsys.readouterr().err
