import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gradinv.audit import cell as cell_module
from gradinv.audit import runner as module
from gradinv.audit.interruption import LeftAtOnce
from gradinv.audit.plan import cells_of
from gradinv.audit.runner import (
    AuditStopped,
    Monitor,
    one_thread,
    run_audit,
    worker_count,
)
from gradinv.audit.store import RunStore
from gradinv.errors import AttackError, ConfigError, GradinvError, StorageError
from gradinv.files import load_tensors, read_json
from tests.audit.world import config


class Diary(Monitor):
    """Writes down what it hears; ``on_beat`` is called with every beat."""

    def __init__(self, on_beat=None):
        self.events = []
        self.finished_before = None
        self.workers = None
        self.on_beat = on_beat

    def start(self, cells, finished, workers):
        self.finished_before, self.workers = list(finished), workers

    def beat(self, beat):
        self.events.append(("beat", beat.slug))
        if self.on_beat is not None:
            self.on_beat(beat)

    def finish(self, cell):
        self.events.append(("finish", cell.slug))

    def stopping(self):
        self.events.append(("stopping", ""))

    def heard(self, kind):
        return [slug for event, slug in self.events if event == kind]


class CtrlC:
    """Pressed once so many cells were heard, and only then: a second time would end at once."""

    def __init__(self, cells=1):
        self.cells, self.heard, self.pressed = cells, set(), False

    def __call__(self, beat):
        self.heard.add(beat.slug)
        if len(self.heard) == self.cells and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)


def timeless(value):
    """Returns a value of audit.json without what differs between two runs of the same audit."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in {"seconds", "workers"}}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def assert_same_results(first: Path, second: Path, settings):
    assert timeless(read_json(first / "audit.json")) == timeless(read_json(second / "audit.json"))
    for cell in cells_of(settings):
        expected, _ = load_tensors(RunStore(first).tensors_path(cell), what="a cell")
        found, _ = load_tensors(RunStore(second).tensors_path(cell), what="a cell")
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def every_step_beats(monkeypatch):
    monkeypatch.setattr(cell_module, "BEAT_SECONDS", 0.0)


def test_an_audit_ends_with_all_cells_in_the_order_of_the_tables():
    settings = config(attack=("gi-x", "gi-w"), defense=("none", "clip:1"), prior="prior")
    diary = Diary()
    audit = run_audit(settings, Path("run"), monitor=diary)
    assert read_json(Path("run/audit.json")) == audit
    assert [(c["attack"], c["defense"], c["batch"]) for c in audit["cells"]] == [
        (c.attack, c.defense, c.batch) for c in cells_of(settings) if not c.is_candidates
    ]
    assert [(c["attack"], c["defense"], c["batch"]) for c in audit["candidates"]] == [
        (c.attack, c.defense, c.batch) for c in cells_of(settings) if c.is_candidates
    ]
    assert set(diary.heard("finish")) == {cell.slug for cell in cells_of(settings)}
    assert (diary.finished_before, diary.workers) == ([], 1)
    assert [(row["attack"], row["defense"]) for row in audit["summary"]] == [
        ("gi-x", "none"), ("gi-w", "none"), ("candidates", "none"),
        ("gi-x", "clip:1"), ("gi-w", "clip:1"), ("candidates", "clip:1"),
    ]  # fmt: skip
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "audit.json", "cells", "config.json",
    ]  # fmt: skip


def test_nothing_is_written_before_everything_is_checked():
    with pytest.raises(AttackError):
        run_audit(config(attack=("gi-x", "gi-z")), Path("run"))
    assert not Path("run").exists()


def test_finished_cells_are_not_computed_again(monkeypatch):
    first = run_audit(config(), Path("run"))
    Path("run/audit.json").unlink()

    def refuse(*arguments, **settings):
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "compute", refuse)
    diary = Diary()
    assert (
        run_audit(config(out="elsewhere", workers=2), Path("run"), monitor=diary)["cells"]
        == (first["cells"])
    )
    assert diary.finished_before == list(cells_of(config()))


def test_another_audit_does_not_continue_in_the_folder():
    run_audit(config(), Path("run"))
    with pytest.raises(ConfigError, match="--seed 1 instead of 0"):
        run_audit(config(seed=1), Path("run"))


def test_ctrl_c_stops_and_the_same_audit_continues_bit_for_bit(every_step_beats):
    before = signal.getsignal(signal.SIGINT)
    diary = Diary(CtrlC())
    with pytest.raises(AuditStopped) as stopped:
        run_audit(config(), Path("parts"), monitor=diary)
    assert stopped.value.folder == Path("parts")
    assert signal.getsignal(signal.SIGINT) is before
    # The step in which it is pressed is the last but one: the next call of the watch stops.
    assert (len(diary.heard("beat")), diary.heard("finish")) == (1, [])
    assert len(diary.heard("stopping")) == 1
    assert len(list(Path("parts/checkpoints").iterdir())) == 1
    assert not Path("parts/audit.json").exists()
    run_audit(config(), Path("parts"))
    run_audit(config(), Path("whole"))
    assert_same_results(Path("whole"), Path("parts"), config())
    assert not Path("parts/checkpoints").exists()


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_a_damaged_cell_is_told_before_any_attack_and_its_advice_helps(kind):
    first = run_audit(config(), Path("run"))
    store = RunStore(Path("run"))
    cell, other, *_ = cells_of(config())
    path = Path("run/cells") / f"{cell.slug}.{kind}"
    path.write_bytes(path.read_bytes()[:40])
    store.json_path(other).unlink()
    diary = Diary()
    with pytest.raises(StorageError) as error:
        run_audit(config(), Path("run"), monitor=diary)
    assert diary.workers is None  # it was not even started
    deleted = str(error.value).split("; delete ")[1].split(" and run")[0].split(" and ")
    for name in deleted:
        Path(name).unlink()
    again = run_audit(config(), Path("run"))
    assert again["summary"][0]["psnr_mean"] == first["summary"][0]["psnr_mean"]


def test_a_damaged_checkpoint_says_what_to_delete():
    setup = module.prepare(config())
    store = RunStore(Path("run"))
    store.claim(setup.identity())
    path = store.checkpoint_path(cells_of(config())[0])
    path.parent.mkdir()
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(StorageError, match=f"delete {path}: the attack then begins anew"):
        run_audit(config(), Path("run"))
    path.unlink()
    run_audit(config(), Path("run"))


def test_two_processes_stop_continue_and_agree_with_one(every_step_beats):
    settings = config(workers=2)
    diary = Diary(CtrlC(cells=2))
    with pytest.raises(AuditStopped):
        run_audit(config(workers=2, steps_scale=1.0), Path("stopped"), monitor=diary)
    assert len(list(Path("stopped/checkpoints").iterdir())) == 2
    assert len(diary.heard("stopping")) == 1
    assert diary.workers == 2
    run_audit(settings, Path("two"))
    run_audit(config(), Path("one"))
    assert_same_results(Path("one"), Path("two"), settings)
    assert not multiprocessing.active_children()


SLOW_WORKERS = """
import multiprocessing, time

import tiny_net

def make(num_classes, channels, image_size):
    if multiprocessing.parent_process() is not None:
        time.sleep(60)
    return tiny_net.make(num_classes, channels, image_size)
"""


def test_workers_with_nothing_to_save_are_not_waited_for():
    """They load for a minute; whoever presses Ctrl-C waits for none of it."""
    Path("slow_net.py").write_text(SLOW_WORKERS)
    pressed = []

    class Impatient(Diary):
        def tick(self):
            if not pressed:
                pressed.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)

    diary = Impatient()
    settings = config(model="slow_net:make", workers=2)
    with pytest.raises(AuditStopped) as stopped:
        run_audit(settings, Path("run"), monitor=diary)
    assert time.monotonic() - pressed[0] < 10
    assert stopped.value.folder == Path("run")
    assert len(diary.heard("stopping")) == 1
    assert not multiprocessing.active_children()
    assert not list(Path("run").rglob("*.tmp"))
    assert len(run_audit(replace(settings, workers=1), Path("run"))["cells"]) == 2


def test_a_worker_writes_nothing_once_it_may_be_killed(tmp_path):
    class Flag:
        raised = False

        def is_set(self):
            return self.raised

    flag, flags = Flag(), [0, 0]
    unsaved = module._Unsaved(flags, 1, flag)
    store = module._WorkerStore(tmp_path / "run", unsaved)
    cell = cells_of(config())[0]
    flag.raised = True
    with pytest.raises(LeftAtOnce):
        store.save_cell(cell, {}, {"a": torch.zeros(1)}, {})
    assert not (tmp_path / "run").exists()
    # It had a step to save before, so its parent waits.
    assert unsaved()
    assert flags == [0, 1]
    store.save_cell(cell, {}, {"a": torch.zeros(1)}, {})
    assert store.is_finished(cell)


def test_ctrl_c_after_the_last_trial_of_a_search_leaves_at_once(monkeypatch):
    """What follows the trials, such as the ceilings, can take minutes and asks nobody."""
    pressed = []

    def searched(*_arguments, tick, **_settings):
        tick(0.0)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr("gradinv.audit.searching.candidate_result", searched)
    with pytest.raises(AuditStopped):
        run_audit(config(), Path("run"))
    assert time.monotonic() - pressed[0] < 5


def test_an_error_in_a_worker_comes_back_as_it_is(every_step_beats):
    """Two cells, two workers; the checkpoint of one is no checkpoint."""
    settings = config(workers=2)
    RunStore(Path("run")).claim(module.prepare(settings).identity())
    path = RunStore(Path("run")).checkpoint_path(cells_of(settings)[0])
    path.parent.mkdir()
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(StorageError, match="expected an attack's checkpoint"):
        run_audit(settings, Path("run"))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_killed_worker_is_said_to_be_killed():
    def kill(_beat):
        multiprocessing.active_children()[0].kill()

    settings = config(workers=2, steps_scale=5.0)
    with pytest.raises(GradinvError, match=r"got one that was killed .*--out run and a smaller"):
        run_audit(settings, Path("run"), monitor=Diary(kill))


def test_the_cell_with_most_work_starts_first(every_step_beats):
    settings = config(attack=("gi-w", "gi-z/w"), prior="prior", batches=1, restarts=1)
    diary = Diary()
    run_audit(settings, Path("run"), monitor=diary)
    work = {
        name: attack.total_work for name, attack in module.prepare(settings).server.attacks.items()
    }
    first = max(work, key=lambda name: work[name])
    assert diary.heard("finish")[0].startswith(first.replace("/", "_") + "--")


def test_workers_are_as_many_as_cores_and_never_more_than_cells(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 6)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    usual = config(workers=None)
    assert worker_count(usual, cpu, 10) == 6
    assert worker_count(usual, cpu, 4) == 4
    assert worker_count(usual, cpu, 0) == 1
    assert worker_count(usual, cuda, 10) == 1
    assert worker_count(config(workers=3), cpu, 10) == 3
    assert worker_count(usual, cpu, 10, most=2) == 2
    assert worker_count(config(workers=3), cpu, 10, most=2) == 3  # checked before


def test_cells_have_one_thread_and_the_caller_keeps_its_own(monkeypatch):
    seen = []
    original = module.compute

    def spy(*arguments, **settings):
        seen.append(torch.get_num_threads())
        return original(*arguments, **settings)

    monkeypatch.setattr(module, "compute", spy)
    torch.set_num_threads(2)
    try:
        run_audit(config(), Path("run"))
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="within"), one_thread():
            raise RuntimeError("within")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [1] * 4


def test_outside_the_main_thread_an_audit_runs_without_signals():
    results = []
    thread = threading.Thread(target=lambda: results.append(run_audit(config(), Path("run"))))
    thread.start()
    thread.join()
    assert len(results[0]["cells"]) == 2


def test_a_worker_without_parent_stops(monkeypatch):
    """The thread that watches the parent, with a parent that has ended."""

    class Ended:
        def join(self):
            pass

    class Flag:
        raised = False

        def set(self):
            self.raised = True

    flag, ended = Flag(), []
    monkeypatch.setattr(module.multiprocessing, "parent_process", lambda: Ended())
    monkeypatch.setattr(module.time, "sleep", lambda seconds: ended.append(("sleep", flag.raised)))
    monkeypatch.setattr(module.os, "_exit", lambda status: ended.append(("exit", status)))
    module._follow_parent(flag)
    assert ended == [("sleep", True), ("exit", 1)]
    monkeypatch.setattr(module.multiprocessing, "parent_process", lambda: None)
    module._follow_parent(flag)
    assert len(ended) == 2
