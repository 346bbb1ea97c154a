"""Classes of the network beside those of the images."""

import pytest
import torch

from gradinv.data import load_images
from gradinv.data.classes import parse_classes
from gradinv.errors import ConfigError, DataError
from tests.data.test_loading import folder


@pytest.mark.parametrize("text", ["dog,cat,eel", " dog , cat,eel"])
def test_names_between_commas(text):
    assert parse_classes(text) == ("dog", "cat", "eel")


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
def test_names_in_a_file(tmp_path, ending):
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfdog\r\na, b\r\ncat" + ending.encode())
    assert parse_classes(str(tmp_path / "names.txt")) == ("dog", "a, b", "cat")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1", "expected --classes from 2 to 1048576, got 1"),
        ("9" * 12, "expected --classes from 2 to"),
        ("missing.txt", "got 'missing.txt', which is no file"),
        ("a,,b", "got none at place 1"),
        ("a,b,a", "expected each class once in --classes, got a more than once"),
    ],
)
def test_lists_without_meaning(text, said):
    with pytest.raises(ConfigError) as error:
        parse_classes(text)
    assert said in str(error.value)


def test_files_without_meaning(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="expected a text file of class names in UTF-8"):
        parse_classes(str(path))
    path.write_text("only\n")
    with pytest.raises(ConfigError, match="expected at least 2 classes in --classes, got 1"):
        parse_classes(str(path))


def test_more_outputs_than_classes(tmp_path):
    folder(tmp_path, {"ant": 1, "cat": 2})
    images = load_images(tmp_path, image_size=8, classes=1000)
    assert images.num_classes == 1000
    assert images.classes[:3] == ("ant", "cat", "output 2")
    assert images.labels.tolist() == [0, 1, 1]
    assert load_images(None, classes=12).num_classes == 12


def test_a_class_gets_its_place_among_the_names(tmp_path):
    folder(tmp_path, {"ant": 1, "cat": 2})
    own = load_images(tmp_path, image_size=8)
    images = load_images(tmp_path, image_size=8, classes=("cat", "dog", "ant"))
    assert images.labels.tolist() == [2, 0, 0]
    assert torch.equal(images.images([0, 2]), own.images([0, 2]))
    batch = images.batches(batch_size=2, count=1, seed=0)[0]
    assert sorted(batch.labels.tolist()) == [0, 2]


def test_unknown_classes_and_too_few_outputs(tmp_path):
    folder(tmp_path, {"ant": 1, "cats": 1, "zzz": 1})
    with pytest.raises(DataError, match="got cats, zzz; did you mean"):
        load_images(tmp_path, image_size=8, classes=("cat", "dog", "ant"))
    with pytest.raises(DataError, match="got ant, cats, zzz; rename them, or take 0, 1"):
        load_images(tmp_path, image_size=8, classes=("0", "1"))
    with pytest.raises(DataError, match=r"expected at least the 3 classes of .* got --classes 2"):
        load_images(tmp_path, image_size=8, classes=2)
