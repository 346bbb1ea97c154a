import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch

from gradinv.cli import main
from gradinv.cli import watch as module
from gradinv.files import read_json
from gradinv.metalearning import open_tasks
from gradinv.priors import load_generator

WATCH = shlex.split(
    "watch --watched images --data images --channels 1 --model tiny_net:make --batch-size 2 "
    "--batches 1 --attack gi-z --attack gi-x --defense none --steps-scale 0.01 --restarts 1 "
    "--workers 1 --device cpu --clients 2 --rounds-watched 2 --steps 2 --base-channels 4 "
    "--latent 6 --out w"
)


def test_leakage_is_audited_after_every_round(capsys):
    assert main(WATCH) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "w/watch.json and w/leakage.svg"
    assert "gradinv: federation simulated: 4 updates" in captured.err
    assert "gradinv: after round 2: learning 25%, step 1 of 4" in captured.err
    rows = read_json(Path("w/watch.json"))["rounds"]
    # gi-x has no prior, so that watching changes nothing for it.
    assert [(row["rounds"], row["updates"], row["attack"]) for row in rows] == [
        (0, 0, "gi-z"), (1, 2, "gi-z"), (2, 4, "gi-z"),
    ]  # fmt: skip
    assert [row["psnr_mean"] for row in rows] == [
        read_json(Path(f"w/round-{n}/audit/audit.json"))["summary"][0]["psnr_mean"]
        for n in range(3)
    ]
    assert "<circle" in Path("w/leakage.svg").read_text()


def test_what_a_reader_must_know_is_in_the_file_and_below_the_table(capsys):
    assert main(WATCH) == 0
    printed = capsys.readouterr().out
    notes = read_json(Path("w/watch.json"))["notes"]
    assert len(notes) == 2
    assert notes[0].startswith("Left out: gi-x, which uses no prior")
    assert "come from the same folder" in notes[1]
    assert all(note in printed for note in notes)
    assert read_json(Path("w/watch.json"))["start"] == "untrained"


def test_the_learning_starts_from_a_prior_that_is_given(capsys):
    shutil.copytree("images", "others")
    words = shlex.join(WATCH).replace("--watched images", "--watched others")
    words = words.replace(" --attack gi-x", "").replace("--rounds-watched 2", "--rounds-watched 1")
    assert main([*shlex.split(words), "--prior", "prior"]) == 0
    first, given = (load_generator(Path(f)).state_dict() for f in ("w/round-0/prior", "prior"))
    assert all(torch.equal(first[name], given[name]) for name in given)
    watched = read_json(Path("w/watch.json"))
    assert (watched["start"], watched["notes"]) == ("prior", [])
    assert main(shlex.split(words)) == 2
    assert "got other prior" in capsys.readouterr().err


def test_every_part_of_the_work_has_its_bar(monkeypatch):
    shown = []
    enter, audited = module.WorkProgress.__enter__, module.AuditProgress.shown

    def open_bar(self):
        shown.append(self.what)
        return enter(self)

    def open_bars(self):
        shown.append("audit")
        return audited(self)

    monkeypatch.setattr(module.WorkProgress, "__enter__", open_bar)
    monkeypatch.setattr(module.AuditProgress, "shown", open_bars)
    assert main(WATCH) == 0
    assert shown == [
        "federation", "audit", "after round 1: learning", "audit", "after round 2: learning",
        "audit",
    ]  # fmt: skip


def test_the_server_goes_on_from_what_it_knew_with_all_that_it_saw():
    assert main(WATCH) == 0
    for rounds in (1, 2):
        card = read_json(Path(f"w/round-{rounds}/prior/card.json"))
        assert card["start"] == f"after {rounds - 1} rounds"
        assert card["steps"] == 2 * rounds
        assert card["updates"]["digest"] == open_tasks(Path("w/updates"), rounds=rounds).digest
    images = [read_json(Path(f"w/round-{n}/audit/config.json"))["inputs"] for n in range(3)]
    assert images[0]["images"] == images[1]["images"] == images[2]["images"]
    assert images[0]["model"] == images[2]["model"]
    assert images[0]["prior"] != images[1]["prior"] != images[2]["prior"]
    assert load_generator(Path("w/round-0/prior")).image_shape == (1, 32, 32)


def test_ctrl_c_while_it_learns_and_the_same_command_again(capsys, monkeypatch):
    original = module.show_learning

    def press_once(shown, progress):
        if (shown.what, progress.step) == ("after round 2: learning", 1):
            os.kill(os.getpid(), signal.SIGINT)
        original(shown, progress)

    monkeypatch.setattr(module, "show_learning", press_once)
    assert main(WATCH) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"gradinv: stopped; to continue: gradinv {shlex.join(WATCH)}"
    assert main(WATCH) == 0
    assert len(read_json(Path("w/watch.json"))["rounds"]) == 3


def test_ctrl_c_while_the_federation_is_simulated(capsys, monkeypatch):
    original = module.show_simulation
    seen = []

    def press_once(shown, done, total):
        seen.append(done)
        os.kill(os.getpid(), signal.SIGINT)
        original(shown, done, total)

    monkeypatch.setattr(module, "show_simulation", press_once)
    assert main(WATCH) == 130
    assert seen == [1]
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"gradinv: stopped; to continue: gradinv {shlex.join(WATCH)}"
    monkeypatch.setattr(module, "show_simulation", original)
    assert main(WATCH) == 0
    assert len(read_json(Path("w/watch.json"))["rounds"]) == 3


@pytest.mark.parametrize("part", ["auditing", "opened"])
def test_ctrl_c_between_two_parts_of_the_work(part, capsys, monkeypatch):
    original = getattr(module._Display, part)
    calls = []

    def press_once(self):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self)

    monkeypatch.setattr(module._Display, part, press_once)
    assert main(WATCH) == 130
    assert len(calls) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("gradinv: stopped; to continue")
    assert not Path("w/round-1/prior/card.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--attack gi-z --attack gi-x", "--attack gi-x"), "that uses a prior, got gi-x; watch"),
        (("--out w", "--out w --image-size 8"), "at least 11 pixels, the window of SSIM, got 8"),
        (("--defense none", "--defense none --defense noise:1"), "one defence, got none, noise:1"),
        (("--out w", "--out w --prior nowhere"), "expected a prior's folder"),
        (("--channels 1", "--channels 3 --prior prior"), "got one of 32x32 pixels in 1 channel"),
    ],
)
def test_what_cannot_be_watched(change, said, capsys):
    words = shlex.join(WATCH).replace(*change)
    assert main(shlex.split(words)) == 2
    assert said in capsys.readouterr().err
    assert not Path("w").exists()
