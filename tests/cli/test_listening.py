"""Ctrl-C, as a real signal to a real process, is heard within a second whatever it does."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradinv.cli import main

# One second, and one more for a machine that is busy with other tests.
HEARD_SECONDS = 2.0

# Runs the command with one of its parts made long: it says on standard error that it has begun.
LONG = """
import importlib, sys, time
_, part, calls, seconds, *words = sys.argv
module, names = part.split(":")
*owners, name = names.split(".")
owner = importlib.import_module(module)
for each in owners:
    owner = getattr(owner, each)
original, left = getattr(owner, name), [int(calls)]
def long(*arguments, **settings):
    left[0] -= 1
    if left[0] == 0:
        print("begun", file=sys.stderr, flush=True)
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            pass
    return original(*arguments, **settings)
setattr(owner, name, long)
from gradinv.cli import main
sys.exit(main(words))
"""

TINY = "--channels 1 --model tiny_net:make --batch-size 2"
ATTACKED = f"--data images {TINY} --batches 1 --defense none --steps-scale 0.05 --device cpu"
CLIENTS = "--clients 2 --rounds 2 --base-channels 4 --latent 6"
AUDIT = shlex.split(f"audit {ATTACKED} --attack gi-x --workers 1 --out run")
WATCH = shlex.split(
    f"watch --watched images {ATTACKED} --attack gi-z {CLIENTS} --restarts 1 --workers 1 "
    "--steps 2 --out w"
)
LEARN = shlex.split(
    f"learn-prior --simulate images {TINY} {CLIENTS} --steps 3 --tasks 2 --device cpu --out learned"
)
TRAIN = shlex.split(
    "prior train images --channels 1 --base-channels 4 --latent 8 --batch-size 4 --steps 3 "
    "--device cpu --precision fp32 --out trained"
)
OBSERVE = shlex.split(
    "observe --data images --channels 1 --model tiny_net:leaky --batch-size 1 --out u.safetensors"
)
INVERT = shlex.split("invert u.safetensors --attack gi-x --steps-scale 0.05 --out found")
CLOSED = shlex.split("invert u.safetensors --attack r-gap --out found")

DECODING = "gradinv.data.images:ImageSet._stack"
ATTACKING = "gradinv.attacks.driver:Search._step"
PEELING = "gradinv.attacks.inversion:peel"


def listened(process: subprocess.Popen[str], start: str) -> str:
    """Returns what a process says on standard error, up to the first line with this start."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(start):
            return said
    raise AssertionError(said)


def press(words: list[str], part: str, calls: int, seconds: float) -> tuple[float, int, str]:
    """Presses Ctrl-C once the part has begun.

    Returns:
        Seconds until it was heard, exit status, and what was printed to standard error after it.
    """
    command = [sys.executable, "-c", LONG, part, str(calls), str(seconds), *words]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        listened(process, "begun")
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        pressed = time.monotonic()
        said = listened(process, "gradinv: stop")
        heard = time.monotonic() - pressed
        return heard, process.wait(timeout=60), said + process.communicate()[1]


@pytest.fixture
def _update(capsys):
    assert main(OBSERVE) == 0
    capsys.readouterr()


NOTHING_TO_SAVE = {
    "audit, decoding": (AUDIT, DECODING, 1),
    "observe, decoding": (OBSERVE, DECODING, 1),
    "invert, a closed form": (CLOSED, PEELING, 1),
    "audit, a first step": (AUDIT, ATTACKING, 1),
    "prior train, decoding": (TRAIN, DECODING, 1),
    "learn-prior, decoding": (LEARN, DECODING, 1),
    "watch, decoding": (WATCH, DECODING, 1),
    # The images of the clients that are watched, then of those that are attacked.
    "watch, decoding for an audit": (WATCH, "gradinv.audit.watching:run_audit", 1),
}


@pytest.mark.slow
@pytest.mark.usefixtures("_update")
@pytest.mark.parametrize("case", NOTHING_TO_SAVE)
def test_where_nothing_can_be_lost_it_ends_at_once(case):
    words, part, calls = NOTHING_TO_SAVE[case]
    heard, status, errors = press(words, part, calls, 60)
    assert heard < HEARD_SECONDS
    assert status == 130
    assert errors.splitlines()[-1].startswith("gradinv: stopped")
    assert "Traceback" not in errors


STEPS = {
    "audit": (AUDIT, ATTACKING, 2),
    "invert": (INVERT, ATTACKING, 2),
    "prior train": (TRAIN, "gradinv.priors.gan:GanTrainer.step", 2),
    "learn-prior": (LEARN, "gradinv.metalearning.learner:Learner.step", 1),
    "watch": (WATCH, "gradinv.metalearning.learner:Learner.step", 2),
}


@pytest.mark.slow
@pytest.mark.usefixtures("_update")
@pytest.mark.parametrize("case", STEPS)
def test_in_a_long_step_it_is_said_and_the_step_is_ended(case):
    words, part, calls = STEPS[case]
    heard, status, errors = press(words, part, calls, 4)
    assert heard < HEARD_SECONDS
    assert status == 130
    assert "gradinv: stopping" in errors
    assert errors.splitlines()[-1].startswith("gradinv: stopped; to continue: gradinv")
    assert "Traceback" not in errors
    assert main(words) == 0  # goes on from there


SLOW_NET = """
import multiprocessing
import time

from torch import nn

class Slow(nn.Module):
    def forward(self, x):
        if multiprocessing.parent_process() is not None:
            time.sleep(60)
        return x

def make(num_classes, channels, image_size):
    size = channels * image_size**2
    return nn.Sequential(Slow(), nn.Flatten(), nn.Linear(size, num_classes))
"""


@pytest.mark.slow
def test_the_second_one_does_not_wait_for_the_steps_of_workers():
    Path("slow_net.py").write_text(SLOW_NET)
    words = shlex.join(AUDIT).replace("tiny_net", "slow_net").replace("--workers 1", "--workers 2")
    words = words.replace("--batches 1", "--batches 2")
    with subprocess.Popen(
        [sys.executable, "-m", "gradinv.cli", *shlex.split(words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        listened(process, "gradinv: 2 attack runs (gi-x); 2 processes")
        time.sleep(8)  # the workers start; a signal that came before they did is tested elsewhere
        os.killpg(process.pid, signal.SIGINT)
        pressed = time.monotonic()
        listened(process, "gradinv: stopping")
        assert time.monotonic() - pressed < HEARD_SECONDS
        os.killpg(process.pid, signal.SIGINT)
        pressed = time.monotonic()
        said = listened(process, "gradinv: stopped at once")
        assert time.monotonic() - pressed < HEARD_SECONDS
        assert process.wait(timeout=30) == 130
        assert "Traceback" not in said
