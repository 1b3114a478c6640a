"""Leases: jobs that end with their owner, engine or no engine.

An owner is a process, held by pidfd. When it is gone, its jobs' processes and all that is in their control groups are
killed, the groups are removed, and then the directories that the lease names.
"""

from __future__ import annotations

import os
from _collections_abc import Callable
from select import EPOLLIN
from time import monotonic

from . import cgroup, wire
from .table import Row, Table

_SIGKILL = 9
_AGAIN_S = 0.02
_MAX_LEASES = 1024

Watch = Callable[[int, int, Callable[[int], None]], None]


class Lease:
    """One owner. `remove` are the directories that must not outlive it."""

    __slots__ = ("ended", "name", "pidfd", "remove")

    def __init__(self, name: str, pidfd: int, remove: list[str]) -> None:
        self.name = name
        self.pidfd = pidfd
        self.remove = remove
        self.ended = False


class Leases:
    """All of them, by name."""

    def __init__(self, table: Table, watch: Watch, unwatch: Callable[[int], None]) -> None:
        self._table = table
        self._watch = watch
        self._unwatch = unwatch
        self._leases: dict[str, Lease] = {}
        self._due: float | None = None

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def full(self) -> bool:
        return len(self._leases) >= _MAX_LEASES

    def holds(self, name: str) -> bool:
        """Whether new jobs may be bound to it."""
        return name in self._leases and not self._leases[name].ended

    def grant(self, name: str, pidfd: int, remove: list[str]) -> None:
        """Hold a lease against a process; it replaces an earlier one of the name. Raises: OSError (no pidfd)."""
        lease = Lease(name, pidfd, remove)
        self._watch(pidfd, EPOLLIN, lambda _events: self._owner_gone(lease))
        self.release(name)
        self._leases[name] = lease

    def release(self, name: str) -> None:
        """End a lease without consequence, unless its owner was faster."""
        lease = self._leases.get(name)
        if lease is not None and not lease.ended:
            del self._leases[name]
            self._let_go(lease)

    def next_due(self) -> float | None:
        """When `enforce` has to be called, on the monotonic clock."""
        return self._due

    def enforce(self) -> list[Lease]:
        """Kill and tidy what the ended leases hold; the leases of which nothing is left now."""
        over = []
        for lease in [lease for lease in self._leases.values() if lease.ended]:
            ended = [_ended(row) for row in self._table.rows() if row.lease == lease.name]
            if all(ended):
                del self._leases[lease.name]
                over.append(lease)
        self._due = monotonic() + _AGAIN_S if any(lease.ended for lease in self._leases.values()) else None
        return over

    def _owner_gone(self, lease: Lease) -> None:
        lease.ended = True
        self._let_go(lease)
        self._due = monotonic()

    def _let_go(self, lease: Lease) -> None:
        self._unwatch(lease.pidfd)
        os.close(lease.pidfd)


def _ended(row: Row) -> bool:
    """Kill a job; True when its exit is known and its control groups are gone."""
    if not row.exited:
        row.lease_ended = True
        if row.pid is not None:
            # Not reaped, by us or the runtime's last process, so the number is its own.
            os.kill(row.pid, _SIGKILL)
    path = _cgroup_of(row)
    return (path is None or cgroup.end(path)) and row.exited


def _cgroup_of(row: Row) -> str | None:
    recipe = wire.decode(row.recipe)
    path = recipe.get("cgroup") if type(recipe) is dict else None
    return path if type(path) is str and cgroup.is_a_container(path) else None


def remove_directories(paths: list[str]) -> None:
    """Start their removal in a process of its own: a large tree must not hold up the loop."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)]
        arguments = ["rm", "-rf", "--one-file-system", "--", *paths]
        os.posix_spawn("/bin/rm", arguments, {}, file_actions=actions, setsid=True)
    finally:
        os.close(null)
