"""One exec process with all that it has started: by parent and by session, within the container's cgroup. Blocking.

A process that has made a session of its own, and whose parents have all ended, is a daemon of the container, no longer
the exec's; unless it was seen before they ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from lighterman.runtimes.oci.cgroups.killing import kill_listed
from lighterman.runtimes.oci.processes import family_of, read_start_time

__all__ = ["Members", "Tree", "kill_tree"]

_PASSES_S = 2.0  # a tree that forks faster than it can be listed is left to the end of its container


class Members(Protocol):
    """An exec process with all that it has started. Blocking."""

    def look(self) -> set[int]:
        """Their numbers now. Who is seen belongs to it from then on, also when its parents have ended."""

    def kill(self) -> None:
        """SIGKILL for all of it. Returns when none is alive, or after a bound."""


class Tree:
    """What belongs to `root`; `pids` lists the container's processes. It is known from each `look` on.

    Args: let_die: those of these processes that were killed, if something holds them back.
    """

    def __init__(
        self, root: int, pids: Callable[[], set[int]], let_die: Callable[[set[int]], None] = lambda _: None
    ) -> None:
        self._pids = pids
        self._let_die = let_die
        self._known: dict[int, int | None] = {root: read_start_time(root)}  # number to start time: one process for ever
        self._session = _session_of_its_own(root)

    def look(self) -> set[int]:
        """Those that are alive now."""
        alive = {pid: family for pid in self._pids() if (family := family_of(pid)) is not None}
        started = {pid: read_start_time(pid) for pid in alive}
        # A number that somebody else has by now says nothing, of a parent or of a session's leader.
        taken = {pid for pid in alive if pid in self._known and self._known[pid] != started[pid]}
        found: set[int] = set()
        grown = True
        while grown:
            known = (self._known.keys() - taken) | {self._session}
            more = {pid for pid, family in alive.items() if pid not in found | taken and {pid, *family} & known}
            found |= more
            self._known.update((pid, started[pid]) for pid in more)
            grown = bool(more)
        return found

    def kill(self) -> None:
        """SIGKILL for all of it. Returns when none is alive, or after a bound."""
        deadline = time.monotonic() + _PASSES_S
        while self.look() and time.monotonic() < deadline:
            kill_listed(self.look)
            self._let_die(self.look())


def _session_of_its_own(root: int) -> int:
    """crun's exec lives in the session of a process of crun's, which has ended; 0 if the session is somebody else's.

    A number stays taken as long as there is a session of that number: if no process has it, nobody else is meant.
    """
    family = family_of(root)
    if family is None or family[1] == root or read_start_time(family[1]) is not None:
        return 0
    return family[1]


def kill_tree(root: int, pids: Callable[[], set[int]]) -> None:
    """SIGKILL for `root` and its tree."""
    Tree(root, pids).kill()
