"""A batch's scores: matched, in the originals' order, without reduction."""

import doctest
from dataclasses import replace

import pytest
import torch

from gradinv.data import ClientBatch, load_images
from gradinv.errors import DataError
from gradinv.evaluation import evaluate as module
from gradinv.evaluation.controls import decoys_for
from gradinv.evaluation.evaluate import PSNR_CEILING, ImageScore, evaluate, label_accuracy
from gradinv.evaluation.metrics import mse, psnr, ssim


@pytest.fixture(scope="module")
def images():
    return load_images(None)


@pytest.fixture(scope="module")
def batch(images) -> ClientBatch:
    return images.batches(batch_size=4, count=1, seed=0)[0]


@pytest.fixture
def noisy(batch, generator):
    noise = torch.randn(batch.images.shape, generator=generator)
    levels = torch.tensor([0.02, 0.05, 0.1, 0.2]).view(4, 1, 1, 1)
    return (batch.images + levels * noise).clamp(0, 1)


@pytest.mark.parametrize(
    ("true", "found", "accuracy"),
    [
        ([3, 1, 1, 0], [0, 1, 1, 3], 1.0),
        ([1, 1, 1, 1], [1, 2, 2, 2], 0.25),
        ([0, 0, 1, 1], [2, 3, 4, 5], 0),
    ],
)
def test_labels_are_compared_as_multisets(batch, true, found, accuracy):
    held = ClientBatch(batch.images, torch.tensor(true), batch.ids)
    assert label_accuracy(torch.tensor(found), held) == accuracy
    with pytest.raises(DataError, match="expected 4 recovered labels, one for each image, got 3"):
        label_accuracy(torch.tensor(found[:3]), held)


def test_the_example_in_the_docstring():
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


def test_scores_follow_the_originals(images, batch, noisy):
    order = [2, 0, 3, 1]
    decoys = decoys_for(images, batch)
    evaluation = evaluate(noisy[order], batch, decoys=decoys)
    assert evaluation.permutation == (1, 3, 0, 2)
    assert [score.original for score in evaluation.images] == [0, 1, 2, 3]
    assert [score.label for score in evaluation.images] == batch.labels.tolist()
    for name, function in {"psnr": psnr, "ssim": ssim}.items():
        expected = function(noisy, batch.images, data_range=1.0).tolist()
        assert [getattr(score, name) for score in evaluation.images] == pytest.approx(expected)
    expected = mse(noisy, batch.images).tolist()
    assert [score.mse for score in evaluation.images] == pytest.approx(expected)
    assert [(score.rank, score.decoys) for score in evaluation.images] == [(0, 15)] * 4
    assert all(score.identified for score in evaluation.images)


def test_true_images(batch):
    evaluation = evaluate(batch.images, batch)
    for score in evaluation.images:
        assert (score.mse, score.psnr) == (0, PSNR_CEILING)
        assert score.ssim == pytest.approx(1)


def test_without_decoys_nothing_is_identified(batch):
    score = evaluate(batch.images, batch).images[0]
    assert (score.rank, score.decoys, score.identified) == (0, 0, False)


def test_lpips_sees_matched_images(batch, noisy):
    def distance(preds, target):
        return (preds - target).abs().amax((1, 2, 3))

    evaluation = evaluate(noisy.flip(0), batch, lpips=distance)
    expected = distance(noisy, batch.images).tolist()
    assert [score.lpips for score in evaluation.images] == pytest.approx(expected)
    assert evaluate(noisy, batch).images[0].lpips is None


def test_reconstructions_of_another_type_and_with_history(batch, noisy):
    tracked = noisy.double().requires_grad_()
    assert evaluate(tracked, batch).images[0].psnr == pytest.approx(
        evaluate(noisy, batch).images[0].psnr
    )


def test_not_finite(batch):
    with pytest.raises(DataError, match=r"NaN or infinity in reconstructions \[0, 1, 2, 3\]"):
        evaluate(torch.full_like(batch.images, torch.nan), batch)


def test_the_two_nearest_decoys_are_of_all_places_and_not_matched(images, batch):
    decoys = decoys_for(images, batch)
    pictures = 0.6 * batch.images + 0.4 * decoys[:, 3]
    found = evaluate(pictures, batch, decoys=decoys).images
    for score in found:
        picture = pictures[score.reconstruction]
        every = (decoys.flatten(0, 1) - picture).square().flatten(1).mean(1)
        by_hand = sorted(set(every[every.isfinite()].tolist()))
        assert score.nearest_decoy == pytest.approx(by_hand[0], rel=1e-4)
        assert score.second_decoy == pytest.approx(by_hand[1], rel=1e-4)
    alone = evaluate(pictures[:1], batch_of(batch, 1), decoys=decoys[:1, :1]).images[0]
    assert alone.nearest_decoy is not None
    assert alone.second_decoy is None
    assert all(score.nearest_decoy is None for score in evaluate(pictures, batch).images)


def test_a_decoy_that_stands_in_two_places_counts_once(batch):
    """As the decoys of two images of one label do."""
    other = torch.full_like(batch.images[:1], 0.25)
    twice = torch.stack([other, other])
    pair = batch_of(batch, 2)
    score = evaluate(pair.images, pair, decoys=twice).images[0]
    assert score.nearest_decoy is not None
    assert score.second_decoy is None


def test_how_many_have_the_label(batch):
    same = ClientBatch(batch.images, torch.tensor([1, 0, 1, 1]), batch.ids)
    assert [score.alike for score in evaluate(batch.images, same).images] == [3, 1, 3, 3]


def batch_of(batch: ClientBatch, count: int) -> ClientBatch:
    return ClientBatch(batch.images[:count], batch.labels[:count], batch.ids[:count])


def test_what_is_recognisable():
    """Nearly all decoys further away, and better than what knows nothing of the image."""

    def of(**changed) -> ImageScore:
        known = {"rank": 1, "decoys": 63, "lpips": 0.2, "ssim_without": 0.5, "lpips_without": 0.3}
        rest = ImageScore(0, 0, 0, 0.01, 20.0, 0.6, None, 0, 0)
        return replace(rest, **{**known, **changed})

    assert of().recognisable
    assert of(rank=0).recognisable
    assert of(lpips=None).recognisable
    assert of(lpips_without=None).recognisable
    assert not of(rank=2).recognisable
    assert not of(rank=1, decoys=15).recognisable
    assert not of(ssim_without=0.6).recognisable
    assert not of(lpips_without=0.2).recognisable
    assert not of(ssim_without=None).recognisable
    assert not of(decoys=0).recognisable
    assert of().luck == 1 / 64
    assert of().luck_recognisable == 2 / 64
    assert of(decoys=15).luck_recognisable == 1 / 16
    assert of(decoys=0).luck == of(decoys=0).luck_recognisable == 0
