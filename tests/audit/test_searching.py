"""Candidate search as a cell: the judge's lists, an observation, and a row."""

import json

import pytest
import torch

from gradinv.audit.cell import observe_planned
from gradinv.audit.plan import Cell
from gradinv.audit.searching import compute, compute_candidates
from gradinv.audit.setup import prepare
from gradinv.audit.store import RunStore
from gradinv.evaluation.candidates import CandidateScore, candidate_result
from gradinv.files import load_tensors
from tests.audit.world import config

CELL = Cell("candidates", "none", 1)


def never() -> bool:
    return False


def searched(tmp_path, cell=CELL, **settings):
    setup = prepare(config(**settings))
    store = RunStore(tmp_path / "run")
    heard = []
    assert compute(setup, cell, store, stop=never, report=heard.append)
    return setup, store, heard


def test_a_row_is_what_the_search_found(tmp_path):
    setup, store, _ = searched(tmp_path)
    row = store.load_row(CELL)
    json.dumps(row, allow_nan=False)
    assert (row["attack"], row["defense"], row["batch"]) == ("candidates", "none", 1)
    lists = setup.judge.lists(setup.client.batches[1], 1)
    assert [image["candidates"] for image in row["images"]] == list(lists.counts)
    assert all(CandidateScore.of(image).named_known for image in row["images"])
    tensors, _ = load_tensors(store.tensors_path(CELL), what="a cell")
    named = tensors["named"].float() / 255
    assert named.shape == setup.client.batches[1].images.shape
    found = candidate_result(observe_planned(setup, CELL), setup.model, lists)
    assert torch.equal(named, (lists.batch(found.picks) * 255).round() / 255)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "train"},
        {"hide_labels": True},
        {"protocol": "fedavg", "local_batch_size": 1},
        {"protocol": "fedavg", "local_batch_size": 1, "reveal_order": True},
    ],
)
def test_it_names_images_however_clients_train(tmp_path, settings):
    """With the rest of the batch, and of what the client did, known."""
    _, store, _ = searched(tmp_path, **settings)
    assert [image["rank_known"] for image in store.load_row(CELL)["images"]] == [0, 0]


def test_noise_and_rounds_reach_the_ceilings(tmp_path):
    cell = Cell("candidates", "noise:0.05", 0)
    settings = {"defense": ("noise:0.05",)}
    _, one, _ = searched(tmp_path / "1", cell, **settings)
    _, four, _ = searched(tmp_path / "4", cell, rounds=4, **settings)
    for a, b in zip(one.load_row(cell)["images"], four.load_row(cell)["images"], strict=True):
        assert a["ceiling"] < b["ceiling"]


def test_as_many_candidates_as_asked(tmp_path):
    _, store, _ = searched(tmp_path, candidates=3)
    assert {image["candidates"] for image in store.load_row(CELL)["images"]} == {3}


def test_it_stops_within_a_trial_and_begins_again(tmp_path):
    setup, store = prepare(config()), RunStore(tmp_path / "run")
    asked = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 3

    assert not compute_candidates(setup, CELL, store, stop=stop, report=lambda _: None)
    assert len(asked) == 4
    assert not store.is_finished(CELL)
    assert compute_candidates(setup, CELL, store, stop=never, report=lambda _: None)


def test_beats_say_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("gradinv.audit.searching.BEAT_SECONDS", 0.0)
    _, _, heard = searched(tmp_path)
    assert heard
    fractions = [beat.fraction for beat in heard]
    assert fractions == sorted(fractions)
    assert heard[0].slug == CELL.slug
    assert heard[0].cost is None
