"""Tensors on disk: what is told about a file that is not what it should be."""

import pytest
import torch
from safetensors.torch import save_file

from gradinv.errors import StorageError
from gradinv.files import HEADER_KEY, load_tensors, output_folder, save_tensors


def test_round_trip(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"a": torch.arange(3)}, {"kind": "test"})
    tensors, header = load_tensors(tmp_path / "a.safetensors", what="a test")
    assert tensors["a"].tolist() == [0, 1, 2]
    assert header == {"kind": "test"}


def test_foreign_safetensors_only_where_they_are_asked_for(tmp_path):
    save_file({"a": torch.arange(3)}, tmp_path / "a.safetensors")
    tensors, header = load_tensors(tmp_path / "a.safetensors", what="a test", foreign=True)
    assert tensors["a"].tolist() == [0, 1, 2]
    assert header == {}
    with pytest.raises(StorageError, match=r"without gradinv's header; make it with gradinv"):
        load_tensors(tmp_path / "a.safetensors", what="a test")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "a header that is not JSON"), ("[1]", "a header that is no JSON object but list")],
)
def test_a_broken_header(tmp_path, content, message):
    save_file({"a": torch.arange(3)}, tmp_path / "a.safetensors", metadata={HEADER_KEY: content})
    with pytest.raises(StorageError, match=message):
        load_tensors(tmp_path / "a.safetensors", what="a test")


def fail_in(folder, *, writing: bool) -> None:
    with output_folder(folder) as path:
        if writing:
            (path / "checkpoint").touch()
        raise KeyboardInterrupt


def test_a_folder_of_results_goes_again_where_nothing_came_of_it(tmp_path):
    for writing in (False, True):
        with pytest.raises(KeyboardInterrupt):
            fail_in(tmp_path / "new", writing=writing)
        assert (tmp_path / "new").exists() == writing
    (tmp_path / "old").mkdir()
    with pytest.raises(KeyboardInterrupt):
        fail_in(tmp_path / "old", writing=False)
    assert (tmp_path / "old").exists()
    with output_folder(tmp_path / "kept") as path:
        pass
    assert path.is_dir()
