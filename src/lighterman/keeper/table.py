"""What the keeper knows: jobs, the runtime calls in flight, and exits that nobody has claimed yet. No I/O."""

from __future__ import annotations

from _collections_abc import Iterable, Iterator


class Row:
    """One job, from its spawn to the acknowledgement of its exit.

    `pid` is None while the runtime call runs, and stays None when it failed with nobody there to be told: then
    `status` is the runtime's own.
    """

    __slots__ = (
        "exited",
        "held",
        "job",
        "lease",
        "lease_ended",
        "meta",
        "mono_ns",
        "pid",
        "recipe",
        "segments",
        "serial",
        "slot",
        "start_time",
        "status",
        "wall_ns",
    )

    def __init__(
        self,
        serial: int,
        job: str,
        slot: int,
        held: dict[str, int],
        segments: tuple[str, int, int, str] | None,
        recipe: bytes,
        meta: bytes,
    ) -> None:
        self.serial = serial
        self.job = job
        self.slot = slot
        self.held = held
        self.segments = segments
        self.recipe = recipe
        self.meta = meta
        self.lease = ""
        self.lease_ended = False
        self.pid: int | None = None
        self.start_time: int | None = None
        self.exited = False
        self.status = 0
        self.mono_ns = 0
        self.wall_ns = 0


class Unclaimed:
    """Exits of processes that no job is known to own yet.

    The process that a runtime leaves behind can be reaped before the runtime's own exit, which is when its pid is
    read. A pid is used again soon: an exit is given only to a job that was spawned before it.
    """

    def __init__(self) -> None:
        self._exits: dict[int, tuple[int, int]] = {}
        self._prune_at = 64

    def __len__(self) -> int:
        return len(self._exits)

    def add(self, pid: int, status: int, mono_ns: int, oldest_call_ns: int | None) -> None:
        """Keep an exit while a call in flight (the oldest was spawned at `oldest_call_ns`) may claim it."""
        if oldest_call_ns is None:
            self._exits.clear()
            return
        self._exits[pid] = (status, mono_ns)
        if len(self._exits) >= self._prune_at:
            self._exits = {other: exit for other, exit in self._exits.items() if exit[1] >= oldest_call_ns}
            self._prune_at = max(64, 2 * len(self._exits))

    def resume(self, exits: Iterable[tuple[int, int, int]]) -> None:
        """Go on with `all` of the program before this one."""
        self._exits.update((pid, (status, mono_ns)) for pid, status, mono_ns in exits)

    def all(self) -> list[tuple[int, int, int]]:
        """`(pid, status, mono_ns)` of each."""
        return [(pid, status, mono_ns) for pid, (status, mono_ns) in self._exits.items()]

    def claim(self, pid: int, spawned_ns: int) -> tuple[int, int] | None:
        """`(status, mono_ns)` of the exit of `pid` after `spawned_ns`, which is then claimed; else None."""
        exit = self._exits.get(pid)
        if exit is None or exit[1] < spawned_ns:
            return None
        del self._exits[pid]
        return exit


class Table:
    """Jobs by key and by pid. Jobs leave by `remove` only."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._by_pid: dict[int, Row] = {}
        self._serial = 0
        self.unclaimed = Unclaimed()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, job: str) -> Row | None:
        return self._rows.get(job)

    def rows(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def after(self, serial: int, of: str = "") -> Iterator[Row]:
        """Rows in the order of their spawns, those after `serial` whose key begins with `of`."""
        return (row for row in self._rows.values() if row.serial > serial and row.job.startswith(of))

    def add(
        self,
        job: str,
        slot: int,
        held: dict[str, int],
        segments: tuple[str, int, int, str] | None,
        recipe: bytes,
        meta: bytes,
    ) -> Row:
        self._serial += 1
        row = self._rows[job] = Row(self._serial, job, slot, held, segments, recipe, meta)
        return row

    def resume(self, rows: Iterable[Row], serial: int) -> None:
        """Go on with the rows that the program before this one had; `serial` is the last that it gave."""
        for row in rows:
            self._rows[row.job] = row
            if row.pid is not None and not row.exited:
                self._by_pid[row.pid] = row
        self._serial = serial

    @property
    def serial(self) -> int:
        """Of the row that was added last."""
        return self._serial

    def remove(self, row: Row) -> None:
        del self._rows[row.job]
        self._forget_pid(row)

    def started(self, row: Row, pid: int, start_time: int | None) -> None:
        """The runtime left `pid`, which is alive or at least not reaped."""
        row.pid = pid
        row.start_time = start_time
        self._by_pid[pid] = row

    def running(self, pid: int) -> Row | None:
        """The job whose process `pid` is, as long as it was not reaped."""
        return self._by_pid.get(pid)

    def ended(self, row: Row, status: int, mono_ns: int, wall_ns: int) -> bool:
        """Note the exit; False if it was known already."""
        if row.exited:
            return False
        self._forget_pid(row)
        row.exited = True
        row.status = status
        row.mono_ns = mono_ns
        row.wall_ns = wall_ns
        return True

    def _forget_pid(self, row: Row) -> None:
        if row.pid is not None and self._by_pid.get(row.pid) is row:
            del self._by_pid[row.pid]
