import json
from pathlib import Path

import torch

from gradinv.audit.cell import check_runnable
from gradinv.audit.memory import MemoryStore
from gradinv.audit.plan import cells_of
from gradinv.audit.runner import run_audit, run_cells
from gradinv.audit.setup import prepare
from gradinv.audit.store import RunStore, Store
from gradinv.files import load_tensors
from tests.audit.world import config


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not k.startswith("seconds")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_an_audit_in_memory_is_the_audit_in_a_folder():
    store = MemoryStore()
    before = sorted(Path().rglob("*"))
    audit = run_cells(setup := prepare(config()), store, found=check_runnable(setup))
    assert sorted(Path().rglob("*")) == before, "nothing is written"
    assert store.folder is None
    written = run_audit(config(), Path("run"))
    assert without_times(json.loads(json.dumps(audit))) == without_times(written)
    store.write(Path("saved"))
    for cell in cells_of(config()):
        kept, header = load_tensors(RunStore(Path("saved")).tensors_path(cell), what="a cell")
        other, expected = load_tensors(RunStore(Path("run")).tensors_path(cell), what="a cell")
        assert without_times(header) == without_times(expected)
        assert kept.keys() == other.keys()
        assert all(torch.equal(kept[name], other[name]) for name in kept)


def test_an_audit_that_was_saved_is_not_computed_again(monkeypatch):
    store = MemoryStore()
    run_cells(setup := prepare(config()), store, found=check_runnable(setup))
    store.write(Path("saved"))
    monkeypatch.setattr("gradinv.audit.runner.compute", lambda *_, **__: 1 / 0)
    assert run_audit(config(), Path("saved"))["cells"] == json.loads(
        json.dumps(store.audit["cells"])
    )


def test_both_stores_are_stores(tmp_path):
    assert isinstance(MemoryStore(), Store)
    assert isinstance(RunStore(tmp_path / "run"), Store)


def test_what_is_kept_does_not_change_with_the_tensor_it_was_given():
    store, cell, given = MemoryStore(), cells_of(config())[0], torch.zeros(2)
    store.save_cell(cell, {"attack": "gi-x"}, {"original": given}, {})
    given += 1
    assert store.pictures[cell][0]["original"].tolist() == [0, 0]
    assert store.is_finished(cell)
    assert store.load_row(cell)["status"] == "finished"
