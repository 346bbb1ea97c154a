import pytest
import torch

from gradinv.data.tensors import of_tensors
from gradinv.errors import DataError

IMAGES = torch.rand(6, 3, 8, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_images_in_memory_are_a_set_like_any_other():
    images = of_tensors(IMAGES, LABELS, classes=("cat", "dog", "eel"))
    assert images.image_shape == (3, 8, 12)
    assert len(images) == 6
    assert torch.equal(images.images([4, 1]), IMAGES[[4, 1]]), "to the bit, not rounded to 8 bits"
    assert torch.equal(images.all_images_uint8(), (IMAGES * 255).round().to(torch.uint8))
    for batch in images.batches(batch_size=3, count=2, seed=0):
        assert torch.equal(batch.images, IMAGES[list(batch.ids)])
        assert torch.equal(batch.labels, LABELS[list(batch.ids)])


def test_classes_may_be_a_number():
    assert of_tensors(IMAGES, LABELS, classes=4).classes == ("0", "1", "2", "3")


def test_what_the_caller_does_to_the_tensor_later_changes_nothing():
    given = IMAGES.clone()
    images = of_tensors(given, LABELS, classes=3)
    given.zero_()
    assert torch.equal(images.images([0]), IMAGES[:1])


def test_a_label_without_a_class():
    with pytest.raises(DataError, match="expected labels below 2, the number of classes, got 2"):
        of_tensors(IMAGES, LABELS, classes=2)


def test_pixels_outside_0_to_1():
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        of_tensors(IMAGES * 255, LABELS, classes=3)


def test_an_index_outside():
    with pytest.raises(DataError, match=r"expected indices from 0 to 5 .* got 6"):
        of_tensors(IMAGES, LABELS, classes=3).images([6])
