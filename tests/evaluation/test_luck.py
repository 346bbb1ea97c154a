"""What luck does, against enumeration and simulation."""

import doctest
from itertools import product
from math import prod

import pytest
import torch

from gradinv.evaluation import luck as module
from gradinv.evaluation.evaluate import ImageScore
from gradinv.evaluation.luck import chance_of, chances_so_near


def test_chance_against_enumeration():
    luck = [0.1, 0.5, 0.25, 0.02]
    for hits in range(6):
        expected = sum(
            prod(p if hit else 1 - p for p, hit in zip(luck, outcome, strict=True))
            for outcome in product([0, 1], repeat=4)
            if sum(outcome) >= hits
        )
        assert chance_of(hits, luck) == pytest.approx(expected)


def score(mse: float, nearest: float | None, second: float | None, decoys: int = 63) -> ImageScore:
    rank = 0 if nearest is None or mse < nearest else 1
    return ImageScore(0, 0, 0, mse, 20.0, 0.5, None, rank, decoys, 1, nearest, second)


def test_a_lead_as_that_of_any_decoy_is_luck():
    """One image, whose lead is just that of its nearest decoy over the next: a half of 1 / 64."""
    (chance,) = chances_so_near([score(0.01, 0.02, 0.04)])
    assert chance == pytest.approx(0.5 / 64)


def test_a_lead_far_beyond_those_of_all_decoys_is_none():
    near = [score(0.03, 0.02, 0.021)] * 7
    chances = chances_so_near([score(0.001, 0.02, 0.021), *near])
    assert chances[0] < 1e-6
    assert chances[1:] == [1.0] * 7
    assert chances_so_near([score(0.0, 0.02, 0.021)]) == [0.0]


def test_nothing_to_compare_with():
    alone = score(0.01, None, None, decoys=0)
    assert chances_so_near([alone, alone]) == [1.0, 1.0]
    assert chances_so_near([score(0.01, 0.02, None, decoys=1)]) == [1.0]
    assert chances_so_near([]) == []


@pytest.mark.parametrize("dimension", [2, 20])
@pytest.mark.parametrize("images", [1, 8])
def test_luck_is_found_no_more_often_than_said(dimension, images, generator):
    """The original is a point like any of the others; reconstructions know nothing of it."""
    hits = 0
    for _ in range(2000):
        points = torch.rand(images, 64, dimension, generator=generator)
        picture = torch.rand(images, 1, dimension, generator=generator)
        errors = (points - picture).square().mean(2)
        scores = [
            ImageScore(
                0, 0, 0, float(row[0]), 20.0, 0.5, None, int((row[1:] < row[0]).sum()), 63, 1,
                *row[1:].sort().values[:2].tolist(),
            )
            for row in errors
        ]  # fmt: skip
        hits += min(chances_so_near(scores)) < 0.02
    assert 0.002 < hits / 2000 < 0.025


def test_examples_in_docstrings():
    result = doctest.testmod(module)
    assert result.attempted == 1
    assert result.failed == 0
