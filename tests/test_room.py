"""What cannot fit into memory is refused before memory is taken."""

import math

import pytest

from gradinv import room
from gradinv.errors import ConfigError
from gradinv.room import GIB, machine_bytes, require_room


def test_the_least_limit_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(room, "_GROUPS", tmp_path / "none")
    monkeypatch.setattr(room, "_CGROUPS", tmp_path)
    free = machine_bytes()
    assert GIB / 16 < free < math.inf
    limit.write_text("max\n")
    assert machine_bytes() == free
    limit.write_text("4096\n")
    assert machine_bytes() == 4096


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/a.slice/b.scope\n", "a.slice/b.scope/memory.max"),
        ("0::/a.slice/b.scope\n", "a.slice/memory.max"),
        ("0::/in/another/container\n", "memory.max"),
        ("3:cpu,cpuacct:/x\n2:memory:/a/b\n", "memory/a/b/memory.limit_in_bytes"),
        ("3:cpu,cpuacct:/x\n2:hugetlb,memory:/a/b\n0::/\n", "memory/a/memory.limit_in_bytes"),
        ("2:memory:/on/the/host\n", "memory/memory.limit_in_bytes"),
    ],
)
def test_limits_of_control_groups_all_around(groups, file, tmp_path, monkeypatch):
    """Version 2 and 1, of the process's own group and of those that it lies in."""
    monkeypatch.setattr(room, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(room, "_CGROUPS", tmp_path)
    (tmp_path / "cgroup").write_text(groups)
    free = machine_bytes()
    limit = tmp_path / file
    limit.parent.mkdir(parents=True, exist_ok=True)
    limit.write_text(f"{2**63}\n")  # what version 1 says where there is none
    assert machine_bytes() == free
    limit.write_text("8192\n")
    assert machine_bytes() == 8192


def test_the_sentence(monkeypatch):
    monkeypatch.setattr(room, "machine_bytes", lambda: 2 * GIB)
    require_room(2 * GIB, "a batch", "--batch-size", ConfigError)
    with pytest.raises(
        ConfigError,
        match=r"^expected a batch that fits into the 2 GiB of this machine, got one that needs "
        r"about 3 GiB; lower --batch-size$",
    ):
        require_room(3 * GIB, "a batch", "--batch-size", ConfigError)
    with pytest.raises(ConfigError, match=r"the 1 GiB of this graphics card, got one .* 3 GiB;"):
        require_room(
            3 * GIB, "a batch", "--batch-size", ConfigError, there=GIB, whose="this graphics card"
        )
