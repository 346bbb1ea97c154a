"""A folder looked at once: what is noted, what is refused, and that all of it is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradinv.cli import main
from gradinv.data import load_images
from gradinv.data.check import check_folder, require_sound
from gradinv.errors import DataError
from tests.data.test_loading import folder, noise, picture


def problems(root: Path) -> str:
    return " | ".join(str(problem) for problem in check_folder(root, image_size=8).problems)


def notes(root: Path) -> str:
    return " | ".join(str(note) for note in check_folder(root, image_size=8).notes)


def test_what_systems_leave_behind_is_ignored(tmp_path):
    folder(tmp_path, {"a": 1})
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    for name in ("Thumbs.db", "desktop.ini", "a/._000.png", "a/.DS_Store", "a/thumbs.db"):
        (tmp_path / name).touch()
    images = load_images(tmp_path, image_size=8)
    assert (images.classes, len(images)) == (("a",), 1)
    assert not problems(tmp_path)
    (ignored,) = check_folder(tmp_path, image_size=8).notes
    assert set(ignored.files) == {
        "__MACOSX", "@eaDir", ".ipynb_checkpoints", "Thumbs.db", "desktop.ini", "a/._000.png",
        "a/.DS_Store", "a/thumbs.db",
    }  # fmt: skip


def test_floats_are_pixels_only_in_zero_to_one(tmp_path):
    (tmp_path / "a").mkdir()
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a" / "x.png", format="TIFF")
    got = load_images(tmp_path, image_size=8, channels=1).images([0])[0, 0].numpy()
    assert np.abs(got - ramp).max() <= 0.5 / 255 + 1e-6
    assert "of another format than their ending says (TIFF): a/x.png" in notes(tmp_path)
    Image.fromarray(ramp * 9).save(tmp_path / "a" / "x.png", format="TIFF")
    with pytest.raises(DataError, match=r"floats from 0 to 9: divide them"):
        load_images(tmp_path, image_size=8).images([0])


@pytest.mark.parametrize(("highest", "factor"), [(255, 256), (1023, 64), (4095, 16)])
def test_few_bits_in_sixteen_are_refused_not_shown_black(tmp_path, highest, factor):
    dark = np.linspace(0, highest, 64).reshape(8, 8).astype(np.uint16)
    picture(tmp_path / "a" / "x.png", dark)
    with pytest.raises(DataError, match=f"nearly black; multiply them by {factor}, or save"):
        load_images(tmp_path, image_size=8).images([0])
    assert f"no value above {highest} of 65535" in problems(tmp_path)
    # A dark one beside a bright one is dark.
    picture(tmp_path / "a" / "y.png", np.full((8, 8), 65535, np.uint16))
    assert load_images(tmp_path, image_size=8).images([0]).max() <= highest / 65535
    assert not problems(tmp_path)


def test_wide_integers_and_hidden_pictures_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(noise(8, 8).astype(np.int32)).save(tmp_path / "a" / "i.png", format="TIFF")
    alpha = np.zeros((8, 8, 4), np.uint8)
    alpha[..., 3] = noise(8, 8)
    picture(tmp_path / "a" / "t.png", alpha)
    picture(tmp_path / "a" / "z.png", noise(1, 1, 3))
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    found = problems(tmp_path)
    for words in ("32-bit integers", "in its transparency", "1x1 pixels", "a/loop.png (", "got 4"):
        assert words in found


def test_all_broken_files_are_named_at_once(tmp_path):
    folder(tmp_path, {"a": 30})
    for number in range(25):
        (tmp_path / "a" / f"{number:03}.png").write_bytes(b"" if number % 2 else b"no image")
    images = load_images(tmp_path, image_size=8)
    for call in (lambda: images.all_images_uint8(), lambda: require_sound(images, [])):
        with pytest.raises(
            DataError, match=r"got 25 that cannot: .*000\.png .* and 5 more"
        ) as error:
            call()
        assert "'an empty file'" in str(error.value)


def test_notes(tmp_path):
    root = folder(tmp_path, {"a": 2, "b": 1, "empty": 0})
    (root / "b" / "twin.png").write_bytes((root / "a" / "000.png").read_bytes())
    (root / "a" / "TWIN.png").write_bytes((root / "a" / "001.png").read_bytes())
    picture(root / "a" / "grey.png", np.full((8, 8), 9, np.uint8))
    (root / "A").mkdir()
    found = notes(root)
    for words in ("keep their number: A; empty", "several classes: a/000.png = b/twin.png",
                  "in a class; an audit cannot tell which was found: a/001.png = a/TWIN.png",
                  "A and a", "hardly any contrast: a/grey.png"):  # fmt: skip
        assert words.replace("a/001.png = a/TWIN.png", "a/") in found


def test_the_command(tmp_path, capsys):
    root = folder(tmp_path / "set", {"a": 2})
    assert main(["data", "check", str(root), "--image-size", "8"]) == 0
    assert "2 in 1 classes" in capsys.readouterr().out
    (root / "a" / "bad.png").touch()
    (root / "loose.txt").touch()
    assert main(["data", "check", str(root), "--json"]) == 2
    said = capsys.readouterr()
    assert len(json.loads(said.out)["problems"]) == 2
    assert "got 2 problems" in said.err
    assert main(["data", "check", str(tmp_path / "no")]) == 2
    assert "got nothing at" in capsys.readouterr().err


def test_kinds_of_pictures_that_are_converted(tmp_path):
    grey = Image.fromarray(noise(8, 8))
    files = {
        "cmyk.jpg": Image.fromarray(noise(8, 8, 3)).convert("CMYK"),
        "palette.png": grey.convert("P"),
    }
    (tmp_path / "a").mkdir()
    for name, image in files.items():
        image.save(tmp_path / "a" / name)
    images = load_images(tmp_path, image_size=8)
    assert len(images) == 2
    assert images.images([0, 1]).std() > 0.05
    assert not problems(tmp_path)


def test_a_broken_file_is_refused_by_what_pillow_raises_and_a_fault_of_ours_is_not(
    tmp_path, monkeypatch
):
    folder(tmp_path, {"a": 1})

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("gradinv.data.decoding.Image.open", broken)
    with pytest.raises(ZeroDivisionError):
        load_images(tmp_path, image_size=8).images([0])
