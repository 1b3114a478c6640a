"""Leases: jobs that end with their owner, or with their time; engine or no engine.

An owner is a process, held by pidfd, or the client at the other end of a connection, which may come back with another
one for a while after it has hung up. A time is one of CLOCK_BOOTTIME, which goes on while the host sleeps. When the
first of them is over, the lease's jobs and all that is in their control groups are killed, the groups are removed, and
then the directories that the lease names.
"""

from __future__ import annotations

import os
from _collections_abc import Callable, Iterator
from select import EPOLLIN, EPOLLRDHUP
from time import CLOCK_BOOTTIME, clock_gettime, monotonic

from . import cgroup, wire
from .calls import kill_forked
from .table import Row, Table

_SIGKILL = 9
_AGAIN_S, _AGAIN_MAX_S = 0.02, 1.0  # between looks at what has not gone yet; growing while nothing of it goes
_PIECE_S = 0.005  # of control groups in one turn of the loop: exits are reaped and told in between
_MAX_LEASES = 4096
_LOOK_S = 5.0  # a sleep of the loop does not count the time for which the host was suspended

Watch = Callable[[int, int, Callable[[int], None]], None]


class Lease:
    """One lease.

    Attributes:
        pidfd: of the owner, if that is a process. until: seconds on CLOCK_BOOTTIME, if it ends by itself.
        remove: directories that must not outlive it; then it holds every job of this keeper.
        groups: control groups that it ends beside those of its jobs: of containers whose keeper was lost.
        grace_s: None, or of one that is held against a connection: how long its client may stay away.
        connection: our duplicate of the socket, None while the client is away, and that is until `gone_until`.
        rows: its jobs, once it has ended.
        unkilled: those of its groups that are still to be killed. todo, left: of jobs and groups, what is to be looked
            at in this round, and what was found not to have gone yet. due: when that goes on, on the monotonic clock.
    """

    __slots__ = (
        "again_s",
        "connection",
        "due",
        "gone_until",
        "grace_s",
        "groups",
        "left",
        "name",
        "pidfd",
        "remove",
        "rows",
        "todo",
        "unkilled",
        "until",
    )

    def __init__(
        self,
        name: str,
        pidfd: int | None,
        until: float | None,
        remove: list[str],
        groups: list[str],
        grace_s: float | None = None,
        connection: int | None = None,
        gone_until: float | None = None,
    ) -> None:
        self.name = name
        self.pidfd = pidfd
        self.until = until
        self.remove = remove
        self.groups = groups
        self.grace_s = grace_s
        self.connection = connection
        self.gone_until = gone_until
        self.rows: list[Row] = []
        self.unkilled: list[str] = []
        self.todo: list[Row | str] = []
        self.left: list[Row | str] = []
        self.due = 0.0
        self.again_s = _AGAIN_S

    @property
    def ends_at(self) -> float | None:
        """The first of its times, on CLOCK_BOOTTIME."""
        return min((at for at in (self.until, self.gone_until) if at is not None), default=None)


class Leases:
    """All of them: by name while they hold, and those that have ended until nothing of theirs is left.

    Attributes: over: names of those of connections that have ended, until they are released: an engine that was not
        there must be able to tell them from those that a lost keeper had.
    """

    def __init__(
        self,
        table: Table,
        watch: Watch,
        unwatch: Callable[[int], None],
        tell: Callable[[str, float | None, bool], None],
    ) -> None:
        """`tell(name, gone_until, over)` is called for connections: hung up, or over."""
        self._table = table
        self._watch = watch
        self._unwatch = unwatch
        self._tell = tell
        self._leases: dict[str, Lease] = {}
        self._ending: list[Lease] = []
        self.over: set[str] = set()
        self._due: float | None = None  # when those are looked at again, on the monotonic clock
        self._until: float | None = None  # the earliest end of the living ones, on CLOCK_BOOTTIME

    def __len__(self) -> int:
        return len(self._leases) + len(self._ending)

    @property
    def full(self) -> bool:
        return len(self._leases) + len(self.over) >= _MAX_LEASES

    def holds(self, name: str) -> bool:
        """Whether new jobs may be bound to it."""
        return name in self._leases

    def get(self, name: str) -> Lease | None:
        """One that holds."""
        return self._leases.get(name)

    def has_ended(self, row: Row) -> bool:
        """Whether the lease of a job is over."""
        return any(row is one for lease in self._ending for one in lease.rows)

    def grant(self, lease: Lease) -> None:
        """Hold a lease; it replaces an earlier one of the name. Its descriptors are ours if this does not raise.

        Raises: OSError (a descriptor that can't be watched).
        """
        if lease.pidfd is not None:
            self._watch(lease.pidfd, EPOLLIN, lambda _events: self._end(lease))
        if lease.connection is not None:
            self._watch_connection(lease, lease.connection)
        elif lease.grace_s is not None and lease.gone_until is None:
            lease.gone_until = clock_gettime(CLOCK_BOOTTIME) + lease.grace_s
        self.release(lease.name)
        self._leases[lease.name] = lease
        self._note_until()

    def set_until(self, lease: Lease, until: float | None) -> None:
        """Set another end by time."""
        lease.until = until
        self._note_until()

    def reconnect(self, lease: Lease, connection: int) -> None:
        """The client goes on with another connection, which is ours if this does not raise. Raises: OSError."""
        self._watch_connection(lease, connection)
        self._let_go_of_connection(lease)
        lease.connection, lease.gone_until = connection, None
        self._note_until()
        # As a message too: of two that come and go, the last one told is how it stands.
        self._tell(lease.name, None, False)

    def release(self, name: str) -> None:
        """Give a lease up without consequence; one that has ended already goes on ending."""
        self.over.discard(name)
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
        for lease in [one for one in self._leases.values() if one.ends_at is not None and one.ends_at <= now]:
            self._end(lease)
        over = self._tidy(attended)
        if over:
            self._ending = [lease for lease in self._ending if lease not in over]
        self._due = min((lease.due for lease in self._ending), default=None)
        return over

    # ---- over an exec of the keeper ----

    def held(self) -> Iterator[Lease]:
        """Those that hold."""
        return iter(self._leases.values())

    def ending(self) -> Iterator[Lease]:
        """Those that have ended, and of which something is left."""
        for lease in self._ending:
            lease.rows = [row for row in lease.rows if self._table.get(row.job) is row]
        return iter(self._ending)

    def go_on_ending(self, lease: Lease) -> None:
        """Take up one that the program before this one has seen the end of."""
        self._begin_ending(lease)

    # ---- inside ----

    def _begin_ending(self, lease: Lease) -> None:
        """Kill, before anything else: the last one is not to wait for the control groups of those before it."""
        for row in lease.rows:
            _kill(row)
        freezers = cgroup.mounts("freezer")
        if freezers:
            for path in (_cgroup_of(row) for row in lease.rows if not row.exited):
                if path is not None:
                    cgroup.thaw(path, freezers)
        lease.unkilled, lease.todo = lease.groups[:], [*lease.rows, *lease.groups]
        # Who was killed in this moment is still in its groups.
        lease.due = monotonic() + (_AGAIN_S if lease.rows and not lease.groups else 0.0)
        self._ending.append(lease)
        self._due = 0.0

    def _tidy(self, attended: bool) -> list[Lease]:
        """A piece of what is due; the leases of which nothing is left."""
        over: list[Lease] = []
        until, mounts = monotonic() + _PIECE_S, None
        for lease in self._ending:
            if lease.due > monotonic():
                continue
            mounts = mounts or cgroup.mounts()
            while lease.unkilled or lease.todo:
                if monotonic() > until:
                    return over
                if lease.unkilled:
                    cgroup.kill(lease.unkilled.pop(), mounts)
                else:
                    self._look(lease, lease.todo.pop(), attended, mounts)
            if not lease.left:
                over.append(lease)
                continue
            lease.due = monotonic() + lease.again_s
            lease.again_s = min(2 * lease.again_s, _AGAIN_MAX_S)
            lease.todo, lease.left = lease.left, []
        return over

    def _look(self, lease: Lease, one: Row | str, attended: bool, mounts: list[str]) -> None:
        if isinstance(one, Row):
            gone = self._table.get(one.job) is not one or self._ended(one, attended, mounts)
        else:
            gone = cgroup.end(one, mounts) or attended
            if gone:
                lease.groups.remove(one)
        if gone:
            lease.again_s = _AGAIN_S
        else:
            lease.left.append(one)

    def _ended(self, row: Row, attended: bool, mounts: list[str]) -> bool:
        """Kill a job; True when its exit is known and, unless the engine sees to that, its control groups are gone."""
        if row.exited and attended:
            return True
        _kill(row)
        path = _cgroup_of(row)
        if path is None:
            return row.exited
        # Before the groups: what is left of a killed call makes them.
        may_come = not row.exited or (row.pid is None and kill_forked(path.rpartition("/")[2], self._table))
        return cgroup.end(path, mounts) and not may_come

    def _end(self, lease: Lease) -> None:
        if lease.remove:
            # The root goes, with all that is in it.
            for other in [other for other in self._leases.values() if other is not lease]:
                lease.groups += [path for path in other.groups if path not in lease.groups]
                self.release(other.name)
        del self._leases[lease.name]
        self._let_go(lease)
        self._note_until()
        lease.rows = [row for row in self._table.rows() if lease.remove or row.lease == lease.name]
        self._begin_ending(lease)
        if lease.grace_s is not None:
            self.over.add(lease.name)
            self._tell(lease.name, None, True)

    def _watch_connection(self, lease: Lease, connection: int) -> None:
        # EPOLLHUP and EPOLLERR always come too. Not EPOLLIN: what the client says is not for us.
        self._watch(connection, EPOLLRDHUP, lambda _events: self._hung_up(lease))

    def _hung_up(self, lease: Lease) -> None:
        # At once: it would be told at every turn.
        self._let_go_of_connection(lease)
        assert lease.grace_s is not None
        lease.gone_until = clock_gettime(CLOCK_BOOTTIME) + lease.grace_s
        self._note_until()
        self._tell(lease.name, lease.gone_until, False)

    def _let_go(self, lease: Lease) -> None:
        if lease.pidfd is not None:
            self._unwatch(lease.pidfd)
            os.close(lease.pidfd)
            lease.pidfd = None
        self._let_go_of_connection(lease)

    def _let_go_of_connection(self, lease: Lease) -> None:
        if lease.connection is not None:
            self._unwatch(lease.connection)
            os.close(lease.connection)
            lease.connection = None

    def _note_until(self) -> None:
        self._until = min((at for one in self._leases.values() if (at := one.ends_at) is not None), default=None)


def _kill(row: Row) -> None:
    if not row.exited:
        row.lease_ended = True
        if row.pid is not None:
            # Not reaped, by us or the runtime's last process, so the number is its own.
            os.kill(row.pid, _SIGKILL)


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
