import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradinv.data import ImageSet, load_images
from gradinv.errors import ConfigError, DataError


def stand_in(sizes: list[int]) -> ImageSet:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    classes = tuple(str(label) for label in range(len(sizes)))
    return ImageSet("set", classes, labels, 1, 8, lambda index: np.full((1, 8, 8), index % 256))


def test_index_outside():
    with pytest.raises(DataError, match=r"expected indices from 0 to 159 .* got 160"):
        load_images(None).images([0, 160])


class TestBatches:
    def test_disjoint_and_distinct(self):
        images = load_images(None)
        batches = images.batches(batch_size=4, count=8, seed=0)
        ids = [i for batch in batches for i in batch.ids]
        assert len(set(ids)) == 32
        for batch in batches:
            assert len(set(batch.labels.tolist())) == 4
            assert torch.equal(batch.images, images.images(batch.ids))
            assert torch.equal(batch.labels, images.labels[list(batch.ids)])

    @pytest.mark.parametrize("seed", [-1, 99999999999999999999])
    def test_seed_without_meaning(self, seed):
        with pytest.raises(ConfigError, match=f"expected seed of at .*, got {seed}"):
            load_images(None).batches(batch_size=4, count=1, seed=seed)

    def test_seed_decides(self):
        images = load_images(None)
        first, again, other = (images.batches(batch_size=4, count=2, seed=s) for s in (0, 0, 1))
        assert [b.ids for b in first] == [b.ids for b in again]
        assert [b.ids for b in first] != [b.ids for b in other]

    def test_more_batches_begin_with_the_same(self):
        images = load_images(None)
        few, many = (images.batches(batch_size=4, count=n, seed=3) for n in (2, 9))
        assert [b.ids for b in few] == [b.ids for b in many[:2]]

    def test_labels_repeat_where_classes_are_few(self):
        batches = stand_in([9, 9]).batches(batch_size=6, count=3, seed=0)
        assert sorted(i for batch in batches for i in batch.ids) == list(range(18))

    @given(
        st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(1, 4), st.integers(1, 5)
    )
    def test_draws_whenever_it_can_be_drawn(self, sizes, batch_size, count):
        images = stand_in(sizes)
        possible = sum(min(size, count) for size in sizes) >= batch_size * count
        distinct = sum(size > 0 for size in sizes) >= batch_size
        if sum(sizes) < batch_size * count or (distinct and not possible):
            with pytest.raises(DataError):
                images.batches(batch_size=batch_size, count=count, seed=0)
            return
        batches = images.batches(batch_size=batch_size, count=count, seed=0)
        ids = [i for batch in batches for i in batch.ids]
        assert len(set(ids)) == len(ids) == batch_size * count
        for batch in batches:
            assert not distinct or len(set(batch.labels.tolist())) == batch_size

    def test_every_image_can_be_drawn(self):
        images = stand_in([3, 3, 3, 3])
        firsts = {images.batches(batch_size=2, count=1, seed=s)[0].ids[0] for s in range(200)}
        assert firsts == set(range(12))

    def test_too_few_images(self):
        message = "expected at least 32 images for 8 batches of 4, got 10 in set; add images"
        with pytest.raises(DataError, match=message):
            stand_in([5, 5]).batches(batch_size=4, count=8, seed=0)

    def test_too_few_of_distinct_labels(self):
        message = r"3 batches of 2 distinct labels, got enough for 2 in set; .* at most 2 batches"
        with pytest.raises(DataError, match=message):
            stand_in([9, 2]).batches(batch_size=2, count=3, seed=0)

    @pytest.mark.parametrize(("batch_size", "count"), [(0, 1), (1, 0)])
    def test_no_batch(self, batch_size, count):
        with pytest.raises(ConfigError, match="expected at least 1 batch of at least 1 image"):
            stand_in([5]).batches(batch_size=batch_size, count=count, seed=0)
