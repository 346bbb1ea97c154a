"""What cannot fit into memory is refused before memory is taken."""

import math

import pytest

from gradinv import room
from gradinv.errors import ConfigError
from gradinv.room import GIB, machine_bytes, require_room


def test_the_least_limit_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(room, "_CGROUP", limit)
    free = machine_bytes()
    assert GIB / 16 < free < math.inf
    limit.write_text("max\n")
    assert machine_bytes() == free
    limit.write_text("4096\n")
    assert machine_bytes() == 4096


def test_the_sentence(monkeypatch):
    monkeypatch.setattr(room, "machine_bytes", lambda: 2 * GIB)
    require_room(2 * GIB, "a batch", "--batch-size", ConfigError)
    with pytest.raises(
        ConfigError,
        match=r"^expected a batch that fits into the 2 GiB of this machine, got one that needs "
        r"about 3 GiB; lower --batch-size$",
    ):
        require_room(3 * GIB, "a batch", "--batch-size", ConfigError)
