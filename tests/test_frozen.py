"""The frozen evaluation: same batches, same time, each version once, paired differences."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from benchmarks import frozen
from benchmarks.frozen import (
    ENTRIES,
    NETWORKS,
    UPDATES,
    Case,
    Entry,
    Pictures,
    check_batches,
    figures_of,
    jobs,
    measure,
    merged,
    paired,
    parser,
    planned,
    rows_of,
)
from gradinv.attacks import preset
from gradinv.errors import DataError
from gradinv.files import read_json


@pytest.fixture
def case(tmp_path, monkeypatch) -> Case:
    """Two classes of noise, two batches of one network, and next to no time."""
    source = torch.Generator().manual_seed(0)
    for label in "ab":
        (tmp_path / "test" / label).mkdir(parents=True)
        for number in range(6):
            pixels = torch.randint(256, (8, 8, 3), generator=source, dtype=torch.uint8)
            path = tmp_path / "test" / label / f"{number}.png"
            Image.fromarray(pixels.numpy()).save(path)
    monkeypatch.setattr(frozen, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(frozen, "HASHES", tmp_path / "hashes.json")
    monkeypatch.setattr(frozen, "NETWORKS", frozen.NETWORKS[:1])
    monkeypatch.setattr(frozen, "BATCHES", 2)
    return Case(Pictures("noise", str(tmp_path / "test"), ""), replace(UPDATES[0], budget=3))


def test_every_attack_of_the_evaluation_exists():
    assert all(preset(entry.spec) for entry in ENTRIES)
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    assert len({entry.slug for entry in ENTRIES}) == len(names)


def test_an_attack_without_a_prior_is_given_none():
    assert all(entry.prior for entry in ENTRIES if preset(entry.spec).needs_prior)
    assert not any(entry.prior for entry in ENTRIES if not preset(entry.spec).uses_prior)


def test_a_case_is_measured_once_and_its_rows_hold_what_tables_need(case):
    entry = Entry("gi-x")
    measure(case, entry, known={}, freeze=True)
    folder, plan = planned(case, entry)
    written = (folder / "init-0" / "audit.json").stat().st_mtime_ns
    measure(case, entry, known={}, freeze=False)
    assert (folder / "init-0" / "audit.json").stat().st_mtime_ns == written
    rows = rows_of(case, entry)
    assert [row["batch"] for row in rows] == [0, 1]
    assert all(len(row["psnr"]) == 4 and len(row["candidates"]) == 4 for row in rows)
    assert {row["version"] for row in rows} == {plan.version}
    # The yardstick costs what it costs: its steps are the budget, as far as timing is exact.
    assert 1 <= rows[0]["steps"] <= 9
    figures = figures_of(rows)
    assert {"psnr_mean gi-x | noise none", "psnr_mean label mean | noise none"} < set(figures)
    assert 0 <= figures["candidates named | noise none"] <= 1


def test_what_was_not_measured_whole_has_no_rows(case):
    assert rows_of(case, Entry("gi-x")) == []


def test_a_version_on_record_is_not_measured_again(case):
    entry = Entry("gi-x")
    _, plan = planned(case, entry)
    measure(case, entry, known={("noise", "none", "gi-x"): plan.version}, freeze=True)
    assert rows_of(case, entry) == []
    measure(case, entry, known={("noise", "none", "gi-x"): "another"}, freeze=True)
    assert len(rows_of(case, entry)) == 2


def test_other_numbers_are_another_version(case):
    version = planned(case, Entry("gi-x"))[1].version
    assert planned(case, Entry("gi-x:lr=0.3"))[1].version != version
    assert planned(case, Entry("gi-x", share=0.5))[1].version == version


def test_other_batches_than_those_on_record_are_refused(case):
    network = frozen.NETWORKS[0]
    with pytest.raises(DataError, match="expected the batches None of noise init-0, got one"):
        check_batches(case, network, "one", freeze=False)
    check_batches(case, network, "one", freeze=True)
    assert read_json(frozen.HASHES) == {"noise init-0": "one"}
    check_batches(case, network, "one", freeze=False)
    for freeze in (True, False):
        with pytest.raises(DataError, match="expected the batches one of noise init-0, got two"):
            check_batches(case, network, "two", freeze=freeze)


def row(attack, batch, psnr, **changes):
    return {
        "images": "faces", "update": "none", "network": "init-0", "batch": batch, "attack": attack,
        "version": "1", "psnr": psnr, "ssim": [0.5, 0.7], "seconds": 2.0,
        "without": {"label mean": 14.0}, **changes,
    }  # fmt: skip


def test_gains_are_paired_by_batch():
    found = paired({"a": 11.0, "b": 22.0, "c": 33.0}, {"a": 10.0, "b": 20.0, "c": 30.0})
    assert found["gain"] == pytest.approx(2.0)
    half = 4.302653 / 3**0.5  # Student's t, two degrees of freedom; the differences' deviation is 1
    assert (found["low"], found["high"]) == pytest.approx((2 - half, 2 + half), rel=1e-5)


def test_figures_are_means_over_batches_and_gains_over_the_yardstick():
    rows = [
        row("gi-x", 0, [20.0, 22.0]), row("gi-x", 1, [18.0, 20.0]),
        row("gi-z", 0, [22.0, 24.0]), row("gi-z", 1, [21.0, 23.0]),
    ]  # fmt: skip
    figures = figures_of(rows)
    assert figures["psnr_mean gi-x | faces none"] == 20
    assert figures["psnr_mean gi-z | faces none"] == 22.5
    assert figures["gain gi-z | faces none"] == 2.5
    assert figures["ssim_mean gi-z | faces none"] == pytest.approx(0.6)
    assert figures["psnr_mean label mean | faces none"] == 14
    assert "gain gi-x | faces none" not in figures
    assert "candidates named | faces none" not in figures


def test_what_was_measured_anew_takes_the_place_of_what_is_on_record():
    before = [row("gi-z", 0, [1.0]), row("gi-x", 0, [2.0]), row("retired", 0, [3.0])]
    found = merged(before, [row("gi-z", 0, [4.0]), row("gi-z", 1, [5.0])])
    assert [(own["attack"], own["psnr"]) for own in found] == [
        ("gi-x", [2.0]), ("gi-z", [4.0]), ("gi-z", [5.0]),
    ]  # fmt: skip


def test_jobs_are_attack_by_attack():
    words = ["--images", "one", "a", "b", "c", "d", "--images", "two", "a", "b", "c", "d"]
    words += ["--attack", "gi-z", "--attack", "gi-x", "--update", "none"]
    found = jobs(parser().parse_args(words))
    assert [(case.name, entry.name) for case, entry in found] == [
        ("one none", "gi-x"), ("two none", "gi-x"), ("one none", "gi-z"), ("two none", "gi-z"),
    ]  # fmt: skip


def test_an_unknown_attack_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["--images", "one", "a", "b", "c", "d", "--attack", "gi-q"])
    assert "invalid choice: 'gi-q'" in capsys.readouterr().err


def test_other_batches_are_refused_before_anything_is_measured(case):
    frozen.HASHES.write_text('{"noise init-0": "others"}')
    with pytest.raises(DataError, match="expected the batches others of noise init-0, got"):
        measure(case, Entry("gi-x"), known={}, freeze=False)
    assert rows_of(case, Entry("gi-x")) == []


def test_a_version_is_what_the_attack_does_on_every_network(case, monkeypatch):
    alone = {spec: planned(case, Entry(spec))[1].version for spec in ("gi-x", "gi-x:published")}
    train = next(network for network in NETWORKS if network.mode == "train")
    monkeypatch.setattr(frozen, "NETWORKS", (NETWORKS[0], train))
    # gi-x has settings of its own for batch norm in train mode; the published numbers are one set.
    assert planned(case, Entry("gi-x"))[1].version != alone["gi-x"]
    assert planned(case, Entry("gi-x:published"))[1].version == alone["gi-x:published"]
