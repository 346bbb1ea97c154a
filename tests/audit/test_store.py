import errno
import json
import os

import pytest
import torch

from gradinv.audit.plan import Cell
from gradinv.audit.store import RunStore
from gradinv.errors import ConfigError, StorageError
from gradinv.files import load_tensors, save_tensors

CELL = Cell("gi-z/w", "none", 1)
ROW = {"attack": "gi-z/w", "defense": "none", "batch": 1, "images": []}


def identity(**changes):
    settings = {"seed": 0, "attack": ["gi-x"], "out": "a", "workers": 1}
    inputs = {"model": "aa", "prior": None}
    return {
        "settings": settings | changes.get("settings", {}),
        "versions": {"torch": "2"} | changes.get("versions", {}),
        "inputs": inputs | changes.get("inputs", {}),
    }


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "run")
    store.claim(identity())
    return store


def test_a_claim_is_kept_and_repeated(store):
    store.claim(identity())
    assert json.loads((store.folder / "config.json").read_text())["settings"]["seed"] == 0


def test_where_and_how_fast_may_differ(store):
    store.claim(identity(settings={"out": "b", "workers": 7}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": {"seed": 3, "attack": ["gi-x", "gi-z"]}, "inputs": {"model": "bb"}},
            "got --seed 3 instead of 0; --attack gi-x gi-z instead of gi-x; use the same",
        ),
        ({"versions": {"torch": "3"}}, "got version 3 of torch instead of 2; use"),
        ({"inputs": {"prior": "cc"}}, "got other prior (fingerprint cc instead of none); use"),
    ],
)
def test_another_audit_is_refused_and_the_differences_named(store, changes, message):
    with pytest.raises(ConfigError) as error:
        store.claim(identity(**changes))
    assert message in str(error.value)


def test_a_file_may_have_another_path_but_no_other_content(store):
    same = {"update": "dd"}
    here = {"settings": {"update": "u", "weights": "w", "prior": "p"}, "inputs": same}
    there = {"settings": {"update": "../u", "weights": None, "prior": "q"}, "inputs": same}
    other = RunStore(store.folder.parent / "other")
    other.claim(identity(**here))
    other.claim(identity(**there))
    with pytest.raises(ConfigError, match=r"got --update \.\./u instead of u; use the same"):
        other.claim(identity(**(there | {"inputs": {"update": "ee"}})))
    with pytest.raises(ConfigError, match=r"got --weights none instead of w; use the same"):
        other.claim(identity(**(there | {"inputs": {"update": "dd", "model": "bb"}})))


def test_a_setting_of_another_version_is_a_difference(store):
    with pytest.raises(ConfigError, match="--speed 9 instead of none"):
        store.claim(identity(settings={"speed": 9}))


def test_a_config_of_another_program_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json that is not one of schema 1"):
        RunStore(tmp_path).claim(identity())


def test_results_without_config_are_not_overwritten(tmp_path):
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"got audit\.json without config\.json"):
        RunStore(tmp_path).claim(identity())
    assert not (tmp_path / "config.json").exists()


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="expected a writable folder"):
        RunStore(tmp_path / "file").claim(identity())


def test_a_saved_cell_is_finished_and_its_checkpoint_gone(store):
    store.checkpoint_path(CELL).parent.mkdir()
    store.checkpoint_path(CELL).write_bytes(b"x")
    assert not store.is_finished(CELL)
    store.save_cell(CELL, ROW, {"original": torch.ones(2)}, {"labels": [1]})
    assert store.is_finished(CELL)
    assert not store.checkpoint_path(CELL).exists()
    row = store.load_row(CELL)
    assert row == {**ROW, "status": "finished", "files": "cells/gi-z_w--none--batch1.safetensors"}
    tensors, header = load_tensors(store.folder / row["files"], what="a cell")
    assert tensors["original"].tolist() == [1, 1]
    assert header == {"kind": "cell", "schema": 1, "labels": [1]}


@pytest.mark.parametrize("calls_before_full", [0, 1])
def test_a_full_disk_leaves_an_unfinished_cell_and_no_litter(store, monkeypatch, calls_before_full):
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > calls_before_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        store.save_cell(CELL, ROW, {"original": torch.ones(2)}, {})
    assert not store.is_finished(CELL)
    assert not list(store.folder.rglob("*.tmp"))
    assert not store.json_path(CELL).exists()


def test_a_row_of_another_cell_is_refused(store):
    store.save_cell(CELL, ROW, {"original": torch.ones(2)}, {})
    store.json_path(CELL).write_text(json.dumps({**ROW, "batch": 2}))
    with pytest.raises(StorageError, match=r"expected the row of gi-z_w--none--batch1.*got .*2\)"):
        store.load_row(CELL)
    store.json_path(CELL).write_text("7")
    with pytest.raises(StorageError, match="got 7"):
        store.load_row(CELL)


def lose_images(store):
    row = json.loads(store.json_path(CELL).read_text())
    store.json_path(CELL).write_text(json.dumps({k: v for k, v in row.items() if k != "images"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store: store.json_path(CELL).write_text("{"), "got no JSON"),
        (lambda store: store.json_path(CELL).write_text("{}"), r"got \(None, None, None\)"),
        (lose_images, "without images"),
        (lambda store: store.tensors_path(CELL).write_bytes(b"short"), "truncated or foreign"),
        (lambda store: save_tensors(store.tensors_path(CELL), {}, {"kind": "x"}), "got kind 'x'"),
    ],
)
def test_a_damaged_cell_is_named_with_the_files_to_delete(store, damage, message):
    store.save_cell(CELL, ROW, {"original": torch.ones(2)}, {})
    store.require_whole(CELL)
    damage(store)
    with pytest.raises(StorageError, match=message) as error:
        store.require_whole(CELL)
    files = f"delete {store.json_path(CELL)} and {store.tensors_path(CELL)} and run"
    assert files in str(error.value)


def test_the_audit_takes_the_empty_checkpoint_folder_away(store):
    checkpoints = store.folder / "checkpoints"
    checkpoints.mkdir()
    store.write_audit({"schema": 1})
    assert json.loads((store.folder / "audit.json").read_text()) == {"schema": 1}
    assert not checkpoints.exists()
    checkpoints.mkdir()
    (checkpoints / "other").write_text("")
    store.write_audit({"schema": 1})
    assert checkpoints.exists()
