"""The lists hold the truth once, other images of its label, and nothing that tells which it is."""

import pytest
import torch

from gradinv.errors import ConfigError
from gradinv.evaluation.candidates.lists import candidate_lists, candidate_rows
from tests.evaluation.candidates.places import images_of, lists_of


def test_the_truth_stands_in_its_list_once():
    batch, lists = lists_of(images_of())
    assert lists.counts == (6, 6, 6)
    for place, image in enumerate(batch.images):
        same = (lists.images[place] == image).flatten(1).all(1)
        assert same.nonzero().flatten().tolist() == [lists.truth[place]]
    assert torch.equal(lists.batch(lists.truth), batch.images)
    assert torch.equal(lists.labels, batch.labels)


def test_the_others_are_of_its_label_and_not_of_the_batch():
    images = images_of()
    (batch,) = images.batches(batch_size=4, count=1, seed=1)
    rows, others = candidate_rows(images, batch.ids, count=5, seed=3)
    assert others is not None
    for label, row, other in zip(batch.labels, rows, others, strict=True):
        assert len(row) == 4
        assert (images.labels[[*row, other]] == label).all()
        assert not {*row, other} & set(batch.ids)
        assert other not in row


def test_the_place_of_the_truth_says_nothing():
    images = images_of()
    (batch,) = images.batches(batch_size=1, count=1, seed=0)
    places = [candidate_lists(images, batch, count=4, seed=seed).truth[0] for seed in range(400)]
    counts = torch.bincount(torch.tensor(places), minlength=4)
    assert ((counts - 100).abs() < 40).all()


def test_a_seed_decides_them():
    images = images_of()
    (batch,) = images.batches(batch_size=2, count=1, seed=0)
    lists = [candidate_lists(images, batch, count=4, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(lists[0].images[0], lists[1].images[0])
    assert not torch.equal(lists[0].images[0], lists[2].images[0])


def test_small_sets_have_shorter_lists():
    images = images_of(8)  # two of each label
    (batch,) = images.batches(batch_size=1, count=1, seed=0)
    lists = candidate_lists(images, batch, count=64, seed=0)
    assert lists.counts == (2,)
    assert lists.others is None  # the only other image is needed as a candidate
    images = images_of(4)
    (batch,) = images.batches(batch_size=1, count=1, seed=0)
    lists = candidate_lists(images, batch, count=64, seed=0)
    assert (lists.counts, lists.truth, lists.others) == ((1,), (0,), None)


def test_one_candidate_is_none():
    with pytest.raises(ConfigError, match="expected at least 2 candidates, got 1; raise"):
        candidate_rows(images_of(), [0], count=1, seed=0)
