"""Messages that can be printed, whatever names they hold."""

import os

import pytest

from gradinv.errors import DataError, StorageError, did_you_mean, printable


def test_names_of_other_bytes():
    assert printable("caf\xe9") == "caf\xe9"
    assert printable("caf\udce9") == r"caf\xe9"
    assert printable("half \ud83d of a pair, and \udce9") == r"half \ud83d of a pair, and \udce9"


@pytest.mark.skipif(os.name != "posix", reason="file names are Unicode there")
@pytest.mark.parametrize("kind", [DataError, StorageError])
def test_a_message_can_be_printed(kind):
    name = os.fsdecode(b"/pictures/caf\xe9")
    assert str(kind(f"expected a file, got {name}")) == r"expected a file, got /pictures/caf\xe9"


def test_the_nearest_name():
    assert did_you_mean("gi-zw", ["gi-x", "gi-z/w"]) == "did you mean 'gi-z/w'?"
    assert did_you_mean("?", ["a", "b"]) == "choose one of a, b"
