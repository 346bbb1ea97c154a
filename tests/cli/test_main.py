import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradinv import __version__
from gradinv.cli import dispatch, main
from gradinv.cli.options import Report
from gradinv.cli.stopping import Stopped, run_folder
from gradinv.errors import DataError
from tests.cli.words import changed
from tests.data.test_loading import folder


def test_help_answers_in_under_a_second():
    """The best of several, because other work on the machine is no fault of ours."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "gradinv", "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds.append(time.perf_counter() - started)
        assert "honest-but-curious" in done.stdout
        if seconds[-1] < 1:
            return
    raise AssertionError(f"expected an answer in under 1 s, got {min(seconds):.2f} s at best")


def test_help_does_not_import_torch():
    code = "import sys, gradinv.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ctrl_c_while_modules_are_imported_is_told_in_one_line():
    """Nothing that takes long is imported before somebody hears it."""
    code = (
        "import sys, gradinv.cli\n"
        "heavy = {'tyro', 'pydantic', 'rich', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "class Pressed:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'tyro':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "sys.exit(gradinv.cli.main(['audit']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == "gradinv: stopped at once; the last checkpoints are kept\n"


@pytest.mark.parametrize("then", ["pass", "raise RecursionError"])
def test_ctrl_c_that_an_import_swallows_is_still_one(then, monkeypatch, capsys):
    def parsed(_arguments):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            exec(then)
        return Report("nowhere")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(dispatch, "parse", parsed)
    assert main(["report", "nowhere"]) == 130
    assert capsys.readouterr().err == "gradinv: stopped at once; the last checkpoints are kept\n"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "command",
    ["audit", "invert", "observe", "prior", "prior train", "prior show", "report"],
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--help"])
    assert left.value.code == 0
    assert f"usage: gradinv {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["audti"],
        ["audit", "--batchsize", "4"],
        ["audit", "--batch-size", "four"],
        ["audit", "--mode", "sleep"],
        ["audit", "--attack", "gi-x", "gi-z"],
        ["invert"],
        ["observe"],
        ["prior"],
        ["report"],
    ],
)
def test_wrong_usage_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gradinv {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("audit --attack gi-xx", "did you mean 'gi-x'?"),
        ("audit --local-epochs 2", "expected --protocol fedavg with --local-epochs, got fedsgd"),
        ("audit --data nowhere", "nothing at nowhere"),
        ("audit --batches 0", "expected --batches of at least 1, got 0"),
        ("invert nowhere", "expected an update as a safetensors file at nowhere"),
        ("observe --batch -1 --out u", "expected --batch of at least 0, got -1"),
        ("observe --data nowhere --out u", "nothing at nowhere"),
        ("prior show nowhere", "expected a prior's folder"),
        ("prior show prior --rows 0", "expected --rows of at least 1, got 0"),
        ("prior train images --steps 0 --out p", "expected --steps above 0, got 0"),
        ("prior train images --steps 1 --minutes 1 --out p", "got both; give one of them"),
        ("prior train images --steps 1 --out p", "expected at least 64 images to train a prior"),
        ("audit --seed 99999999999999999999", "expected --seed of at most 92233720368547"),
        (
            "observe --seed 99999999999999999999 --out u",
            "expected --seed of at most 92233720368547",
        ),
        ("prior show prior --seed 99999999999999999999", "expected --seed of at most 922337203685"),
        ("prior train images --seed 99999999999999999999 --out p", "expected seed of at most 922"),
        ("prior train images --seed -1 --out p", "expected seed of at least 0, got -1"),
        ("prior train images --reconstruction -1 --out p", "reconstruction of at least 0 and fini"),
        ("learn-prior images --seed 99999999999999999999 --out p", "expected seed of at most 9223"),
        ("audit --steps-scale 1e308", "expected a factor on the steps above 0 and at most 1e+06"),
        ("report nowhere", "expected a finished run with audit.json in nowhere"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("gradinv: error: ")
    assert message in captured.err


TINY = "--data images --channels 1 --model tiny_net:make --batch-size 1 --device cpu"


@pytest.mark.parametrize(
    ("arguments", "missing", "instead"),
    [
        (
            "--attack r-gap --model tiny_net:pooling",
            "2 (MaxPool2d pools: several inputs share an output)",
            "attack with gi-x or gi-z/w, which take any network, or audit --model leakynet",
        ),
        (
            "--attack r-gap --model tiny_net:leaky --batch-size 2",
            "an update of one image for r-gap, got 2",
            "use --batch-size 1, or attack with gi-x or gi-z/w",
        ),
        (
            "--attack r-gap --model tiny_net:leaky --protocol fedavg --local-epochs 3",
            "a single gradient for r-gap, got an update of 3 local steps",
            "use --protocol fedsgd or --local-epochs 1, or attack with gi-x",
        ),
        (
            "--attack r-gap+prior --model tiny_net:leaky",
            "a prior for r-gap+prior, got none",
            "pass --prior DIR",
        ),
        (
            "--attack gi-x+bn",
            "known batch-norm statistics for gi-x+bn, got none",
            "pass --reveal-bn exact (the batch's own) or --reveal-bn running (the network's), or "
            "leave out the +bn",
        ),
        (
            "--attack gi-x+bn --model tiny_net:plain --reveal-bn exact",
            "batch-norm layers whose exact statistics are revealed, got a network without any",
            "reveal none",
        ),
        (
            "--attack gi-z",
            "a prior for gi-z, got none",
            "pass --prior DIR (make one with 'gradinv prior train'; natural for 32x32 pixels in "
            "colour), or choose an attack without one, such as --attack gi-x",
        ),
    ],
)
def test_an_attack_that_lacks_something_says_what_and_what_would_do(
    arguments, missing, instead, capsys
):
    assert main(["audit", *changed(TINY.split(), arguments.split()), "--out", "run"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("gradinv: error: expected ")
    assert instead in line.split(missing)[1]
    assert not Path("run").exists()


def fail_with(monkeypatch, error):
    def run(_arguments):
        raise error

    monkeypatch.setattr(dispatch, "run", run)


def test_an_error_of_several_lines_is_printed_on_one(monkeypatch, capsys):
    fail_with(monkeypatch, DataError("expected a\n  b, got c"))
    assert main(["audit"]) == 2
    assert capsys.readouterr().err == "gradinv: error: expected a b, got c\n"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["audit", "--seed", "3"], "gradinv audit --seed 3 --out runs/1"),
        (["audit", "--out", "x", "--seed", "3"], "gradinv audit --seed 3 --out runs/1"),
        (["audit", "--out=x"], "gradinv audit --out runs/1"),
        (["audit", "--data", "my images"], "gradinv audit --data 'my images' --out runs/1"),
    ],
)
def test_ctrl_c_says_how_to_continue(arguments, command, monkeypatch, capsys):
    fail_with(monkeypatch, Stopped("--out", "runs/1"))
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"gradinv: stopped; to continue: {command}\n"


def test_a_second_ctrl_c_ends_at_once(monkeypatch, capsys):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert main(["audit"]) == 130
    assert "the last checkpoints are kept" in capsys.readouterr().err


def test_a_fault_of_ours_is_no_wrong_use(monkeypatch, capsys):
    fail_with(monkeypatch, ZeroDivisionError("within"))
    assert main(["audit"]) == 70
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert captured.err.endswith("please report it with the lines above\n")


def test_a_reader_that_left_is_no_error():
    """As in ``gradinv prior show | head -0``: the pipe is closed before anything is written."""
    code = (
        "import sys, gradinv.cli.dispatch as d, gradinv.cli as c\n"
        "def run(arguments):\n    print('x' * 100000); sys.stdout.flush()\n"
        "d.run = run; sys.exit(c.main(['audit']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (0, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode there")
def test_names_whose_bytes_are_no_utf_8(tmp_path):
    """In a locale of UTF-8, where Python's standard output takes nothing else."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}

    def run(*arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "gradinv", *arguments]
        return subprocess.run(command, capture_output=True, env=environment, check=False)

    data, out = os.fsencode(tmp_path) + b"/caf\xe9", os.fsencode(tmp_path) + b"/out\xe9"
    folder(Path(os.fsdecode(data)), {"a": 3, "b": 3}, side=32)
    observed = run("observe", "--data", data, "--batch-size", "2", "--out", out + b"/u.safetensors")
    assert observed.returncode == 0, observed.stderr
    assert out in observed.stdout
    inverted = run(
        "invert", out + b"/u.safetensors", "--attack", "gi-x", "--steps-scale", "0.001",
        "--restarts", "1", "--out", out,
    )  # fmt: skip
    assert inverted.returncode == 0, inverted.stderr
    loose = Path(os.fsdecode(data)) / "loose.png"
    loose.touch()
    refused = run("data", "check", data)
    assert refused.returncode == 2
    assert b"got the file loose.png" in refused.stdout
    assert b"Traceback" not in refused.stderr
    refused = run("observe", "--data", data, "--out", out + b"/again.safetensors")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert rb"caf\xe9, got the file loose.png" in refused.stderr


def test_a_run_folder_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr("gradinv.cli.stopping.time.strftime", lambda form: "20200101-000000")
    first = run_folder(None)
    assert first.as_posix() == "runs/20200101-000000"
    first.mkdir(parents=True)
    assert run_folder(None).as_posix() == "runs/20200101-000000-2"
    assert run_folder("x").as_posix() == "x"


def test_a_command_is_published_without_the_folders_of_this_machine():
    words = ["prior", "train", "/home/me/data/faces", "--out", "here/faces"]
    assert dispatch._shareable(words) == "gradinv prior train faces --out here/faces"
