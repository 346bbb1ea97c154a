"""benchmarks/results.py: what may be published, and how figures come from rows."""

import json
import math
import re

import pytest

from benchmarks import results
from benchmarks.results import command_line
from gradinv import environment
from gradinv.errors import ConfigError


def write(folder, name="audit-toy", **changes):
    arguments = {
        "command": "make audit",
        "settings": {"main": "faces none", "seed": 0},
        "figures": {"psnr_mean gi-x": 12.5},
        "rows": [{"attack": "gi-x", "psnr": 12.5}],
    }
    return results.write_results(name, folder=folder, **(arguments | changes))


def test_a_file_holds_what_was_given_and_where_it_was_measured(tmp_path):
    content = json.loads(write(tmp_path).read_text())

    assert (tmp_path / "audit-toy.json").is_file()
    assert content["schema"] == 1
    assert content["name"] == "audit-toy"
    assert content["command"] == "make audit"
    assert content["figures"] == {"psnr_mean gi-x": 12.5}
    assert content["rows"] == [{"attack": "gi-x", "psnr": 12.5}]
    assert content["settings"] == {"main": "faces none", "seed": 0}
    assert content["revision"] == environment.revision()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["date"])
    assert content["machine"] == environment.machine() | {"accelerator": results.accelerator()}
    assert content["versions"] == environment.versions()


def test_writing_again_replaces_and_leaves_nothing_else(tmp_path):
    write(tmp_path)
    write(tmp_path, figures={"psnr_mean gi-x": 13.0})

    assert [path.name for path in tmp_path.iterdir()] == ["audit-toy.json"]
    content = json.loads((tmp_path / "audit-toy.json").read_text())
    assert content["figures"] == {"psnr_mean gi-x": 13.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path, value):
    with pytest.raises(ConfigError, match=r"finite number at 'audit-toy > figures > psnr_mean x'"):
        write(tmp_path, figures={"psnr_mean x": value})
    assert not list(tmp_path.iterdir())


def test_a_row_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"finite number at 'audit-toy > rows > 0 > psnr'"):
        write(tmp_path, rows=[{"psnr": math.inf}])


@pytest.mark.parametrize("value", [True, "12.5", None])
def test_a_figure_that_is_no_number_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match="expected a number as figure 'a' of audit-toy"):
        write(tmp_path, figures={"a": value})


@pytest.mark.parametrize(
    "changes",
    [
        {"command": "gradinv audit --data /home/me/faces"},
        {"command": "gradinv audit --data=/home/me/faces"},
        {"command": "gradinv audit --data ~/faces"},
        {"settings": {"runs": [{"data": "/home/me/faces"}]}},
        {"rows": [{"file": "/tmp/a.png"}]},
    ],
)
def test_a_path_of_this_machine_is_refused(tmp_path, changes):
    with pytest.raises(ConfigError, match="expected no absolute path at"):
        write(tmp_path, **changes)


def test_a_slash_inside_a_name_is_no_path(tmp_path):
    write(tmp_path, settings={"attacks": ["gi-z/w"]}, command="gradinv audit --attack gi-z/w")


@pytest.mark.parametrize("name", ["Audit", "audit_convnet", "../audit", "audit-", ""])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="expected a name such as 'audit-convnet'"):
        write(tmp_path, name=name)


AUDIT = {
    "cells": [
        {
            "attack": "gi-x",
            "defense": "none",
            "batch": batch,
            "objective": 0.1,
            "steps": 10,
            "seconds": seconds,
            "images": [
                {"original": 0, "psnr": low, "ssim": 0.2, "lpips": None, "mse": 0.1, "rank": 3},
                {"original": 1, "psnr": high, "ssim": 0.6, "lpips": None, "mse": 0.1, "rank": 0},
            ],
        }
        for batch, seconds, low, high in [(0, 4.0, 10.0, 14.0), (1, 6.0, 12.0, 20.0)]
    ]
}


def test_an_audit_gives_one_row_per_image():
    rows = results.rows_of_audit(AUDIT, data="faces")

    assert len(rows) == 4
    assert rows[3] == {
        "data": "faces",
        "setting": "none",
        "attack": "gi-x",
        "batch": 1,
        "image": 1,
        "psnr": 20.0,
        "ssim": 0.6,
        "lpips": None,
        "mse": 0.1,
        "rank": 0,
        "decoys": None,
        "objective": 0.1,
        "steps": 10,
        "seconds": 6.0,
    }


def test_figures_are_means_over_images_and_best_is_a_mean_over_batches():
    main = results.rows_of_audit(AUDIT, data="faces")
    other = [row | {"data": "objects", "psnr": row["psnr"] + 1} for row in main]

    figures = results.image_figures([*main, *other], main="faces none")

    assert figures == pytest.approx(
        {
            "psnr_mean gi-x": 14.0,
            "psnr_best gi-x": 17.0,
            "ssim_mean gi-x": 0.4,
            "seconds gi-x": 5.0,
            "psnr_mean gi-x | objects none": 15.0,
            "psnr_best gi-x | objects none": 18.0,
            "ssim_mean gi-x | objects none": 0.4,
            "seconds gi-x | objects none": 5.0,
        }
    )


def test_a_main_case_that_was_not_measured_is_refused():
    rows = results.rows_of_audit(AUDIT, data="faces")
    with pytest.raises(ConfigError, match=r"one of \['faces none'\], got 'faces noise:1'"):
        results.image_figures(rows, main="faces noise:1")


def test_the_command_of_a_results_file_names_no_folder_of_this_machine():
    command = command_line("publish_x", ["--train", "/data/some where/a.gz", "--case", "b:c"])
    assert command == "python -m benchmarks.publish_x --train a.gz --case b:c"
