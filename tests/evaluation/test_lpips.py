"""LPIPS: published check values with the package's weights, the rest with random ones."""

import hashlib
from importlib import resources

import numpy as np
import pytest
import torch

from gradinv.errors import DataError, StorageError
from gradinv.evaluation.evaluate import metric_of
from gradinv.evaluation.lpips import _FIRES, Lpips, lpips_for
from gradinv.files import load_tensors


def names_and_shapes():
    yield "features.0", (64, 3, 3, 3)
    for place, (channels, squeezed, expanded) in _FIRES.items():
        yield f"features.{place}.squeeze", (squeezed, channels, 1, 1)
        yield f"features.{place}.expand1x1", (expanded, squeezed, 1, 1)
        yield f"features.{place}.expand3x3", (expanded, squeezed, 3, 3)


@pytest.fixture(scope="session")
def arrays():
    chance = np.random.default_rng(0)
    found = {}
    for name, shape in names_and_shapes():
        scale = (2 / np.prod(shape[1:])) ** 0.5
        found[f"{name}.weight"] = (scale * chance.standard_normal(shape)).astype(np.float16)
        found[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return found


def save(path, named):
    # The stub of savez takes the names for its own options.
    np.savez(path, **named)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="session")
def weights(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "squeeze.npz"
    save(path, arrays | {"classifier.1.bias": np.zeros(1000, np.float32)})
    return path


@pytest.fixture(scope="session")
def lpips(weights):
    return Lpips(weights)


@pytest.mark.parametrize("convention", ["correct", "paper"])
def test_check_values(convention):
    """Of lpips 0.1.4, net="squeeze", on images drawn in [-1, 1]."""
    metric = Lpips(convention=convention)
    generator = torch.Generator().manual_seed(42)
    a, b = (torch.rand(2, 3, 100, 100, generator=generator) for _ in range(2))
    if convention == "paper":  # takes what it is given, so give what the correct one makes of it
        a, b = a * 2 - 1, b * 2 - 1
    assert metric(a, b).tolist() == pytest.approx([0.1024, 0.0938], abs=5e-5)


def test_grows_with_noise():
    metric = Lpips()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 4, 4, generator=generator)
    image = torch.nn.functional.interpolate(image, (32, 32), mode="bilinear")
    noise = torch.randn(1, 1, 32, 32, generator=generator)
    distances = [
        float(metric((image + sigma * noise).clamp(0, 1), image)) for sigma in (0, 0.05, 0.1, 0.2)
    ]
    assert distances[0] == 0
    assert distances == sorted(set(distances))


def test_equal_and_different_images(lpips, generator):
    a, b = (torch.rand(2, 3, 32, 32, generator=generator) for _ in range(2))
    assert lpips(a, a).tolist() == [0, 0]
    assert lpips(a, b).min() > 0
    assert torch.allclose(lpips(a, b), lpips(b, a))
    assert torch.allclose(lpips(a[1:], b[1:]), lpips(a, b)[1:])


def test_conventions_differ_by_the_scale_of_the_input(weights, lpips, generator):
    a, b = (torch.rand(2, 3, 32, 32, generator=generator) for _ in range(2))
    paper = Lpips(weights, convention="paper")
    assert not torch.allclose(paper(a, b), lpips(a, b))
    assert torch.allclose(paper(a * 2 - 1, b * 2 - 1), lpips(a, b))


def test_grey_is_repeated(lpips, generator):
    a, b = (torch.rand(1, 1, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    repeated = lpips(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1))
    assert torch.equal(lpips(a, b), repeated)


def test_nothing_is_trainable(lpips):
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    assert not lpips.training


@pytest.mark.parametrize("side", [16, 17])
def test_smallest_image(lpips, side):
    images = torch.zeros(1, 3, side, 32)
    if side == 17:
        assert lpips(images, images).tolist() == [0]
        return
    with pytest.raises(DataError, match="at least 17x17 pixels for LPIPS, got 16x32; choose"):
        lpips(images, images)


def test_heads_are_those_of_the_package():
    """The digest of the values, so that a change of the asset shows; licence beside it."""
    assets = resources.files("gradinv") / "assets"
    with resources.as_file(assets / "lpips_squeeze_heads.safetensors") as path:
        heads, header = load_tensors(path, what="LPIPS heads")
    assert [len(heads[f"head{i}"]) for i in range(7)] == [64, 128, 256, 384, 384, 512, 512]
    assert all(bool((head >= 0).all()) for head in heads.values())
    content = b"".join(heads[f"head{i}"].numpy().tobytes() for i in range(7))
    assert hashlib.sha256(content).hexdigest() == HEADS_SHA256
    assert header["source"].startswith("lpips 0.1.4")
    assert "Richard Zhang" in (assets / "LPIPS_LICENSE").read_text()
    assert "Soumith Chintala" in (assets / "SQUEEZENET_LICENSE").read_text()


HEADS_SHA256 = "68f1b1752260e0335c6394983132e210e3ed5c2540e78d239be07671a77130e4"


class TestRefused:
    def test_missing(self, tmp_path):
        with pytest.raises(StorageError, match=r"SqueezeNet 1\.1 weights .* No such file.*; check"):
            Lpips(tmp_path / "no.npz")

    @pytest.mark.parametrize(
        "content",
        [b"", b"text", b"PK\x03\x04 but no archive", b"<html>", bytes(99), b"\x93NUMPY", b"PK"],
    )
    def test_other_content(self, tmp_path, content):
        path = tmp_path / "x.npz"
        path.write_bytes(content)
        with pytest.raises(
            StorageError, match=r"1\.1 weights as an npz .*truncated or foreign"
        ) as e:
            Lpips(path)
        assert "pickle" not in str(e.value)

    def test_truncated(self, tmp_path, arrays):
        path = tmp_path / "x.npz"
        save(path, arrays)
        whole = path.read_bytes()
        for size in (5, len(whole) // 2, len(whole) - 5):
            path.write_bytes(whole[:size])
            with pytest.raises(StorageError, match="truncated or foreign") as error:
                Lpips(path)
            assert "pickle" not in str(error.value)

    def test_pickle(self, tmp_path):
        path = tmp_path / "x.npz"
        path.write_bytes(b"\x80\x04]\x94(K\x01K\x02e.")
        with pytest.raises(StorageError, match="got a pickle; gradinv never unpickles"):
            Lpips(path)

    def test_single_array(self, tmp_path):
        np.save(tmp_path / "x.npy", np.zeros(3))
        with pytest.raises(StorageError, match="got 'a single array'"):
            Lpips(tmp_path / "x.npy")

    def test_pickled_objects(self, tmp_path, arrays):
        path = tmp_path / "x.npz"
        save(path, arrays | {"features.0.weight": np.array([object()])})
        with pytest.raises(StorageError, match="allow_pickle=False"):
            Lpips(path)

    def test_names_and_shapes_all_listed(self, tmp_path, arrays):
        broken = dict(arrays)
        del broken["features.0.bias"]
        broken["features.12.squeeze.bias"] = np.zeros(3)
        save(tmp_path / "x.npz", broken)
        message = r"without features\.0\.bias, features\.12\.squeeze\.bias of the right shape; save"
        with pytest.raises(StorageError, match=message):
            Lpips(tmp_path / "x.npz")


@pytest.mark.parametrize(("size", "there"), [(16, False), (17, True), (32, True)])
def test_images_that_are_too_small_have_none(size, there):
    assert (lpips_for(None, size) is not None) == there


def test_weights_that_were_asked_for_are_loaded_for_any_size(weights, tmp_path):
    assert isinstance(lpips_for(weights, 8), Lpips)
    with pytest.raises(StorageError, match=r"expected SqueezeNet 1\.1 weights"):
        lpips_for(tmp_path / "no.npz", 8)


def test_the_papers_convention_has_a_name(generator):
    a, b = torch.rand(2, 2, 3, 32, 32, generator=generator)
    measured = metric_of("lpips-paper")(a, b)
    assert torch.allclose(measured, Lpips(convention="paper")(a, b))
    assert not torch.allclose(measured, Lpips()(a, b))
