import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from gradinv.cli import main
from gradinv.federated import FedAvg, Observation
from gradinv.models import build_model
from tests.attacks.tiny import tiny_batch

ABOUT = "--batch-size 2 --image-size 8 --channels 1 --num-classes 10 --model tiny_net:plain"
INVERT = "invert u.safetensors --attack gi-x:steps=3 --weights w.safetensors --device cpu --out run"


@pytest.fixture
def states():
    """The weights before and after one step of SGD in plain PyTorch, and the gradient."""
    model = build_model("tiny_net:plain", num_classes=10, channels=1, image_size=8, seed=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = tiny_batch()
    functional.cross_entropy(model(batch.images), batch.labels).backward()
    gradient = {name: p.grad for name, p in model.named_parameters()}
    stepper.step()
    return before, dict(model.state_dict()), gradient


def imported(words, code=0):
    assert main(shlex.split(f"import {words} {ABOUT} --out u.safetensors")) == code


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_two_states_of_another_program_become_an_update_that_invert_reads(states, prefix, capsys):
    before, after, gradient = states
    save_file({prefix + name: value for name, value in before.items()}, "a.safetensors")
    np.savez("b.npz", **{prefix + name: value.numpy() for name, value in after.items()})
    words = "--before a.safetensors --after b.npz --lr 0.1 --labels 0,1"
    imported(f"{words} --save-weights w.safetensors")
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "u.safetensors w.safetensors"
    assert "preflight: nothing found" in said.out
    assert (f"took {prefix} off the names" in said.out) == bool(prefix)
    update = Observation.load(Path("u.safetensors"))
    for name, value in gradient.items():
        torch.testing.assert_close(update.gradient[name], value, rtol=1e-4, atol=1e-5)
    assert main(INVERT.split()) == 0
    assert json.loads(Path("run/invert.json").read_text())["preflight"] == []


def test_weights_under_the_names_of_a_wrapper(states, capsys):
    before, _, gradient = states
    save_file({f"module.{name}": value for name, value in before.items()}, "w.safetensors")
    save_file(dict(gradient), "g.safetensors")
    imported("g.safetensors --weights w.safetensors")
    assert "Weights: took module. off the names in w.safetensors." in capsys.readouterr().out


def test_a_gradient_of_another_program_in_bfloat16(states, capsys):
    before, _, gradient = states
    save_file(before, "w.safetensors")
    save_file({n: v.bfloat16() for n, v in gradient.items()}, "g.safetensors")
    imported("g.safetensors --weights w.safetensors")
    said = capsys.readouterr().out
    assert "import: computed in float32 with numbers of bfloat16" in said
    assert "preflight, note: the update's numbers are coarse" in said
    assert main(INVERT.split()) == 0
    assert "labels from the update" in capsys.readouterr().out


def test_local_training_takes_its_rate_from_the_difference(states):
    before, after, _ = states
    save_file(before, "a.safetensors")
    save_file(after, "b.safetensors")
    imported("--before a.safetensors --after b.safetensors --lr 0.1 --protocol fedavg")
    update = Observation.load(Path("u.safetensors"))
    assert update.protocol == FedAvg(5, 2, lr=0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "expected either a file of gradients or --before and --after, got neither"),
        ("g.safetensors --before a.safetensors", "got both; give one of them"),
        ("--before a.safetensors", "expected --before and --after together, got one of them"),
        ("--before a.safetensors --after a.safetensors", "expected --lr with --before and --after"),
        ("--before a.safetensors --after a.safetensors --lr 0.1", "not zero everywhere"),
        ("g.safetensors --lr 0", "expected a learning rate above 0 and finite"),
        ("g.safetensors --labels 0,x", "expected --labels as whole numbers such as 3,1"),
        ("g.safetensors --labels 0,10", "expected labels from 0 to 9"),
        (
            "g.safetensors --save-weights ./u.safetensors",
            "expected another file for --save-weights",
        ),
        ("g.safetensors --defense nonsense:1", "nonsense"),
        ("other.safetensors", "parameter 1.bias is missing"),
        ("none.npz", "got nothing there; check the path"),
        ("g.pt", "got a pickle; gradinv never unpickles"),
    ],
)
def test_wrong_use_is_one_line(states, words, said, capsys):
    before, _, gradient = states
    save_file(before, "a.safetensors")
    save_file(gradient, "g.safetensors")
    save_file({"x": torch.ones(2)}, "other.safetensors")
    Path("g.pt").write_bytes(b"PK\x03\x04 as torch.save begins its files")
    imported(words, code=2)
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not Path("u.safetensors").exists()


def test_an_update_taken_the_other_way_round_is_imported_with_a_word(states, capsys):
    before, after, _ = states
    save_file(before, "a.safetensors")
    save_file(after, "b.safetensors")
    words = "--before b.safetensors --after a.safetensors --lr 0.1 --labels 0,1"
    imported(words)
    assert "preflight, doubt: the update points the wrong way" in capsys.readouterr().out
    assert load_file("u.safetensors")
