import io

import pytest
from rich.console import Console

from gradinv.api.progress import AuditProgress, TimeLeft, WorkProgress, left_words
from gradinv.audit.cell import Beat
from gradinv.audit.plan import Cell

CELLS = (Cell("gi-x", "none", 0), Cell("gi-x", "none", 1), Cell("gi-z", "none", 0))


def beat(cell: Cell, fraction: float, seconds: float) -> Beat:
    return Beat(cell.slug, fraction, "x", int(100 * fraction), 100, seconds, 0.5)


def test_nothing_is_foretold_before_something_is_known():
    time = TimeLeft({"a": "x"}, finished=0, workers=1)
    assert time.left() is None
    time.beat("a", 0.001, 5.0)
    assert time.left() is None
    assert left_words(None) == "time left unknown"


def test_a_running_cell_keeps_its_pace():
    time = TimeLeft({"a": "x"}, finished=0, workers=4)
    time.beat("a", 0.25, 10.0)
    assert time.left() == pytest.approx(30)
    assert left_words(30.0) == "about 30 s left"


def test_waiting_cells_take_as_long_as_those_of_their_attack():
    attacks = {"a0": "a", "a1": "a", "b0": "b", "b1": "b"}
    time = TimeLeft(attacks, finished=0, workers=1)
    time.beat("a0", 1.0, 10.0)
    time.finish("a0")
    time.beat("b0", 0.5, 50.0)
    # a1: 10, b0: the other half of 100, b1: 100
    assert time.left() == pytest.approx(160)
    # An unknown attack takes the mean of the known ones: 10 and 100.
    time = TimeLeft({**attacks, "c": "c"}, finished=0, workers=1)
    time.beat("a0", 1.0, 10.0)
    time.beat("b0", 0.5, 50.0)
    assert time.left() == pytest.approx(160 + 55)


def test_workers_share_the_work_but_not_one_cell():
    time = TimeLeft({"a": "x", "b": "x", "c": "x"}, finished=0, workers=2)
    time.beat("a", 0.5, 5.0)
    time.beat("b", 0.5, 5.0)
    assert time.left() == pytest.approx(10)
    time = TimeLeft({"a": "x", "b": "y"}, finished=0, workers=2)
    time.beat("a", 0.5, 30.0)
    time.beat("b", 0.5, 2.0)
    assert time.left() == pytest.approx(30)


def test_the_fraction_is_of_all_cells():
    time = TimeLeft({"a": "x", "b": "x"}, finished=2, workers=1)
    assert time.fraction == pytest.approx(0.5)
    time.beat("a", 0.5, 1.0)
    assert time.fraction == pytest.approx(2.5 / 4)
    assert TimeLeft({}, finished=0, workers=1).fraction == 1


@pytest.fixture
def log():
    """A display without a terminal, its clock and its text."""
    clock, text = [0.0], io.StringIO()
    display = AuditProgress(Console(file=text, width=40), lambda: clock[0])
    return display, clock, text


def test_without_a_terminal_a_line_comes_every_ten_seconds(log):
    display, clock, text = log
    with display.shown():
        display.start(CELLS, CELLS[:1], 2)
        for second in range(1, 31):
            clock[0] = float(second)
            display.beat(beat(CELLS[2], second / 60, float(second)))
        display.finish(CELLS[2])
        display.stopping()
    lines = text.getvalue().splitlines()
    assert lines[0] == (
        "gradinv: 3 attack runs (gi-x gi-z), 1 of them finished before; 2 processes"
    )
    assert len(lines) == 6
    assert lines[1] == (
        "gradinv: 39%, about 1 min 00 s left, 1 of 3 finished | gi-z · none · batch 0 17%"
    )
    assert lines[4] == "gradinv: finished gi-z · none · batch 0 (2 of 3)"
    assert lines[5].startswith("gradinv: stopping: saving checkpoints")
    assert not any("\x1b" in line for line in lines)


def test_the_clock_goes_on_while_nothing_is_heard(log):
    display, clock, text = log
    display.start(CELLS, (), 1)
    clock[0] = 11.0
    display.tick()
    display.tick()
    assert text.getvalue().splitlines()[1:] == ["gradinv: 0%, time left unknown, 0 of 3 finished"]


def test_a_terminal_shows_a_bar_for_each_running_cell_and_one_for_all():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    display = AuditProgress(console, lambda: 0.0)
    with display.shown():
        display.start(CELLS, (), 2)
        display.beat(beat(CELLS[0], 0.25, 10.0))
        display.beat(beat(CELLS[2], 0.5, 10.0))
        shown = {task.description: task for task in display.bars.tasks}
        assert list(shown) == ["all", "gi-x · none · batch 0", "gi-z · none · batch 0"]
        assert shown["gi-x · none · batch 0"].completed == 0.25
        assert shown["gi-z · none · batch 0"].fields["detail"] == "x 50/100 · cost 0.5"
        assert shown["all"].completed == pytest.approx(0.25)
        assert shown["all"].fields["detail"] == "about 40 s left"
        display.finish(CELLS[0])
        assert [task.description for task in display.bars.tasks] == [
            "all", "gi-z · none · batch 0",
        ]  # fmt: skip


@pytest.fixture
def work():
    text, clock = io.StringIO(), [0.0]
    console = Console(file=text, force_terminal=False, width=30)
    return WorkProgress("learning", console, lambda: clock[0]), clock, text


def test_a_log_gets_the_first_line_of_a_work_at_once_and_one_every_ten_seconds(work):
    shown, clock, text = work
    with shown:
        for clock[0], fraction in ((0.0, 0.1), (9.0, 0.2), (10.0, 0.3), (11.0, 0.4)):
            shown.advance(fraction, "a detail that is longer than the line")
        shown.say("done [bold]here")
    assert text.getvalue().splitlines() == [
        "gradinv: learning 10%, a detail that is longer than the line",
        "gradinv: learning 30%, a detail that is longer than the line",
        "gradinv: done [bold]here",
    ]


def test_a_terminal_shows_the_bar_of_a_work_only_while_it_lasts():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with WorkProgress("learning", console) as shown:
        assert shown.bars.live.is_started
        shown.advance(0.25, "step 1 of 4")
        (task,) = shown.bars.tasks
        assert (task.description, task.completed) == ("learning", 0.25)
        assert task.fields["detail"] == "step 1 of 4"
    assert not shown.bars.live.is_started
    assert "gradinv:" not in text.getvalue()
