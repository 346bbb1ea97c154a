import json
import os
import re
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from gradinv.api.progress import AuditProgress
from gradinv.audit import cell as cell_module
from gradinv.audit import inversion as inversion_module
from gradinv.audit.cell import observe_planned
from gradinv.audit.plan import Cell, derive_seed
from gradinv.audit.runner import run_audit
from gradinv.audit.setup import prepare
from gradinv.cli import main
from gradinv.federated import FedAvg, Observation
from gradinv.files import load_tensors, save_tensors
from gradinv.priors import SHIPPED, load_generator
from gradinv.priors.dcgan import DCGAN
from gradinv.priors.generator import save_generator
from tests.audit.world import config
from tests.cli.words import changed

OBSERVE = shlex.split(
    "observe --data images --channels 1 --model tiny_net:make --batch-size 2 --device cpu "
    "--defense noise:0.001 --batch 1 --out u.safetensors"
)
INVERT = shlex.split("invert u.safetensors --attack gi-x --steps-scale 0.01 --device cpu")


@pytest.fixture
def update(capsys):
    assert main([*OBSERVE, "--save-weights", "w.safetensors"]) == 0
    return Path("u.safetensors")


def test_weights_do_not_overwrite_the_update(capsys):
    Path("here").symlink_to(".")
    for other in ("u.safetensors", "./u.safetensors", "here/u.safetensors"):
        assert main([*OBSERVE, "--save-weights", other]) == 2
        assert "expected another file for --save-weights" in capsys.readouterr().err
        assert not Path("u.safetensors").exists()


def test_weights_under_the_names_of_a_wrapper_are_taken_and_it_is_said(update, capsys):
    """By every command that takes --weights; as if they had the network's own names."""
    state, _ = load_tensors(Path("w.safetensors"), what="weights")
    save_file({f"module.{name}": value for name, value in state.items()}, "ddp.safetensors")
    note = "Weights: took module. off the names in ddp.safetensors."
    observe = shlex.join(OBSERVE).replace("u.safetensors", "v.safetensors")
    assert main(shlex.split(f"{observe} --weights ddp.safetensors")) == 0
    assert f"gradinv: {note}" in capsys.readouterr().err
    again, first = Observation.load(Path("v.safetensors")), Observation.load(update)
    assert again.model["fingerprint"] == first.model["fingerprint"]
    assert main([*INVERT, "--weights", "ddp.safetensors", "--out", "i"]) == 0
    assert note in capsys.readouterr().out
    assert note in json.loads(Path("i/invert.json").read_text())["notes"]
    audit = (
        "audit --data images --channels 1 --model tiny_net:make --batch-size 2 --batches 1 "
        "--attack gi-x --defense none --steps-scale 0.01 --workers 1 --device cpu"
    )
    assert main(shlex.split(f"{audit} --weights ddp.safetensors --out a")) == 0
    assert note in capsys.readouterr().out
    assert note in json.loads(Path("a/audit.json").read_text())["notes"]
    assert note in Path("a/report.html").read_text()
    learn = (
        "learn-prior --simulate images --channels 1 --model tiny_net:make --clients 2 --rounds 1 "
        "--batch-size 2 --base-channels 4 --latent 6 --steps 1 --tasks 1 --device cpu --out p"
    )
    assert main(shlex.split(f"{learn} --weights ddp.safetensors")) == 0
    assert f"gradinv: {note}" in capsys.readouterr().err
    for command in (f"{audit} --out b", learn.replace("--out p", "--out q")):
        assert main(shlex.split(f"{command} --weights w.safetensors")) == 0
        said = capsys.readouterr()
        assert "Weights:" not in said.out + said.err


@pytest.mark.parametrize("kind", ["frozen", "empty"])
@pytest.mark.parametrize(
    "command",
    [
        "observe --data images --out u.safetensors",
        "learn-prior --simulate images --rounds 1 --clients 2 --batch-size 2 --out p",
    ],
)
def test_a_network_with_nothing_to_train_has_no_update(command, kind, capsys):
    words = f"{command} --channels 1 --model tiny_net:{kind} --device cpu"
    assert main(words.split()) == 2
    assert "expected at least one parameter with requires_grad" in capsys.readouterr().err


def test_the_update_is_the_one_that_an_audit_attacks(update, capsys):
    saved = Observation.load(update)
    setup = prepare(config(defense=("noise:0.001",)))
    attacked = observe_planned(setup, Cell("gi-x", "noise:0.001", 1))
    assert saved.gradient.keys() == attacked.gradient.keys()
    assert all(torch.equal(saved.gradient[n], attacked.gradient[n]) for n in saved.gradient)
    assert saved.model == attacked.model
    assert capsys.readouterr().out == "u.safetensors w.safetensors\n"


def test_an_attack_on_it_finds_what_the_audit_finds(update, capsys):
    run_audit(config(defense=("noise:0.001",)), Path("run"))
    seed = derive_seed(0, "attack", 1)
    assert main([*INVERT, "--seed", str(seed), "--out", "inverted"]) == 0
    found, header = load_tensors(Path("inverted/reconstruction.safetensors"), what="pictures")
    path = Path("run/cells/gi-x--noise-0.001--batch1.safetensors")
    audited, _ = load_tensors(path, what="a cell")
    assert torch.equal(found["stage/0/cost"], audited["stage/0/cost"])
    assert header["kind"] == "reconstruction"
    assert header["labels"] == Observation.load(update).labels.tolist()  # type: ignore[union-attr]


FEDAVG = shlex.split("--protocol fedavg --local-epochs 2 --local-batch-size 1 --local-lr 0.3")


@pytest.mark.parametrize("reveal", [False, True])
def test_local_training_is_the_one_that_an_audit_attacks(capsys, reveal):
    flag = ["--reveal-order"] if reveal else []
    assert main([*OBSERVE, *FEDAVG, *flag]) == 0
    saved = Observation.load(Path("u.safetensors"))
    settings = {
        "protocol": "fedavg", "local_epochs": 2, "local_batch_size": 1, "local_lr": 0.3,
        "reveal_order": reveal,
    }  # fmt: skip
    setup = prepare(config(defense=("noise:0.001",), **settings))
    attacked = observe_planned(setup, Cell("gi-x", "noise:0.001", 1))
    assert all(torch.equal(saved.gradient[n], attacked.gradient[n]) for n in saved.gradient)
    assert saved.protocol == attacked.protocol == FedAvg(2, 1, lr=0.3)
    assert saved.order == attacked.order
    assert (saved.order is not None) == reveal


def test_an_update_of_local_training_is_inverted_either_way(capsys):
    assert main([*OBSERVE, *FEDAVG]) == 0
    costs = []
    for how in ("simulate", "approximate"):
        command = shlex.split(f"invert u.safetensors --attack gi-x:fedavg={how} --device cpu")
        assert main([*command, "--steps-scale", "0.01", "--out", how]) == 0
        costs.append(json.loads(Path(how, "invert.json").read_text())["objective"])
    assert costs[0] != costs[1]


def test_options_of_local_training_need_local_training(capsys):
    assert main([*OBSERVE, "--local-lr", "0.3"]) == 2
    assert "expected --protocol fedavg with --local-lr, got fedsgd" in capsys.readouterr().err
    assert not Path("u.safetensors").exists()


def test_pictures_tensors_and_numbers_are_written(update, capsys):
    assert main([*INVERT, "--out", "inverted", "--weights", "w.safetensors"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].startswith("gi-x: all steps done, matching cost ")
    assert printed[-1] == "inverted/reconstruction.png"
    with Image.open("inverted/reconstruction.png") as picture:
        assert picture.size == (2 * 128, 128)
    tensors, _ = load_tensors(Path("inverted/reconstruction.safetensors"), what="pictures")
    assert set(tensors) == {"images", "reconstruction", "stage/0/images", "stage/0/cost"}
    assert tensors["images"].shape == (2, 1, 32, 32)
    assert tensors["images"].dtype == torch.float32
    result = json.loads(Path("inverted/invert.json").read_text())
    assert {"schema", "gradinv", "attack", "seed", "labels", "steps", "seconds", "objective",
            "outcome", "stages", "config"} <= set(result)  # fmt: skip
    assert (result["attack"], result["config"]["weights"]) == ("gi-x", "w.safetensors")
    assert "images" not in result


def test_the_attack_is_named_with_its_settings_as_in_an_audit(update, capsys):
    spec = "gi-x:tv=0.5"
    run_audit(config(attack=(spec,), defense=("noise:0.001",)), Path("run"))
    audit = json.loads(Path("run/audit.json").read_text())
    assert main(changed(INVERT, ["--attack", spec, "--out", "inverted"])) == 0
    result = json.loads(Path("inverted/invert.json").read_text())
    assert result["attack"] == audit["cells"][0]["attack"] == spec
    assert result["config"]["attacks"] == audit["config"]["attacks"]


def test_it_needs_neither_images_nor_factory_seed(update, capsys):
    for file in Path("images").rglob("*.png"):
        file.unlink()
    assert main([*INVERT, "--out", "inverted"]) == 0


def test_a_finished_attack_is_not_run_again(update, capsys, monkeypatch):
    assert main([*INVERT, "--out", "inverted"]) == 0
    first = capsys.readouterr().out

    def refuse(*arguments, **settings):
        raise AssertionError("run again")

    monkeypatch.setattr(inversion_module, "attack_cell", refuse)
    assert main([*INVERT, "--out", "inverted"]) == 0
    assert capsys.readouterr().out in first


def test_the_same_update_under_another_path_is_the_same_attack(update, capsys):
    assert main([*INVERT, "--out", "inverted"]) == 0
    Path("elsewhere").mkdir()
    shutil.copy(update, "elsewhere/other.safetensors")
    moved = [word.replace("u.safetensors", "elsewhere/other.safetensors") for word in INVERT]
    assert main([*moved, "--weights", "w.safetensors", "--out", "inverted"]) == 0
    assert main([*OBSERVE[:-1], "elsewhere/other.safetensors", "--hide-labels"]) == 0
    assert main([*moved, "--out", "inverted"]) == 2
    assert "got --update elsewhere/other.safetensors instead of u" in capsys.readouterr().err


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_continues(update, capsys, monkeypatch):
    whole = [*INVERT, "--out", "whole"]
    assert main(whole) == 0
    original = AuditProgress.beat
    pressed = []

    def press_once(self, beat):
        if not pressed:
            pressed.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        original(self, beat)

    monkeypatch.setattr(cell_module, "BEAT_SECONDS", 0.0)
    monkeypatch.setattr(AuditProgress, "beat", press_once)
    parts = [*INVERT, "--out", "parts"]
    capsys.readouterr()
    assert main(parts) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("--out parts")
    assert Path("parts/checkpoint.safetensors").is_file()
    assert not Path("parts/invert.json").exists()
    assert main(parts) == 0
    assert not Path("parts/checkpoint.safetensors").exists()
    expected, _ = load_tensors(Path("whole/reconstruction.safetensors"), what="pictures")
    found, _ = load_tensors(Path("parts/reconstruction.safetensors"), what="pictures")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def rewritten(change):
    """Writes the update again with another header or other tensors."""
    tensors, header = load_tensors(Path("u.safetensors"), what="an update")
    change(tensors, header)
    save_tensors(Path("u.safetensors"), tensors, header)


def lose_seed(tensors, header):
    header["model"]["seed"] = "none"


def huge_seed(tensors, header):
    header["model"]["seed"] = "99999999999999999999"


def break_number(tensors, header):
    tensors["gradient/4.bias"][0] = float("nan")


def empty_batch(tensors, header):
    header["batch_size"] = 0


def flat_images(tensors, header):
    header["image_shape"] = [1, 0, 32]


def lose_layer(tensors, header):
    header["parameters"].remove("4.bias")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lose_seed, [], "as the network's seed in the update, got 'none'"),
        (huge_seed, [], "expected the network's seed of at most 9223372036854775807, got 99999"),
        (break_number, [], "NaN or infinity in gradient/4.bias"),
        (lose_layer, [], "parameter 4.bias is missing"),
        (empty_batch, [], "expected batch_size as a whole number above 0, got 0; observe it again"),
        (flat_images, [], "expected three whole numbers above 0 in image_shape, got (1, 0, 32)"),
        (None, ["--model", "tiny_net:plain"], "parameter 1.bias has shape (4,) instead of (3,)"),
        (None, ["--attack", "gi-z"], "expected a prior for gi-z, got none"),
        (None, ["--attack", "gi-x+bn"], "observe the update with --reveal-bn exact"),
        (None, ["--attack", "r-gap"], "got 2; observe the update with --batch-size 1, or attack"),
        (None, ["--attack", "gi-z", "--prior", "large"],
         "observe the update with --image-size 64 and --channels 1, or train"),
        (None, ["--weights", "u.safetensors"], "expected model weights at u.safetensors"),
        (None, ["--restarts", "0"], "--restarts of at least 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(change, arguments, message, update, capsys):
    if change is not None:
        rewritten(change)
    if "large" in arguments:
        large = DCGAN(image_size=64, channels=1, base_channels=4, latent_dim=8)
        save_generator(large.eval(), Path("large"), {"data": "nothing"})
    capsys.readouterr()
    assert main([*changed(INVERT, arguments), "--out", "inverted"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert message in errors
    assert not Path("inverted").exists()


def test_an_update_without_labels_is_attacked_with_those_that_it_gives_away(capsys):
    assert main([*OBSERVE, "--hide-labels"]) == 0
    assert Observation.load(Path("u.safetensors")).labels is None
    capsys.readouterr()
    assert main([*INVERT, "--out", "inverted"]) == 0
    result = json.loads(Path("inverted/invert.json").read_text())
    Path("u.safetensors").unlink()
    assert main(OBSERVE) == 0
    known = Observation.load(Path("u.safetensors")).labels
    assert known is not None
    assert result["labels"] == result["label_recovery"]["labels"] == sorted(known.tolist())
    assert not result["label_recovery"]["exact"]
    assert f"(counts, estimated): {' '.join(map(str, result['labels']))}" in capsys.readouterr().out


def test_labels_that_dlg_searches_are_reported_as_recovered_ones(capsys):
    """On a network without a last linear layer, too: nothing is read off it."""
    observe = [word.replace("tiny_net:make", "tiny_net:headless") for word in OBSERVE]
    assert main([*observe, "--hide-labels"]) == 0
    arguments = ["--model", "tiny_net:headless", "--attack", "dlg", "--out", "inverted"]
    capsys.readouterr()
    assert main(changed(INVERT, arguments)) == 0
    found = json.loads(Path("inverted/invert.json").read_text())["label_recovery"]
    labels = " ".join(map(str, found["labels"]))
    printed = capsys.readouterr().out
    assert f"labels from the update (searched with the images, estimated): {labels}" in printed


def test_a_network_without_a_last_linear_layer_is_refused_before_a_folder_is_made(capsys):
    observe = [word.replace("tiny_net:make", "tiny_net:headless") for word in OBSERVE]
    assert main([*observe, "--hide-labels"]) == 0
    assert main([*INVERT, "--model", "tiny_net:headless", "--out", "inverted"]) == 2
    assert "ends in a linear layer whose output is the logits" in capsys.readouterr().err
    assert not Path("inverted").exists()


def test_other_weights_are_noticed(update, capsys):
    assert main([*OBSERVE, "--seed", "1", "--save-weights", "w1.safetensors"]) == 0
    Path("u.safetensors").unlink()
    assert main(OBSERVE) == 0
    assert main([*INVERT, "--weights", "w1.safetensors", "--out", "inverted"]) == 2
    assert "made with other weights" in capsys.readouterr().err


def test_the_sum_of_several_clients_is_refused_before_a_folder_is_made(update, capsys):
    replace(Observation.load(update), clients=5).save(update)
    assert main([*INVERT, "--out", "inverted"]) == 2
    assert "expected the update of one client, got the sum of those of 5" in capsys.readouterr().err
    assert not Path("inverted").exists()


def test_the_embedded_prior_can_be_named(update, capsys, monkeypatch):
    called, load = [], load_generator

    def stand_in(folder):
        called.append(folder)
        return load(Path("prior"))

    monkeypatch.setattr("gradinv.audit.inputs.load_generator", stand_in)
    arguments = ["--attack", "gi-z", "--prior", "embedded", "--restarts", "1", "--out", "i"]
    assert main(changed(INVERT, arguments)) == 0
    assert called == [SHIPPED["embedded"]]


@pytest.mark.parametrize(
    "claim",
    [
        {"num_classes": 2**62},
        {"batch_size": 10**12},
        {"image_shape": [1, 2**40, 2**40]},
        {"image_shape": [1, 2**20, 2**20]},
    ],
    ids=["classes", "batch", "pixels", "image"],
)
def test_an_update_that_claims_absurd_sizes(claim, capsys):
    """With a network of our own; its sizes come out of the header."""
    assert main([*shlex.split("observe --batch-size 2 --device cpu --out u.safetensors")]) == 0
    tensors, header = load_tensors(Path("u.safetensors"), what="an update")
    del tensors["labels"]
    save_tensors(Path("absurd.safetensors"), tensors, {**header, **claim})
    capsys.readouterr()
    assert main(shlex.split("invert absurd.safetensors --attack gi-x --device cpu")) == 2
    assert re.fullmatch(r"gradinv: error: expected .*; lower .*\n", capsys.readouterr().err)


def test_images_that_no_machine_can_hold(capsys):
    assert main(shlex.split("observe --image-size 1048576 --device cpu --out u.safetensors")) == 2
    found = capsys.readouterr().err
    assert re.fullmatch(r"gradinv: error: expected a network that fits .*; lower .*\n", found)
    assert (
        main(shlex.split("observe --batch-size 1000000000 --device cpu --out u.safetensors")) == 2
    )
    found = capsys.readouterr().err
    assert re.fullmatch(
        r"gradinv: error: expected a batch that fits .*; lower --image-size or .*\n", found
    )


def test_a_company_s_weights_load_with_a_normalisation_outside(update, capsys):
    # Saved by a network without normalisation: the names are the same.
    outside = shlex.split("--weights w.safetensors --mean 0.5 --std 0.25")
    assert main([*changed(OBSERVE, ["--out", "n.safetensors"]), *outside]) == 0
    one, other = Observation.load(update), Observation.load(Path("n.safetensors"))
    assert list(one.gradient) == list(other.gradient)
    assert one.model["fingerprint"] == other.model["fingerprint"]
    assert (other.model["mean"], other.model["std"]) == ("0.5", "0.25")
    assert any(not torch.equal(one.gradient[name], other.gradient[name]) for name in one.gradient)
    invert = ["invert", "n.safetensors", *INVERT[2:], "--weights", "w.safetensors"]
    assert main([*invert, "--out", "said"]) == 0
    # 0.50 is the number that the update says; 0.4 is another.
    assert main([*invert, "--out", "same", "--mean", "0.50", "--std", "0.25"]) == 0
    capsys.readouterr()
    assert main([*invert, "--out", "other", "--mean", "0.4", "--std", "0.25"]) == 2
    assert "expected --mean 0.5 --std 0.25 as the update says" in capsys.readouterr().err


def test_a_head_of_1000_outputs():
    assert main([*OBSERVE, "--classes", "1000"]) == 0
    assert Observation.load(Path("u.safetensors")).num_classes == 1000


def test_a_client_of_one_class_needs_the_networks_classes(capsys):
    for name in ("dog", "eel"):
        shutil.rmtree(Path("images", name), ignore_errors=True)
    single = changed(OBSERVE, ["--batch", "0"])
    assert main(single) == 2
    assert "or the network's classes (--classes)" in capsys.readouterr().err
    assert main([*single, "--classes", "10"]) == 0
    assert Observation.load(Path("u.safetensors")).num_classes == 10


def retold(path, other, header=lambda text: text, tensors=lambda value: value):
    """Writes an update again with another header, or with other tensors."""
    with safe_open(path, "pt") as file:
        named = {name: tensors(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        text = header(file.metadata()["gradinv"])
    save_file(named, other, metadata={"gradinv": text})


def inverted(path):
    return main(["invert", path, "--attack", "gi-x:steps=2", "--device", "cpu", "--out", "other"])


def test_a_header_of_brackets_within_brackets_is_one_line(update, capsys):
    retold(update, "x.safetensors", lambda _: f'{{"kind": {"[" * 100_000 + "]" * 100_000}}}')
    capsys.readouterr()
    assert inverted("x.safetensors") == 2
    error = capsys.readouterr().err
    assert "got a header of far too many nested brackets" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("brackets", [100_000])
@pytest.mark.parametrize("path", ["prior/config.json", "run/audit.json"])
def test_brackets_within_brackets_are_one_line(update, path, brackets, capsys):
    Path("run").mkdir()
    Path(path).write_text("[" * brackets + "]" * brackets)
    capsys.readouterr()
    words = f"invert {update} --attack gi-z:steps=2 --prior prior --out other --device cpu"
    assert main(words.split() if path.startswith("prior") else ["report", "run"]) == 2
    error = capsys.readouterr().err
    assert path in error
    assert "nested brackets" in error
    assert error.count("\n") == 1


def test_an_update_in_bfloat16_is_attacked_and_its_coarse_numbers_are_noted(update, capsys):
    short = lambda v: v.bfloat16() if v.is_floating_point() else v  # noqa: E731
    retold(update, "x.safetensors", tensors=short)
    capsys.readouterr()
    assert inverted("x.safetensors") == 0
    assert "the update's numbers are coarse" in capsys.readouterr().err
    assert inverted("u.safetensors") == 2, "another attack lies in the folder"
