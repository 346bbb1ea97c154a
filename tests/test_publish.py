"""The commands that publish audits: how their arguments and figures are made."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.giml_plan import SCALES, mean, snapshot
from benchmarks.publish import _specs
from benchmarks.publish_defences import _least_noise, strongest
from benchmarks.publish_noise import DRAWS, SIGMAS, measured
from benchmarks.publish_standard import _named, _parts, figures_of
from benchmarks.publish_tuned import gain
from benchmarks.publish_verdict import Case, measure, parts, simulated
from benchmarks.publish_verdict import figures_of as errors
from benchmarks.utility import Training
from gradinv.data import load_images
from gradinv.evaluation.verdict import Level


def test_settings_are_for_one_defence():
    tuned = ["none=gi-x:tv=0.003", "sparsify:0.95=gi-w:tv=0.01"]
    assert _specs(("gi-x", "gi-w"), tuned, "none") == {"gi-x": "gi-x:tv=0.003", "gi-w": "gi-w"}
    assert _specs(("gi-x", "gi-w"), tuned, "sparsify:0.95") == {
        "gi-x": "gi-x", "gi-w": "gi-w:tv=0.01",
    }  # fmt: skip


def test_the_parts_of_a_case():
    assert _parts("faces:data:prior:convnet:sparsify:0.95:8:60") == (
        "faces", "data", "prior", "convnet", "sparsify", "0.95", 8, 60.0,
    )  # fmt: skip
    assert _parts("faces:data:prior:resnet18:none:4:90.5")[4:] == ("none", "", 4, 90.5)
    assert _named("faces:/a/b/c:prior") == "faces:b/c:prior"


def row(attack: str, fraction: float, psnr: float) -> dict:
    return {
        "data": "faces", "model": "convnet", "attack": attack, "fraction": fraction, "psnr": psnr,
    }  # fmt: skip


def test_gain_and_time_ratio():
    rows = [row("gi-x", 1.0, 10.0), row("gi-x", 1.0, 12.0), row("gi-z/w", 1.0, 12.0)]
    slow = [row("standard", f, 12.0 + f) for f in (1.0, 1 / 2, 1 / 3)]
    figures = figures_of([*rows, *slow, row("standard", 1 / 6, 11.0)])
    assert figures["gain_db faces convnet"] == pytest.approx(1.0)
    assert figures["time_ratio faces convnet"] == pytest.approx(1 / 3)
    assert figures["psnr_mean gi-x faces convnet"] == 11.0
    never = [row("standard", f, 11.9) for f in (1.0, 1 / 2, 1 / 3, 1 / 6)]
    assert figures_of([*rows, *never])["time_ratio faces convnet"] == 2.0


def test_a_gain_is_of_differences_of_batches():
    rows = [
        {"attack": attack, "batch": batch, "psnr": psnr}
        for attack, values in (("new", ((20.0, 22.0), (31.0,))), ("old", ((10.0, 12.0), (20.0,))))
        for batch, images in enumerate(values)
        for psnr in images
    ]
    found = gain(rows, "new", "old")
    assert found["gain"] == 10.5
    assert found["low"] < 10.5 < found["high"]
    assert gain(rows, "old", "new")["gain"] == -10.5


def test_a_mean_is_over_the_rows_that_are_meant():
    rows = [
        {"prior": "learned", "outer_step": 5, "psnr": 10.0, "psnr_z": 8.0},
        {"prior": "learned", "outer_step": 5, "psnr": 14.0},
        {"prior": "learned", "outer_step": 9, "psnr": 20.0},
        {"prior": "wrong", "outer_step": None, "psnr": 1.0},
    ]
    assert mean(rows, "psnr", prior="learned", outer_step=5) == 12.0
    assert mean(rows, "psnr_z", prior="learned", outer_step=5) == 8.0
    assert mean(rows, "psnr", outer_step=None) == 1.0


@pytest.mark.parametrize("name", SCALES)
def test_every_step_that_is_attacked_with_is_kept(name):
    scale = SCALES[name]
    every = min(scale.snapshots)
    assert all(step % every == 0 and step <= scale.steps for step in scale.snapshots)
    assert max(scale.snapshots) == scale.steps
    assert all(part < scale.steps_scale for part in scale.convergence)
    assert snapshot(Path("p"), every).name == f"{every:06d}"


def test_simulated_audits_know_the_labels_alone_or_one_image():
    pair = parts(load_images(None), "fashion")
    assert (len(pair.images), len(pair.others)) == (120, 40)
    quiet = simulated(pair, batch_size=4, case=Case(1), seed=3)
    assert quiet == simulated(pair, batch_size=4, case=Case(1), seed=3)
    assert quiet["n"] == 32
    assert quiet["candidates"] == 64
    shown = simulated(pair, batch_size=4, case=Case(1, 30.0), seed=3)
    assert shown["level"] == "SEVERE"
    row = measure(pair, batch_size=32, case=Case(4), audits=2)
    assert sum(row[level.value] for level in Level) == pytest.approx(1)
    assert row["case"] == "mean of 4 others"


def test_errors_of_the_verdict():
    quiet = {"data": "d", "batch_size": 4, "case": "another image", "planted": None, "bare": 0.0}
    loud = {**quiet, "case": "one image at 20 dB", "planted": 20.0, "bare": 0.125}
    levels = {"SEVERE": 0.25, "PARTIAL": 0.5, "OPEN": 0.25, "EXCLUDED": 0.0}
    figures = errors([{**quiet, **levels}, {**loud, **levels}])
    assert (figures["false_alarm"], figures["miss"], figures["open"]) == (0.75, 0.25, 0.125)
    assert figures["false_alarm d B=4 another image"] == 0.75
    assert figures["miss d B=4 one image at 20 dB"] == 0.25


def test_the_least_noise_has_two_digits_and_is_no_less():
    def noise(needed: float) -> str:
        return _least_noise([{"defense": "none", "sigma_needed": needed}])

    assert noise(0.1234) == "noise:0.13"
    assert noise(3.01) == "noise:3.1"
    assert noise(25.0) == "noise:25"


def test_naming_against_what_no_server_can_do():
    """Drawn in the span of the candidates, named as often as the ceiling says, and no more."""
    images = load_images(None)
    rows, figures = measured(images, "fashion", batches=2, batch_size=2, candidates=6, seed=0)
    assert len(rows) == 2 * len(SIGMAS)
    for row in rows:
        low, high = row["ceiling_interval"]
        assert row["luck"] == pytest.approx(1 / 6)
        # 160 draws: four standard deviations of what is left to chance.
        spread = 4 * (row["ceiling"] * (1 - row["ceiling"]) / (4 * DRAWS)) ** 0.5
        assert low - spread - 0.01 <= row["named"] <= high + spread + 0.01
        if row["clip"]:
            assert row["closed_form"] >= row["ceiling"] - 1e-3
    assert set(figures) == {"sigma_needed fashion", "sigma_needed fashion clip:1"}


def test_the_strongest_attack_has_the_gravest_verdict_then_the_highest_psnr():
    rows = [
        {"defense": defense, "attack": attack, "level": level, "psnr_mean": psnr}
        for defense, attack, level, psnr in (
            ("none", "a", "PARTIAL", 30.0), ("none", "b", "SEVERE", 20.0),
            ("none", "c", "SEVERE", 21.0), ("clip:1", "a", "OPEN", 9.0),
        )
    ]  # fmt: skip
    rows.append({"defense": "none", "attack": "candidates", "level": "SEVERE", "psnr_mean": None})
    found = strongest(rows)
    assert list(found) == ["none", "clip:1"]
    assert [row["attack"] for row in found.values()] == ["c", "a"]


def test_a_network_learns_from_defended_updates_and_not_from_noise(tmp_path):
    images = load_images(None)
    folder = tmp_path / "train"
    for index, label in enumerate(images.labels.tolist()):
        pixels = images.all_images_uint8()[index, 0].numpy()
        path = folder / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    short = Training(rounds=8, clients=4, batch_size=4, lr=3e-3)
    learned = short.accuracy("none", str(folder), str(folder))
    assert learned > 0.3
    assert learned == short.accuracy("none", str(folder), str(folder))
    assert short.accuracy("clip:1+noise:10", str(folder), str(folder)) < learned
