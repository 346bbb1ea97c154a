"""Tensors on disk: what is told about a file that is not what it should be."""

import json
import os
import struct
import time

import pytest
import torch
from safetensors.torch import save_file

from gradinv.errors import StorageError
from gradinv.files import (
    HEADER_KEY,
    load_tensors,
    output_folder,
    read_json,
    save_tensors,
    write_bytes,
)


def test_round_trip(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"a": torch.arange(3)}, {"kind": "test"})
    tensors, header = load_tensors(tmp_path / "a.safetensors", what="a test")
    assert tensors["a"].tolist() == [0, 1, 2]
    assert header == {"kind": "test"}


@pytest.mark.skipif(os.name != "posix", reason="file names are Unicode there")
def test_names_whose_bytes_are_no_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    save_tensors(folder / "a.safetensors", {"a": torch.arange(3)}, {"kind": "test"})
    tensors, header = load_tensors(folder / "a.safetensors", what="a test")
    assert tensors["a"].tolist() == [0, 1, 2]
    assert header == {"kind": "test"}
    (folder / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(StorageError, match="got a truncated or foreign file") as found:
        load_tensors(folder / "broken.safetensors", what="a test")
    assert r"caf\xe9" in str(found.value)
    str(found.value).encode()


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


@pytest.mark.parametrize("padding", range(0, 64, 4))
def test_loaded_tensors_have_memory_of_their_own(tmp_path, padding):
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.rand(7, 3), "b": torch.rand(1), "c": torch.rand(5).half()}
    header = {"padding": "x" * padding, "text": 1}
    save_tensors(path, tensors, header)
    loaded, _ = load_tensors(path, what="a test")
    path.write_bytes(b"\xff" * path.stat().st_size)  # the same file, not a new one
    for name, tensor in tensors.items():
        there = loaded[name]
        assert there.data_ptr() % 64 == 0
        assert there.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        assert torch.equal(there, tensor)


def test_an_interruption_while_a_file_is_written_leaves_nothing_beside_it(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a", b"before")

    def interrupted(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "a", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def claim(path, shape, end) -> None:
    """Writes a file of 4 bytes whose header claims a tensor of another size."""
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"1234")


@pytest.mark.parametrize(
    ("shape", "end"),
    [([2**40], 2**42), ([2**40], 4), ([2**62, 2**62], 4), ([1], 2**62), ([2**40, 0, 1], 4)],
)
def test_a_header_that_claims_more_than_the_file_holds(tmp_path, shape, end):
    path = tmp_path / "a.safetensors"
    claim(path, shape, end)
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"expected a test as a safetensors file .* got a trunc"):
        load_tensors(path, what="a test", foreign=True)
    assert time.monotonic() - started < 1


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(StorageError, match="got a truncated or foreign file"):
        load_tensors(path, what="a test")


NESTED = "[" * 100_000 + "]" * 100_000


def test_far_too_many_brackets(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(NESTED)
    with pytest.raises(StorageError, match="got one of far too many nested brackets; make it"):
        read_json(path)
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(3)}, path, metadata={HEADER_KEY: NESTED})
    with pytest.raises(StorageError, match="got a header of far too many nested brackets; make"):
        load_tensors(path, what="a test")


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_begins_as_a_pickle(length, tmp_path):
    path = tmp_path / "t.safetensors"
    padding = 0
    for padding in range(length):
        save_tensors(path, {"a": torch.ones(1)}, {"text": "x" * padding})
        if int.from_bytes(path.read_bytes()[:8], "little") == length:
            break
    assert path.read_bytes()[0] == 0x80
    tensors, header = load_tensors(path, what="a file")
    assert tensors["a"].tolist() == [1]
    assert header["text"] == "x" * padding
