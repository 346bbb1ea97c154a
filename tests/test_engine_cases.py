"""The cases of the engine's benchmark: errors count only where the kinks are those of float64."""

import pytest
import torch

from benchmarks.engine_cases import Case, Step


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
