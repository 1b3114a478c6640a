"""One exec process with all that it has started: by parent and by session, within the container's cgroup. Blocking.

A process that has made a session of its own, and whose parents have all ended, is a daemon of the container, no longer
the exec's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lighterman.runtimes.oci.cgroups.killing import kill_listed
from lighterman.runtimes.oci.processes import family_of

__all__ = ["kill_tree"]

_PASSES_S = 2.0  # a tree that forks faster than it can be listed is left to the end of its container


def kill_tree(root: int, pids: Callable[[], set[int]]) -> None:
    """SIGKILL for `root` and its tree; `pids` lists the container's processes. Returns when none of them is alive."""
    known = {root}

    def members() -> set[int]:
        alive = {pid: family for pid in pids() if (family := family_of(pid)) is not None}
        found: set[int] = set()
        grown = True
        while grown:
            more = {pid for pid, family in alive.items() if pid not in found and {pid, *family} & known}
            found |= more
            known.update(more)
            grown = bool(more)
        return found

    deadline = time.monotonic() + _PASSES_S
    while members() and time.monotonic() < deadline:
        kill_listed(members)
