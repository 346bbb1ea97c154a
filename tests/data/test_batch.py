import jaxtyping
import pytest
import torch

from gradinv.data import ClientBatch
from gradinv.errors import DataError


@pytest.fixture
def unchecked():
    """Calls as they are outside the tests, where nothing enforces the annotations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class TestClientBatch:
    @pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
    def test_pixels_outside(self, value):
        images = torch.full((1, 1, 8, 8), 0.5)
        images[0, 0, 0, 0] = value
        with pytest.raises(DataError, match=r"expected pixels in \[0, 1\], got"):
            ClientBatch(images, torch.tensor([0]))

    @pytest.mark.usefixtures("unchecked")
    def test_lengths_differ(self):
        with pytest.raises(DataError, match=r"one label each, got images \(2, .* labels \(1,\)"):
            ClientBatch(torch.zeros(2, 1, 8, 8), torch.tensor([0]))

    @pytest.mark.parametrize("label", [-1, -100])
    def test_labels_below_zero(self, label):
        with pytest.raises(DataError, match=rf"labels of at least 0, got {label}; number the"):
            ClientBatch(torch.zeros(2, 1, 8, 8), torch.tensor([0, label]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int32])
    @pytest.mark.usefixtures("unchecked")
    def test_labels_of_another_type(self, dtype):
        with pytest.raises(DataError, match=r"\(int64\), got .*; convert them with labels.long"):
            ClientBatch(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=dtype))

    def test_no_image(self):
        with pytest.raises(DataError, match="expected at least 1 image in a batch, got none; "):
            ClientBatch(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long))

    @pytest.mark.parametrize("shape", [(1, 0, 8, 8), (1, 1, 0, 8)])
    def test_an_image_without_pixels(self, shape):
        with pytest.raises(DataError, match=r"expected images with pixels, got \(1, "):
            ClientBatch(torch.zeros(shape), torch.tensor([0]))

    def test_ids_differ(self):
        with pytest.raises(DataError, match="one id for each of 1 images, got 2"):
            ClientBatch(torch.zeros(1, 1, 8, 8), torch.tensor([0]), (1, 2))

    def test_moves(self):
        batch = ClientBatch(torch.zeros(2, 1, 8, 9), torch.tensor([0, 1]), (5, 6))
        moved = batch.to(dtype=torch.float64)
        assert moved.images.dtype == torch.float64
        assert moved.labels.dtype == torch.int64
        assert moved.ids == (5, 6)
        assert (len(batch), batch.image_shape) == (2, (1, 8, 9))
