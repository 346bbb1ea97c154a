"""The cases of the engine's benchmark: where errors count, and what the memory is compared with."""

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import bench_engine
from benchmarks.bench_engine import peak_memory
from benchmarks.engine_cases import ONE_GRAPH, WAYS, Case, Step


@pytest.mark.parametrize(
    "case",
    [
        Case("convnet", 2, "train", restarts=2),
        Case("resnet18-imagenet", 1, "eval"),
        Case("convnet", 1, "eval", generator=True),
    ],
    ids=lambda case: case.name,
)
def test_every_way_has_the_kinks_that_the_network_has(case):
    expected = Step(case, "plain", "cpu", torch.float64).kinks()
    for way in ("exact", "frozen-pattern"):
        found = Step(case, way, "cpu", torch.float64).kinks()
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))


def test_another_point_has_other_kinks():
    step = Step(Case("convnet", 1, "eval"), "exact", "cpu")
    before = step.kinks()
    step.move_to(1)
    assert not all(map(torch.equal, step.kinks(), before))
    step.move_to(0)
    assert all(map(torch.equal, step.kinks(), before))


def test_one_graph_of_all_restarts_is_the_loop_over_them():
    case = Case("convnet", 2, "train", restarts=3)
    found, expected = (Step(case, way, "cpu", torch.float64)() for way in (ONE_GRAPH, "plain"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_one_graph_is_measured_where_restarts_are_several():
    assert Case("convnet", 2, "train").ways == WAYS
    assert Case("convnet", 2, "train", restarts=3).ways == (*WAYS, ONE_GRAPH)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_exact_way_holds_no_more_than_double_backward(batch, mode):
    """A ConvNet has the fewest activations beside its weights, whose order the engine changes."""
    case = Case("convnet", batch, mode)
    exact, plain = (peak_memory(case, way, "cpu") for way in ("exact", "plain"))
    assert 0.5 * plain < exact <= plain


def test_what_is_freed_meanwhile_is_not_taken_off_the_peak(monkeypatch):
    case = Case("convnet", 1, "eval")
    alone = peak_memory(case, "plain", "cpu")

    class CollectedStep(Step):
        def __call__(self):
            gc.collect()
            return super().__call__()

    monkeypatch.setattr(bench_engine, "Step", CollectedStep)
    gc.disable()
    try:
        # Sizes are known of what was allocated while a profiler ran; only the collector frees this.
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True):
            garbage: list = [torch.zeros(4 << 20)]
        garbage.append(garbage)
        del garbage
        assert peak_memory(case, "plain", "cpu") == alone
    finally:
        gc.enable()


def test_restarts_at_once_hold_no_more_than_as_many_in_one_graph():
    case = Case("convnet", 1, "train", restarts=8)
    exact, loop, plain = (peak_memory(case, way, "cpu") for way in ("exact", "plain", ONE_GRAPH))
    assert loop < exact <= plain
