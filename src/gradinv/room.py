"""How much memory there is, and the one sentence for what cannot fit into it.

Sizes come from files and from the command line, where they can be anything; what asks for more than
the machine has is refused before memory is taken.
"""

import math
import os
import sys
from pathlib import Path

from gradinv.errors import GradinvError

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def machine_bytes() -> int | float:
    """Returns the memory that this process can have at most, in bytes.

    The least of the machine's memory, the container's limit and the process's own limit. Infinite
    where the system tells none of them, as on Windows: nothing is refused there.
    """
    found: list[int | float] = [math.inf]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if _CGROUP.is_file() and (limit := _CGROUP.read_text("utf-8").strip()).isdigit():
        found.append(int(limit))
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            found.append(soft)
    return min(found)


def require_room(
    needed: int, what: str, lower: str, error: type[GradinvError] = GradinvError
) -> None:
    """Checks that what is asked for can fit into memory.

    Args:
        needed: bytes that it takes at least.
        what: it, such as "a network".
        lower: what to lower, such as "--image-size".
        error: the class of the error.

    Raises:
        GradinvError: of that class; it cannot.
    """
    there = machine_bytes()
    if needed > there:
        raise error(
            f"expected {what} that fits into the {there / GIB:.3g} GiB of this machine, got one "
            f"that needs about {needed / GIB:.3g} GiB; lower {lower}"
        )
