"""How much memory there is, and the one sentence for what cannot fit into it.

Sizes come from files and from the command line, where they can be anything; what asks for more than
the machine has is refused before memory is taken.
"""

import math
import os
import sys
from pathlib import Path, PurePosixPath

from gradinv.errors import GradinvError

GIB = 2**30
_GROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def machine_bytes() -> int | float:
    """Returns the memory that this process can have at most, in bytes.

    The least of the machine's memory, the limits of the control groups that the process is in, as
    of a container or a job, and its own limit. Infinite where the system tells none of them, as on
    Windows: nothing is refused there.
    """
    found: list[int | float] = [math.inf]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits = (file.read_text("utf-8").strip() for file in _limit_files() if file.is_file())
    found += [int(limit) for limit in limits if limit.isdigit()]
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            found.append(soft)
    return min(found)


def _limit_files() -> list[Path]:
    """Returns where Linux may tell a limit: of the process's control groups and all around them.

    Of version 2 and 1. In a container the group's own path need not exist; the top is its own then.
    """
    lines = _GROUPS.read_text("utf-8").splitlines() if _GROUPS.is_file() else []
    files = [_CGROUPS / "memory.max", _CGROUPS / "memory" / "memory.limit_in_bytes"]
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            top, limit = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, limit = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = PurePosixPath(name.lstrip("/"))
        files += [top / group / limit for group in (inner, *inner.parents)]
    return files


def require_room(
    needed: int,
    what: str,
    lower: str,
    error: type[GradinvError] = GradinvError,
    *,
    there: int | float | None = None,
    whose: str = "this machine",
) -> None:
    """Checks that what is asked for can fit into memory.

    Args:
        needed: bytes that it takes at least.
        what: it, such as "a network".
        lower: what to lower, such as "--image-size".
        error: the class of the error.
        there: bytes that there are; those of this machine by default.
        whose: what has them.

    Raises:
        GradinvError: of that class; it cannot.
    """
    there = machine_bytes() if there is None else there
    if needed > there:
        raise error(
            f"expected {what} that fits into the {there / GIB:.3g} GiB of {whose}, got one "
            f"that needs about {needed / GIB:.3g} GiB; lower {lower}"
        )
