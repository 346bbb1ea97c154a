"""Images and batches: what is read, how it is cut, what is refused."""

import gzip
import hashlib
import json
import os
from importlib import resources
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from gradinv.data import EMBEDDED, load_images
from gradinv.errors import ConfigError, DataError


def picture(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def folder(root: Path, sizes: dict[str, int], side: int = 8) -> Path:
    for number, (name, size) in enumerate(sizes.items()):
        (root / name).mkdir(parents=True)
        for i in range(size):
            picture(root / name / f"{i:03}.png", noise(side, side, 3, seed=1000 * number + i))
    return root


def idx_bytes(array: np.ndarray) -> bytes:
    shape = np.array(array.shape, ">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + shape + array.tobytes()


@pytest.fixture
def unchecked():
    """Calls as they are outside the tests, where nothing enforces the annotations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class TestFolder:
    def test_class_folders(self, tmp_path):
        root = folder(tmp_path / "set", {"cat": 2, "ant": 3, "empty": 0})
        (root / ".hidden").touch()
        (root / "cat" / ".DS_Store").touch()
        images = load_images(root, image_size=8)
        assert images.classes == ("ant", "cat", "empty")
        assert images.labels.tolist() == [0, 0, 0, 1, 1]
        assert (images.name, len(images), images.num_classes) == ("set", 5, 3)
        assert images.image_shape == (3, 8, 8)
        expected = noise(8, 8, 3, seed=1).transpose(2, 0, 1)  # cat/001.png
        got = images.images([4])
        assert got.dtype == torch.float32
        assert torch.equal(got[0], torch.from_numpy(expected.copy()).float() / 255)

    def test_images_come_in_the_order_asked_for(self, tmp_path):
        images = load_images(folder(tmp_path, {"a": 4}), image_size=8)
        before = images.images(torch.tensor([2, 0]))
        everything = images.all_images_uint8()
        assert everything.dtype == torch.uint8
        assert images.all_images_uint8() is everything
        assert torch.equal(images.images([2, 0]), before)
        assert torch.equal(before, everything[[2, 0]].float() / 255)

    def test_decodes_only_what_is_asked_for(self, tmp_path):
        root = folder(tmp_path, {"a": 2})
        (root / "a" / "001.png").write_bytes(b"no image")
        images = load_images(root, image_size=8)
        images.images([0])
        with pytest.raises(DataError, match=r"expected an image at .*001\.png, got '.*'; repair"):
            images.images([1])

    def test_truncated_image(self, tmp_path):
        path = picture(tmp_path / "a" / "x.png", noise(64, 64, 3))
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(DataError, match=r"expected an image at .*x\.png"):
            load_images(tmp_path).images([0])

    def test_halving_is_the_mean_of_four(self, tmp_path):
        pixels = noise(16, 16, 3)
        picture(tmp_path / "a" / "x.png", pixels)
        got = load_images(tmp_path, image_size=8).all_images_uint8()[0].float()
        blocks = pixels.reshape(8, 2, 8, 2, 3).astype(float).mean((1, 3)).transpose(2, 0, 1)
        assert (got - torch.from_numpy(blocks)).abs().max() <= 1

    def test_resizes_the_shorter_side_and_cuts_the_middle(self, tmp_path):
        pixels = np.zeros((16, 48, 3), np.uint8)
        pixels[:, 16:32] = 255
        picture(tmp_path / "wide" / "x.png", pixels)
        picture(tmp_path / "tall" / "x.png", pixels.transpose(1, 0, 2).copy())
        assert load_images(tmp_path, image_size=8).images([0, 1]).eq(1).all()

    def test_enlarges(self, tmp_path):
        picture(tmp_path / "a" / "x.png", np.full((5, 9, 3), 77, np.uint8))
        assert load_images(tmp_path, image_size=32).all_images_uint8().eq(77).all()

    @pytest.mark.parametrize("side", [31, 33, 500])
    def test_any_size_fits(self, tmp_path, side):
        picture(tmp_path / "a" / "x.png", noise(side, side + 3, 3))
        assert load_images(tmp_path).all_images_uint8().shape == (1, 3, 32, 32)

    def test_large_jpeg_keeps_its_picture(self, tmp_path):
        ramp = np.linspace(0, 255, 800).astype(np.uint8)
        picture(
            tmp_path / "a" / "x.jpg", np.broadcast_to(ramp[None, :, None], (800, 800, 3)).copy()
        )
        got = load_images(tmp_path, image_size=32).images([0])[0]
        expected = torch.linspace(0.5 / 32, 1 - 0.5 / 32, 32).expand(3, 32, 32)
        assert (got - expected).abs().max() < 0.02

    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
    @pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (8, 8, 4)], ids=["grey", "rgb", "alpha"])
    def test_channels_are_converted(self, tmp_path, channels, mode, shape):
        pixels = noise(*shape)
        picture(tmp_path / "a" / "x.png", pixels)
        images = load_images(tmp_path, image_size=8, channels=channels)
        expected = np.asarray(Image.fromarray(pixels).convert(mode)).reshape(8, 8, channels)
        assert images.image_shape == (channels, 8, 8)
        assert np.array_equal(images.all_images_uint8()[0].permute(1, 2, 0).numpy(), expected)

    def test_sixteen_bit_grey_is_scaled_not_clipped(self, tmp_path):
        picture(tmp_path / "a" / "x.png", np.full((8, 8), 257 * 40, np.uint16))
        assert load_images(tmp_path, image_size=8).all_images_uint8().eq(40).all()

    def test_a_photograph_on_its_side_is_turned(self, tmp_path):
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:4] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: the top is shown at the right
        picture(tmp_path / "a" / "x.png", pixels, exif=exif)
        got = load_images(tmp_path, image_size=8).images([0])[0, 0]
        assert got[:, 4:].eq(1).all()
        assert got[:, :4].eq(0).all()


class TestRefused:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(DataError, match=r"got nothing at .*missing; check the path"):
            load_images(tmp_path / "missing")

    def test_some_other_file(self, tmp_path):
        (tmp_path / "x.zip").touch()
        with pytest.raises(DataError, match=r"expected a folder .* got the file .*x\.zip"):
            load_images(tmp_path / "x.zip")

    def test_empty_folder(self, tmp_path):
        with pytest.raises(DataError, match=r"expected a folder of images .* got no image"):
            load_images(tmp_path)

    def test_only_empty_classes(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(DataError, match="got no image"):
            load_images(tmp_path)

    def test_images_without_class(self, tmp_path):
        picture(tmp_path / "x.png", noise(8, 8))
        with pytest.raises(DataError, match=r"expected only class folders .* got the file x\.png"):
            load_images(tmp_path)

    def test_folder_of_splits(self, tmp_path):
        folder(tmp_path / "train", {"a": 1})
        with pytest.raises(DataError, match=r"got the folder a; give .* such as .*train"):
            load_images(tmp_path)

    def test_file_that_is_no_image(self, tmp_path):
        folder(tmp_path, {"a": 1})
        (tmp_path / "a" / "notes.txt").touch()
        with pytest.raises(DataError, match=r"expected images .* got .*a/notes\.txt; move it"):
            load_images(tmp_path)

    def test_unreadable_folder(self, tmp_path, monkeypatch):
        def refuse(self):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(DataError, match=r"readable folder .* 'Permission denied'; check its"):
            load_images(tmp_path)

    def test_decompression_bomb(self, tmp_path, monkeypatch):
        picture(tmp_path / "a" / "x.png", noise(64, 64))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(DataError, match=r"expected an image at .*x\.png, got .*exceeds limit"):
            load_images(tmp_path).images([0])

    def test_channels(self):
        with pytest.raises(ConfigError, match="expected 1 or 3 channels, got 2"):
            load_images(None, channels=2)

    def test_image_size(self):
        with pytest.raises(ConfigError, match="at least 8 pixels, got 4"):
            load_images(None, image_size=4)


class TestIdx:
    @pytest.fixture
    def pixels(self):
        return noise(6, 28, 28)

    @pytest.fixture
    def path(self, tmp_path, pixels):
        path = tmp_path / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(idx_bytes(pixels)))
        labels = np.array([3, 1, 4, 1, 5, 0], np.uint8)
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        return path

    def test_padded_with_zeros(self, path, pixels):
        images = load_images(path)
        assert images.labels.tolist() == [3, 1, 4, 1, 5, 0]
        assert images.labels.dtype == torch.int64
        assert images.classes == ("0", "1", "2", "3", "4", "5")
        expected = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[:, None]
        assert np.array_equal(images.all_images_uint8().numpy(), expected)

    def test_own_size_and_others(self, path, pixels):
        own = load_images(path, image_size=28).all_images_uint8()
        assert np.array_equal(own[:, 0].numpy(), pixels)
        assert load_images(path, image_size=64, channels=3).images([0]).shape == (1, 3, 64, 64)

    def test_three_channels_repeat_the_one(self, path):
        three = load_images(path, channels=3).all_images_uint8()
        assert torch.equal(three, load_images(path).all_images_uint8().expand(-1, 3, -1, -1))

    def test_folder_of_idx_files(self, path):
        with pytest.raises(DataError, match=r"the folder .* of IDX files; give .*t10k-images-idx3"):
            load_images(path.parent)

    def test_labels_missing(self, path):
        (path.parent / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(DataError, match=r"got neither t10k-labels-idx1-ubyte nor .*\.gz"):
            load_images(path)

    def test_labels_of_another_set(self, path):
        (path.parent / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(5, np.uint8)))
        with pytest.raises(DataError, match=r"one label for each image, got 6 images .* 5 labels"):
            load_images(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\x00\x00\x08\x01\x00\x00\x00\x01\x00", "another kind of file"),
            (b"\x00", "another kind of file"),
            (idx_bytes(np.zeros((2, 3, 3), np.uint8))[:-1], "17 bytes where its head says 18"),
        ],
    )
    def test_broken(self, tmp_path, content, message):
        path = tmp_path / "x-images-idx3-ubyte"
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"expected an IDX file .*{message}"):
            load_images(path)

    @pytest.mark.parametrize("content", [b"no gzip", gzip.compress(noise(999).tobytes())[:-200]])
    def test_broken_gzip(self, tmp_path, content):
        path = tmp_path / "x-images-idx3-ubyte.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"expected an IDX file .* fetch the file again"):
            load_images(path)

    def test_damaged_gzip(self, path):
        content = bytearray(path.read_bytes())
        content[20:40] = bytes(20)
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"expected an IDX file .* fetch the file again"):
            load_images(path)


class TestEmbedded:
    def test_sample(self):
        images = load_images(None)
        assert len(images) == 160
        assert images.image_shape == (1, 32, 32)
        assert images.labels.bincount().tolist() == [16] * 10
        assert images.classes[9] == "Ankle boot"
        pixels = images.all_images_uint8()
        assert pixels[..., :2].eq(0).all()
        assert pixels[..., :2, :].eq(0).all()
        assert pixels.flatten(1).amax(1).min() > 150  # every tile holds a picture

    def test_digest_and_licence(self):
        assets = resources.files("gradinv") / "assets"
        about = json.loads((assets / f"{EMBEDDED}.json").read_text())
        with (assets / f"{EMBEDDED}.png").open("rb") as file, Image.open(file) as sheet:
            digest = hashlib.sha256(np.asarray(sheet).tobytes()).hexdigest()
        assert digest == about["pixels_sha256"]
        assert len(set(about["indices"])) == 160
        licence = (assets / "FASHION_MNIST_LICENSE").read_text()
        assert "Copyright (c) 2017 Zalando SE" in licence

    def test_sizes_and_channels(self):
        assert load_images(None, image_size=28).images([0]).shape == (1, 1, 28, 28)
        assert load_images(None, image_size=64, channels=3).images([0]).shape == (1, 3, 64, 64)

    @pytest.mark.skipif(
        "GRADINV_FASHION_MNIST" not in os.environ,
        reason="GRADINV_FASHION_MNIST does not name a folder of Fashion-MNIST's IDX files",
    )
    def test_is_the_test_set(self):
        source = Path(os.environ["GRADINV_FASHION_MNIST"]) / "t10k-images-idx3-ubyte.gz"
        about = json.loads((resources.files("gradinv") / "assets" / f"{EMBEDDED}.json").read_text())
        whole, sample = load_images(source), load_images(None)
        assert torch.equal(whole.all_images_uint8()[about["indices"]], sample.all_images_uint8())
        assert torch.equal(whole.labels[about["indices"]], sample.labels)
