"""Leases: jobs that end with their owner, or with their time; engine or no engine.

An owner is a process, held by pidfd; a time is one of CLOCK_BOOTTIME, which goes on while the host sleeps. When the
first of the two is over, the lease's jobs and all that is in their control groups are killed, the groups are removed,
and then the directories that the lease names.
"""

from __future__ import annotations

import os
from _collections_abc import Callable
from select import EPOLLIN
from time import CLOCK_BOOTTIME, clock_gettime, monotonic

from . import cgroup, wire
from .table import Row, Table

_SIGKILL = 9
_AGAIN_S = 0.02
_MAX_LEASES = 4096
_LOOK_S = 5.0  # a sleep of the loop does not count the time for which the host was suspended

Watch = Callable[[int, int, Callable[[int], None]], None]


class Lease:
    """One lease.

    Attributes:
        pidfd: of the owner, if it has one. until: seconds on CLOCK_BOOTTIME, if it ends by itself.
        remove: directories that must not outlive it; then it holds every job of this keeper.
        groups: control groups that it ends beside those of its jobs: of containers whose keeper was lost.
        rows: its jobs, once it has ended.
    """

    __slots__ = ("groups", "name", "pidfd", "remove", "rows", "until")

    def __init__(self, name: str, pidfd: int | None, until: float | None, remove: list[str], groups: list[str]) -> None:
        self.name = name
        self.pidfd = pidfd
        self.until = until
        self.remove = remove
        self.groups = groups
        self.rows: list[Row] = []


class Leases:
    """All of them: by name while they hold, and those that have ended until nothing of theirs is left."""

    def __init__(self, table: Table, watch: Watch, unwatch: Callable[[int], None]) -> None:
        self._table = table
        self._watch = watch
        self._unwatch = unwatch
        self._leases: dict[str, Lease] = {}
        self._ending: list[Lease] = []
        self._due: float | None = None  # when those are looked at again, on the monotonic clock
        self._until: float | None = None  # the earliest of the living ones, on CLOCK_BOOTTIME

    def __len__(self) -> int:
        return len(self._leases) + len(self._ending)

    @property
    def full(self) -> bool:
        return len(self._leases) >= _MAX_LEASES

    def holds(self, name: str) -> bool:
        """Whether new jobs may be bound to it."""
        return name in self._leases

    def has_ended(self, row: Row) -> bool:
        """Whether the lease of a job is over."""
        return any(row is one for lease in self._ending for one in lease.rows)

    def grant(self, name: str, pidfd: int | None, until: float | None, remove: list[str], groups: list[str]) -> None:
        """Hold a lease against a process, a time, or both; it replaces an earlier one of the name.

        Raises: OSError (no pidfd).
        """
        lease = Lease(name, pidfd, until, remove, groups)
        if pidfd is not None:
            self._watch(pidfd, EPOLLIN, lambda _events: self._end(lease))
        self.release(name)
        self._leases[name] = lease
        self._note_until()

    def renew(self, name: str, until: float) -> bool:
        """Set another end; False if there is no such lease any more."""
        lease = self._leases.get(name)
        if lease is None:
            return False
        lease.until = until
        self._note_until()
        return True

    def release(self, name: str) -> None:
        """Give a lease up without consequence; one that has ended already goes on ending."""
        lease = self._leases.pop(name, None)
        if lease is not None:
            self._let_go(lease)
            self._note_until()

    def next_due(self) -> float | None:
        """When `enforce` has to be called, on the monotonic clock."""
        if self._until is None:
            return self._due
        left = self._until - clock_gettime(CLOCK_BOOTTIME)
        due = monotonic() + min(left, _LOOK_S) if left > 0 else 0.0
        return due if self._due is None else min(due, self._due)

    def enforce(self, *, attended: bool) -> list[Lease]:
        """Kill what the ended leases hold, and tidy; the leases of which nothing is left now.

        Where an engine is there, it is the one that tidies: it may soon start the container again, with the same group.
        """
        now = clock_gettime(CLOCK_BOOTTIME)
        for lease in [one for one in self._leases.values() if one.until is not None and one.until <= now]:
            self._end(lease)
        over = [lease for lease in self._ending if self._is_over(lease, attended)]
        self._ending = [lease for lease in self._ending if lease not in over]
        self._due = monotonic() + _AGAIN_S if self._ending else None
        return over

    def _is_over(self, lease: Lease, attended: bool) -> bool:
        lease.rows = [row for row in lease.rows if self._table.get(row.job) is row]
        ended = [_ended(row, attended) for row in lease.rows]
        lease.groups = [group for group in lease.groups if not cgroup.end(group) and not attended]
        return all(ended) and not lease.groups

    def _end(self, lease: Lease) -> None:
        if lease.remove:
            # The root goes, with all that is in it.
            for other in [other for other in self._leases.values() if other is not lease]:
                self.release(other.name)
        del self._leases[lease.name]
        self._let_go(lease)
        self._note_until()
        lease.rows = [row for row in self._table.rows() if lease.remove or row.lease == lease.name]
        self._ending.append(lease)
        self._due = monotonic()

    def _let_go(self, lease: Lease) -> None:
        if lease.pidfd is not None:
            self._unwatch(lease.pidfd)
            os.close(lease.pidfd)

    def _note_until(self) -> None:
        self._until = min((one.until for one in self._leases.values() if one.until is not None), default=None)


def _ended(row: Row, attended: bool) -> bool:
    """Kill a job; True when its exit is known and, unless that is the engine's to do, its control groups are gone."""
    if row.exited and attended:
        return True
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
