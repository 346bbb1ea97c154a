import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gradinv.cli import main

TINY = shlex.split(
    "audit --data images --channels 1 --model tiny_net:make --batch-size 2 --attack gi-x "
    "--defense none --steps-scale 0.01 --workers 1 --device cpu"
)


def test_an_audit_prints_a_table_and_where_the_report_is(capsys):
    assert main([*TINY, "--out", "run"]) == 0
    captured = capsys.readouterr()
    assert "gi-x" in captured.out
    assert "PSNR dB" in captured.out
    assert "A first look only: not all of the presets' steps were done (gi-x 1 %)" in captured.out
    assert captured.out.splitlines()[-1] == "run/audit.json and run/report.html"
    assert "finished gi-x · none · batch 1 (2 of 4)" in captured.err
    assert "<html" in Path("run/report.html").read_text()


def test_how_many_labels_dlg_found_has_a_column(capsys):
    tiny = [word.replace("gi-x", "dlg") for word in TINY]
    assert main([*tiny, "--batches", "1", "--hide-labels", "--out", "run"]) == 0
    assert "labels found" in capsys.readouterr().out
    row, _ = json.loads(Path("run/audit.json").read_text())["summary"]
    assert 0 <= row["label_accuracy"] <= 1


def test_json_is_the_file_and_nothing_else(capsys):
    assert main([*TINY, "--out", "run", "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed == Path("run/audit.json").read_text()
    assert json.loads(printed)["summary"][0]["attack"] == "gi-x"


def test_without_out_the_results_go_to_a_new_folder(capsys):
    assert main([*TINY, "--batches", "1"]) == 0
    (folder,) = Path("runs").iterdir()
    assert (folder / "audit.json").is_file()
    assert (folder / "report.html").is_file()


def test_the_same_folder_with_other_settings_is_refused(capsys):
    assert main([*TINY, "--out", "run", "--batches", "1"]) == 0
    capsys.readouterr()
    assert main([*TINY, "--out", "run", "--batches", "1", "--seed", "5"]) == 2
    assert "got --seed 5 instead of 0" in capsys.readouterr().err


def test_the_report_can_be_written_again(capsys):
    assert main([*TINY, "--out", "run", "--batches", "1"]) == 0
    first = Path("run/report.html").read_text()
    Path("run/report.html").unlink()
    capsys.readouterr()
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out == "run/report.html\n"
    assert Path("run/report.html").read_text() == first


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_printed_command_continues():
    """The whole way: two processes, a signal to the whole group as a terminal sends it."""
    command = [sys.executable, "-m", "gradinv.cli", *TINY, "--out", "run"]
    # Long enough that the first line of progress, after ten seconds, finds it running.
    command[command.index("--steps-scale") + 1] = "10"
    command[command.index("--workers") + 1] = "2"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "left, " in line and "gi-x · none" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == ""
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("gradinv: stopped; to continue: gradinv audit --data images")
    assert last.endswith("--out run")
    assert len(list(Path("run/checkpoints").iterdir())) == 2
    assert not Path("run/audit.json").exists()
    # Not to the end here: that the rest is the same bit for bit is tested with the runner.
    rest = shlex.split(last.split("gradinv audit ", 1)[1])
    again = subprocess.run(
        [sys.executable, "-m", "gradinv.cli", "audit", *rest],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0
    assert Path("run/audit.json").exists()
