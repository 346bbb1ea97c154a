"""Identification among decoys."""

import pytest
import torch

from gradinv.data import ClientBatch, ImageSet, load_images
from gradinv.errors import ConfigError, DataError
from gradinv.evaluation.controls import count_decoys, decoys_for, identification_rank


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images(None)


@pytest.fixture(scope="module")
def batch(images) -> ClientBatch:
    return images.batches(batch_size=4, count=1, seed=0)[0]


def indices_of(images, decoys):
    """Which images of the set the decoys are."""
    everything = images.all_images_uint8().float() / 255
    return [
        [int((everything == decoy).flatten(1).all(1).nonzero()) for decoy in row] for row in decoys
    ]


class TestDecoys:
    def test_are_all_others_of_the_label(self, images, batch):
        decoys = decoys_for(images, batch)
        assert decoys.shape == (4, 15, 1, 32, 32)
        for row, label in zip(indices_of(images, decoys), batch.labels.tolist(), strict=True):
            expected = set((images.labels == label).nonzero().flatten().tolist()) - set(batch.ids)
            assert set(row) == expected

    def test_count_and_seed(self, images, batch):
        few = decoys_for(images, batch, count=5, seed=1)
        assert few.shape[1] == 5
        assert torch.equal(few, decoys_for(images, batch, count=5, seed=1))
        assert not torch.equal(few, decoys_for(images, batch, count=5, seed=2))
        assert decoys_for(images, batch, count=0).shape == (4, 0, 1, 32, 32)

    def test_those_of_one_place_are_different_images(self, images):
        batch = images.batch([0, 1, 2, 16, 17])
        places = zip(*indices_of(images, decoys_for(images, batch, count=9)), strict=True)
        assert all(len(set(place)) == 5 for place in places)

    def test_leaves_out_the_whole_batch(self, images):
        batch = images.batch([0, 1, 2])
        assert images.labels[[0, 1, 2]].tolist() == [0, 0, 0]
        for row in indices_of(images, decoys_for(images, batch)):
            assert set(row) == set(range(3, 16))

    def test_missing_ones_are_nan_and_count_nowhere(self, images):
        batch = images.batch([*range(14), 20])  # 2 of label 0 are left, 15 of label 1
        decoys = decoys_for(images, batch)
        assert decoys.shape[1] == 15
        assert count_decoys(decoys).tolist() == [2] * 14 + [15]
        assert decoys[0, 2:].isnan().all()
        ranks = identification_rank(1 - batch.images, batch.images, decoys)
        assert ranks[:14].max() <= 2

    def test_of_a_batch_from_elsewhere(self, images):
        stranger = ClientBatch(torch.zeros(1, 1, 32, 32), torch.tensor([0]))
        with pytest.raises(DataError, match=r"the ids of its images .* take it from ImageSet"):
            decoys_for(images, stranger)

    def test_negative_count(self, images, batch):
        with pytest.raises(ConfigError, match="at least 0 decoys, got -1"):
            decoys_for(images, batch, count=-1)


class TestRank:
    def test_counts_nearer_decoys(self):
        original = torch.full((1, 1, 2, 2), 0.5)
        reconstruction = torch.full((1, 1, 2, 2), 0.6)
        levels = torch.tensor([0.0, 0.55, 0.61, 0.69, 0.8])  # distances .6 .05 .01 .09 .2, own .1
        decoys = levels.view(1, 5, 1, 1, 1).expand(1, 5, 1, 2, 2)
        assert identification_rank(reconstruction, original, decoys).tolist() == [3]

    def test_true_image_is_identified(self, images, batch):
        decoys = decoys_for(images, batch)
        assert identification_rank(batch.images, batch.images, decoys).tolist() == [0] * 4

    def test_a_decoy_is_taken_for_itself(self, images, batch):
        decoys = decoys_for(images, batch)
        assert identification_rank(decoys[:, 3], batch.images, decoys).min() >= 1

    def test_a_copy_of_the_original_does_not_count(self, batch, generator):
        noisy = (batch.images + 0.3 * torch.randn(4, 1, 32, 32, generator=generator)).clamp(0, 1)
        assert identification_rank(noisy, batch.images, batch.images[:, None]).tolist() == [0] * 4

    def test_a_picture_of_the_label_alone_hits_by_chance(self, images):
        """Reconstructions that know nothing but the label: about one hit in 16."""
        hits = total = 0
        generator = torch.Generator().manual_seed(0)
        for number, batch in enumerate(images.batches(batch_size=10, count=16, seed=0)):
            decoys = decoys_for(images, batch, seed=number)
            # The mean of some of its kind, half of which are not among the decoys.
            guess = decoys[:, 8:12].mean(1) + 0.05 * torch.rand(10, 1, 32, 32, generator=generator)
            hits += int((identification_rank(guess, batch.images, decoys[:, :8]) == 0).sum())
            total += 10
        assert 0.02 < hits / total < 0.25  # 1 in 9

    @pytest.mark.parametrize("labels", ["distinct", "one"])
    def test_matching_gives_the_originals_no_advantage(self, labels):
        """Pictures that know nothing, in large batches: the best of 12 fits suits any image."""
        source = torch.Generator().manual_seed(1)
        size, count, trials = 12, 7, 60
        hits = 0
        for _ in range(trials):
            images = torch.rand(size * (count + 1), 1, 3, 3, generator=source)
            if labels == "distinct":
                originals, decoys = images[:size], images[size:].view(size, count, 1, 3, 3)
            else:
                others = torch.arange(size * (count + 1) - size)
                rows = [others.roll(-place)[:count] for place in range(size)]
                originals, decoys = images[:size], images[size:][torch.stack(rows)]
            guess = torch.rand(size, 1, 3, 3, generator=source)
            hits += int((identification_rank(guess, originals, decoys) == 0).sum())
        expected = size * trials / (count + 1)  # 90; with the originals alone matched: about 370
        assert abs(hits - expected) < 4 * expected**0.5

    def test_an_image_without_decoys_is_in_nobodys_way(self, images, batch):
        decoys = decoys_for(images, batch)
        decoys[0] = torch.nan
        ranks = identification_rank(batch.images.flip(0), batch.images, decoys)
        assert ranks.tolist() == [0] * 4
        assert identification_rank(decoys[:, 3].nan_to_num(), batch.images, decoys)[0] == 0

    @pytest.mark.usefixtures("unchecked")
    def test_decoys_of_another_shape(self, batch):
        message = r"originals \(4, 1, 32, 32\), got \(5, 1, 32, 32\); make them with decoys_for"
        with pytest.raises(DataError, match=message):
            identification_rank(batch.images, batch.images, torch.zeros(5, 1, 32, 32))

    def test_not_finite(self, images, batch):
        broken = batch.images.clone()
        broken[2, 0, 0, 0] = torch.inf
        with pytest.raises(DataError, match=r"reconstructions \[2\]"):
            identification_rank(broken, batch.images, decoys_for(images, batch))
