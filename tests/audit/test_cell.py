import dataclasses
import inspect
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gradinv.attacks import (
    Checkpoint,
    Progress,
    invert,
)
from gradinv.audit import cell as module
from gradinv.audit.cell import (
    Beat,
    CellStopped,
    Watch,
    attack_cell,
    compute_cell,
    observe_planned,
)
from gradinv.audit.plan import Cell
from gradinv.audit.rows import to_uint8
from gradinv.audit.setup import prepare
from gradinv.audit.store import RunStore
from gradinv.data import ClientBatch
from gradinv.evaluation.lpips import Lpips
from gradinv.files import load_tensors
from tests.audit.world import config, rebuilt

CELL = Cell("gi-x", "none", 1)


def never() -> bool:
    return False


def ignore(beat: Beat) -> None:
    del beat


def tensors_in(value):
    """Yields every tensor that can be reached from a value; classes hold none of a run."""
    if isinstance(value, type):
        return
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.state_dict().values()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif callable(value) and (closure := getattr(value, "__closure__", None)):
        for content in closure:
            yield from tensors_in(content.cell_contents)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value))


@pytest.mark.parametrize("server", [attack_cell, invert])
def test_the_server_has_no_argument_for_the_clients_images(server):
    signature = inspect.signature(server)
    assert set(signature.parameters) == {
        "observation", "model", "attack", "prior", "seed", "seconds", "callback", "resume",
    }  # fmt: skip
    assert not [name for name in signature.parameters if "batch" in name or "image" in name]
    annotations = " ".join(str(p.annotation) for p in signature.parameters.values())
    assert ClientBatch.__name__ not in annotations


def test_no_pixel_of_the_client_is_within_the_servers_reach(monkeypatch, tmp_path):
    seen = []

    def spy(*arguments, **settings):
        seen.append((arguments, settings))
        return invert(*arguments, **settings)

    monkeypatch.setattr(module, "attack_cell", spy)
    setup = prepare(config())
    assert compute_cell(setup, CELL, RunStore(tmp_path / "run"), stop=never, report=ignore)
    batch = setup.client.batches[CELL.batch]
    pixels = batch.images.unique()
    # Values that any tensor may hold are no evidence.
    pixels = pixels[(pixels > 0) & (pixels < 1)]
    assert len(pixels) > 100
    reached = list(tensors_in(seen))
    assert any(tensor.shape == (2,) and torch.equal(tensor, batch.labels) for tensor in reached)
    for tensor in reached:
        if tensor.is_floating_point():
            assert torch.isin(tensor.float(), pixels).float().mean() < 0.05


def test_the_walk_finds_pixels_where_there_are_some():
    batch = prepare(config()).client.batches[0]

    def closure():
        return batch

    assert any(tensor is batch.images for tensor in tensors_in([closure]))


def test_noise_depends_on_seed_and_batch_and_not_on_the_attack():
    noisy = config(defense=("noise:0.1",), attack=("gi-x", "gi-w"), prior="prior")
    setup = prepare(noisy)

    def gradient(attack, batch, setup=setup):
        cell = Cell(attack, "noise:0.1", batch)
        return observe_planned(setup, cell).gradient["4.bias"]

    first = gradient("gi-x", 0)
    assert torch.equal(first, gradient("gi-w", 0))
    assert not torch.allclose(first, gradient("gi-x", 1), atol=0.02)
    other = prepare(config(defense=("noise:0.1",), seed=1))
    assert not torch.allclose(first, gradient("gi-x", 0, other), atol=0.02)


def test_an_observation_says_what_network_it_was_made_with():
    observation = observe_planned(prepare(config(seed=3)), CELL)
    assert observation.model["spec"] == "tiny_net:make"
    assert observation.model["seed"] == "3"


def test_the_global_source_of_chance_is_left_alone():
    setup = prepare(config())
    before = torch.random.get_rng_state()
    observe_planned(setup, CELL)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_cell_is_matched_measured_and_stored(monkeypatch, tmp_path):
    setup = prepare(config())
    batch = setup.client.batches[1]
    reversed_images = batch.images.flip(0)
    monkeypatch.setattr(module, "attack_cell", lambda *a, **s: rebuilt(reversed_images))
    store = RunStore(tmp_path / "run")
    assert compute_cell(setup, CELL, store, stop=never, report=ignore)
    row = store.load_row(CELL)
    assert (row["attack"], row["defense"], row["batch"], row["seed"]) == ("gi-x", "none", 1, 0)
    assert (row["steps"], row["seconds"], row["objective"]) == (3, 1.5, 0.5)
    assert row["objectives"] == [0.5, None]
    assert row["outcome"] == "all steps done"
    assert row["cost_fell"]
    assert row["stages"][0] | {"psnr_mean": 0} == {
        "name": "x", "steps": 3, "seconds": 1.5, "start": None, "psnr_mean": 0,
    }  # fmt: skip
    assert [image["reconstruction"] for image in row["images"]] == [1, 0]
    for image in row["images"]:
        assert image["mse"] == 0
        assert image["rank"] == 0
        assert image["decoys"] > 0
        assert image["lpips"] == pytest.approx(0, abs=1e-4)
        assert image["ssim"] == pytest.approx(1, abs=1e-5)
    tensors, header = load_tensors(store.tensors_path(CELL), what="a cell")
    assert set(tensors) == {"original", "reconstruction", "stage/0/images", "stage/0/cost"}
    for name in ("reconstruction", "stage/0/images"):
        assert tensors[name].dtype == torch.uint8
        assert torch.equal(tensors[name], tensors["original"])
    assert torch.equal(tensors["original"], to_uint8(batch.images))
    assert tensors["stage/0/cost"].shape == (3, 2)
    assert header["labels"] == batch.labels.tolist()
    assert header["classes"] == [("cat", "dog", "eel")[label] for label in header["labels"]]
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("attack", "method"), [("dlg", "searched with the images"), ("gi-x", "counts")]
)
def test_the_accuracy_of_hidden_labels_is_in_the_row(attack, method, tmp_path):
    setup = prepare(config(attack=(attack,), hide_labels=True))
    cell, store = Cell(attack, "none", 1), RunStore(tmp_path / "run")
    assert compute_cell(setup, cell, store, stop=never, report=ignore)
    found = store.load_row(cell)["label_recovery"]
    assert found["method"] == method
    true = setup.client.batches[1].labels.tolist()
    right = (Counter(found["labels"]) & Counter(true)).total()
    assert found["accuracy"] == right / len(true)
    assert found["labels"] == sorted(found["labels"])


class ConstantLpips(Lpips):
    """Needs no weights."""

    def __init__(self):
        nn.Module.__init__(self)

    def forward(self, preds, target):
        return torch.tensor([0.25, 0.5])


def test_lpips_reaches_the_row(monkeypatch, tmp_path):
    setup = prepare(config())
    setup = dataclasses.replace(
        setup, judge=dataclasses.replace(setup.judge, lpips=ConstantLpips())
    )
    batch = setup.client.batches[1]
    monkeypatch.setattr(module, "attack_cell", lambda *a, **s: rebuilt(batch.images))
    store = RunStore(tmp_path / "run")
    assert compute_cell(setup, CELL, store, stop=never, report=ignore)
    assert [image["lpips"] for image in store.load_row(CELL)["images"]] == [0.25, 0.5]


def progress(step: int) -> Progress:
    return Progress(
        stage=0,
        stage_name="x",
        stages=1,
        step=step,
        steps=10,
        cost=torch.tensor([0.75, 0.25]),
        seconds=float(step),
        fraction=0.5,
        checkpoint=lambda: Checkpoint({}, {"step": step}),
    )


@pytest.fixture
def watched(monkeypatch):
    """A watch with a clock that the test moves: (watch, clock, saved, beats, stop)."""
    clock, saved, beats, stop = [0.0], [], [], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    watch = Watch(
        "slug",
        save=lambda checkpoint: saved.append(checkpoint.header["step"]),
        stop=lambda: bool(stop),
        report=beats.append,
    )
    return watch, clock, saved, beats, stop


def test_a_checkpoint_every_30_seconds_and_a_beat_four_times_a_second(watched):
    watch, clock, saved, beats, _ = watched
    for step in range(1, 801):
        clock[0] = step / 10
        watch(progress(step))
    assert saved == [300, 600]
    assert 200 <= len(beats) <= 320
    assert beats[-1] == Beat("slug", 0.5, "x", beats[-1].step, 10, beats[-1].seconds, 0.25)


def test_stopping_saves_first(watched):
    watch, _, saved, _, stop = watched
    watch(progress(1))
    assert saved == []
    stop.append(1)
    with pytest.raises(CellStopped):
        watch(progress(2))
    assert saved == [2]


def test_an_interrupted_cell_resumes_bit_for_bit(tmp_path):
    setup = prepare(config())
    whole, parts = RunStore(tmp_path / "whole"), RunStore(tmp_path / "parts")
    assert compute_cell(setup, CELL, whole, stop=never, report=ignore)
    asked = []

    def every_fifth() -> bool:
        asked.append(1)
        return len(asked) % 5 == 0

    for _ in range(2):
        assert not compute_cell(setup, CELL, parts, stop=every_fifth, report=ignore)
        assert parts.checkpoint_path(CELL).is_file()
        assert not parts.is_finished(CELL)
    assert compute_cell(setup, CELL, parts, stop=never, report=ignore)
    assert not parts.checkpoint_path(CELL).exists()
    expected, _ = load_tensors(whole.tensors_path(CELL), what="a cell")
    found, _ = load_tensors(parts.tensors_path(CELL), what="a cell")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rows = [whole.load_row(CELL), parts.load_row(CELL)]
    for row in rows:
        for timed in (row, *row["stages"]):
            assert timed.pop("seconds") > 0
    assert rows[0] == rows[1]


def test_paths_of_a_cell_lie_in_the_run_folder(tmp_path):
    store = RunStore(Path("run"))
    assert store.tensors_path(CELL) == Path("run/cells/gi-x--none--batch1.safetensors")
    assert store.checkpoint_path(CELL).parent == Path("run/checkpoints")
