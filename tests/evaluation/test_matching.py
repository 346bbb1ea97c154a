"""Matching against every permutation."""

from itertools import permutations

import pytest
import torch

from gradinv.errors import DataError
from gradinv.evaluation.matching import match


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_best_of_all_permutations(size, seed):
    generator = torch.Generator().manual_seed(seed)
    originals = torch.rand(size, 2, 3, 3, generator=generator)
    reconstructions = torch.rand(size, 2, 3, 3, generator=generator)

    def error(order):
        return float((originals - reconstructions[list(order)]).square().sum())

    best = min(permutations(range(size)), key=error)
    assert tuple(match(originals, reconstructions).tolist()) == best


def test_undoes_a_shuffle(generator):
    originals = torch.rand(7, 1, 4, 4, generator=generator)
    order = torch.randperm(7, generator=generator)
    assert torch.equal(originals[order][match(originals, originals[order])], originals)


def test_is_one_to_one():
    """Both originals are nearest to the first reconstruction; only one may have it."""
    originals = torch.tensor([0.0, 0.1]).view(2, 1, 1, 1)
    reconstructions = torch.tensor([0.05, 0.9]).view(2, 1, 1, 1)
    assert sorted(match(originals, reconstructions).tolist()) == [0, 1]


def test_small_differences_on_a_bright_image():
    """The matrix-product form of the distance would drown these in rounding."""
    base = torch.full((3, 1, 32, 32), 0.9)
    originals = base + torch.tensor([0, 1e-5, 2e-5]).view(3, 1, 1, 1)
    assert match(originals, originals[[2, 0, 1]]).tolist() == [1, 2, 0]


@pytest.mark.usefixtures("unchecked")
def test_other_shape():
    with pytest.raises(DataError, match=r"shape .* = \(2, 1, 4, 4\), got \(2, 3, 4, 4\); judge"):
        match(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4))


def test_not_finite():
    broken = torch.zeros(3, 1, 4, 4)
    broken[1, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match=r"NaN or infinity in reconstructions \[1\]; lower"):
        match(torch.zeros(3, 1, 4, 4), broken)
