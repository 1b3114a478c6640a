"""Jobs: runtime calls under way, what they leave behind, and the exits of that, on disk before they are told."""

from __future__ import annotations

import os
import sys
from _collections_abc import Callable
from select import EPOLLIN
from time import monotonic, monotonic_ns, time_ns

from . import requests
from .calls import (
    Call,
    ConsoleSocket,
    descends_from_us,
    now_ticks,
    open_pidfd,
    read_pid_file,
    read_start_time,
)
from .channel import close_all
from .leases import Leases, remove_directories
from .mailboxes import Mailboxes
from .output import Output
from .peer import Peer
from .requests import Refused, SpawnRequest
from .slots import ExitSlot, SlotFile
from .spawning import Spawner, SpawnPlan
from .table import Row, Table

_REAPS_A_TURN = 512
_MAX_CALLS = 512
_MAX_BINARIES = 16
# Kept free for what is not a job: clients, segment files, terminals.
_SPARE_DESCRIPTORS = 256

Watch = Callable[[int, int, Callable[[int], None]], None]


class Jobs:
    """What the keeper keeps.

    Attributes:
        table, calls, leases, mailboxes, slots, spawner, binaries: what a next program goes on with too (`upgrade.py`).
        attended: whether an engine is connected. While none is, output goes into segments.
        unreaped: whether there may be exits to reap.
        forsaken: the last lease of a private root has ended, and with it everything.
    """

    def __init__(
        self,
        slots: SlotFile,
        spawner: Spawner,
        watch: Watch,
        unwatch: Callable[[int], None],
        answer: Callable[[Peer, int, dict[str, object], list[int]], None],
        tell: Callable[[Row], None],
        tell_lease: Callable[[str, float | None, bool], None],
    ) -> None:
        """`answer` sends what a call's client waits for, `tell` an exit to the engine, `tell_lease` see `Leases`."""
        self.table = Table()
        self.calls: dict[int, Call] = {}
        self.leases = Leases(self.table, watch, unwatch, tell_lease)
        self.mailboxes = Mailboxes(watch, unwatch)
        self.attended = False
        self.unreaped = False
        self.forsaken = False
        self.slots = slots
        self.spawner = spawner
        self._watch = watch
        self._unwatch = unwatch
        self._answer = answer
        self._tell = tell
        self._output = Output(watch, unwatch)
        self.binaries: dict[str, int] = {}

    @property
    def any(self) -> bool:
        return bool(len(self.table) or self.calls)

    def next_due(self) -> float | None:
        """When `expire` has something to do, on the monotonic clock."""
        due = [call.deadline_ns / 1e9 for call in self.calls.values() if not call.timed_out]
        others = (self._output.next_retry(), self.leases.next_due(), self.mailboxes.next_due())
        due += [at for at in others if at is not None]
        return min(due, default=None)

    def expire(self) -> None:
        """What is due: runtime calls that take too long, output that could not be written, leases that ended."""
        now = monotonic()
        for call in self.calls.values():
            if not call.timed_out and call.deadline_ns <= now * 1e9:
                call.kill()
        self._output.retry(now)
        self.mailboxes.retry(now)
        due = self.leases.next_due()
        if due is not None and due <= now:
            self._enforce_leases()

    # ---- the engine comes and goes ----

    def attend(self) -> None:
        """An engine is there: its is the output."""
        self.attended = True
        self._output.stop_all()
        self.mailboxes.attend()

    def abandon(self) -> None:
        """The engine has gone."""
        self.attended = False
        self.mailboxes.abandon()
        for row in self.table.rows():
            if row.pid is not None:
                self._output.start(row)

    def stand_still(self) -> None:
        """Write no output until `go_on`: what is in the files is complete, or repaired by the next writer."""
        self._output.stop_all()

    def go_on(self) -> None:
        """After `stand_still`, or in the next program."""
        self.unreaped = True
        if self.attended:
            self.mailboxes.attend()
        else:
            self.abandon()

    def disown(self, peer: Peer) -> None:
        """Nobody waits any more for the answers to a client's calls."""
        for call in self.calls.values():
            if call.peer is peer:
                call.peer = None

    # ---- what is kept ----

    def register(self, name: str, fd: int) -> None:
        """Take a binary's descriptor over. Raises: Refused."""
        if len(self.binaries) >= _MAX_BINARIES and name not in self.binaries:
            raise Refused(requests.LIMIT, f"binary {name[:40]!r}: {_MAX_BINARIES} are registered already")
        older = self.binaries.get(name)
        self.binaries[name] = fd
        if older is not None:
            os.close(older)

    def forget(self, row: Row) -> None:
        """Free the slot and the descriptors of a job."""
        self._output.stop(row)
        self.table.remove(row)
        try:
            self.slots.free(row.slot, filled=row.exited)
        except OSError as error:
            _complain(f"slot of job {row.job} is lost: {error}")
        held, row.held = row.held, {}
        close_all(held.values())

    def _enforce_leases(self) -> None:
        over = self.leases.enforce(attended=self.attended)
        for call in self.calls.values():
            if call.row is not None and self.leases.has_ended(call.row):
                call.kill()
        for lease in (lease for lease in over if lease.remove):
            # What is removed held the store too: nobody is left who could ask for these exits.
            for row in [row for row in lease.rows if self.table.get(row.job) is row]:
                self.forget(row)
            remove_directories(lease.remove)
            self.forsaken = not len(self.table) and not self.calls and not len(self.leases)

    # ---- runtime calls ----

    def spawn(self, peer: Peer, request: int, asked: SpawnRequest, fds: list[int]) -> None:
        """Start a runtime call; its answer follows when it has ended. Raises: Refused, OSError."""
        if self.table.get(asked.job) is not None:
            raise Refused(requests.EXISTS, f"job {asked.job}: the keeper has it already")
        if asked.lease and not self.leases.holds(asked.lease):
            raise Refused(requests.STATE, f"job {asked.job}: lease {asked.lease[:40]!r} is unknown or over")
        if len(self.calls) >= _MAX_CALLS:
            raise Refused(requests.LIMIT, f"job {asked.job}: {_MAX_CALLS} runtime calls are in flight")
        if max(fds) >= self.spawner.descriptor_limit - _SPARE_DESCRIPTORS:
            raise Refused(requests.LIMIT, f"job {asked.job}: keeper is out of descriptors, raise ulimit -n")
        row = self._reserve(asked, fds) if asked.pid_file is not None else None
        console = None
        try:
            if asked.pid_file is not None:
                _remove_stale(asked.pid_file)
            if asked.console is not None:
                console = ConsoleSocket.listening(asked.console)
            spawned_ns, since_ticks = monotonic_ns(), now_ticks()
            pid = self.spawner.spawn(self._plan(asked))
        except BaseException as error:
            if console is not None:
                console.close()
            if row is not None:
                self.forget(row)
            if isinstance(error, ValueError):
                raise Refused(requests.INVALID, f"job {asked.job}: {error}") from error
            raise
        deadline_ns = spawned_ns + int(asked.timeout_s * 1e9)
        call = Call(pid, spawned_ns, since_ticks, deadline_ns, peer, request, row, asked.pid_file, console)
        self.calls[pid] = call
        if console is not None:
            self.watch_console(call, console)

    def run_aside(self, plan: SpawnPlan, timeout_s: float, then: Callable[[int], None]) -> None:
        """Run a command of the keeper's own; `then` gets its wait status. Raises: OSError."""
        spawned_ns, since_ticks = monotonic_ns(), now_ticks()
        pid = self.spawner.spawn(plan)
        deadline_ns = spawned_ns + int(timeout_s * 1e9)
        self.calls[pid] = Call(pid, spawned_ns, since_ticks, deadline_ns, None, 0, None, None, None, then)

    def _plan(self, asked: SpawnRequest) -> SpawnPlan:
        executable = asked.executable
        if not executable.startswith("/"):
            if executable not in self.binaries:
                raise Refused(requests.NOT_FOUND, f"executable {executable[:80]!r}: no path and not registered")
            executable = f"/proc/self/fd/{self.binaries[executable]}"
        return SpawnPlan(
            executable, asked.argv, asked.env, asked.cwd, asked.descriptors, asked.mount_fd, asked.mount_target
        )

    def _reserve(self, asked: SpawnRequest, fds: list[int]) -> Row:
        """A row with its slot and its own descriptors. Raises: Refused, OSError."""
        try:
            slot = self.slots.reserve()
        except OSError as error:
            raise Refused(requests.LIMIT, f"job {asked.job}: no room for its exit on disk: {error.strerror}") from error
        held: dict[str, int] = {}
        try:
            for name, fd in asked.hold.items():
                held[name] = os.dup(fd)
        except OSError:
            close_all(held.values())
            self.slots.free(slot, filled=False)
            raise
        row = self.table.add(asked.job, slot, held, asked.segments, asked.recipe, asked.meta)
        row.lease = asked.lease
        return row

    def watch_console(self, call: Call, console: ConsoleSocket) -> None:
        self._watch(console.fileno(), EPOLLIN, lambda _events: self._take_console(call))

    def _take_console(self, call: Call) -> None:
        console = call.console
        if console is None:
            return
        self._unwatch(console.fileno())
        master = console.take()
        if master is None:
            self.watch_console(call, console)
            return
        call.console = None
        console.close()
        if call.row is not None:
            call.row.held["console"] = master
        else:
            os.close(master)

    def _close_console(self, call: Call) -> None:
        if call.console is not None:
            self._unwatch(call.console.fileno())
            call.console.close()
            call.console = None

    def _returned(self, call: Call, status: int) -> None:
        """The runtime call has ended; what it left behind was not reaped, or is among the unclaimed."""
        returned_ns = monotonic_ns()
        del self.calls[call.pid]
        if call.then is not None:
            call.then(status)
            return
        # What it sent just before its end lies in the backlog.
        self._take_console(call)
        self._close_console(call)
        answer: dict[str, object] = {
            "pid": None,
            "start_time": None,
            "serial": 0 if call.row is None else call.row.serial,
            "status": status,
            # One that was killed in the moment after it had ended well, ended well.
            "timed_out": call.timed_out and status != 0,
            "spawned_ns": call.spawned_ns,
            "returned_ns": returned_ns,
            "claimed": None,
            "fds": [],
        }
        fds: list[int] = []
        names: list[str] = []
        row = call.row
        ended = None
        if row is not None:
            claimed = pid = read_pid_file(call.pid_file) if call.pid_file and status == 0 else None
            ended = self.table.unclaimed.claim(pid, call.spawned_ns) if pid is not None else None
            if pid is not None and ended is not None:
                row.pid = pid
            elif pid is not None:
                pidfd = self._open_started(call, pid)
                if pidfd is None:
                    answer["claimed"], pid = claimed, None
                else:
                    fds.append(pidfd)
                    names.append("pidfd")
                    self.table.started(row, pid, read_start_time(pid))
            answer["pid"] = pid
            answer["start_time"] = row.start_time
            if pid is not None and "console" in row.held:
                fds.append(os.dup(row.held["console"]))
                names.append("console")
        answer["fds"] = names
        if call.peer is not None:
            if row is not None and row.pid is None:
                self.forget(row)
            self._answer(call.peer, call.request, answer, fds)
        else:
            close_all(fds)
        if row is None or self.table.get(row.job) is not row:
            return
        if row.pid is None:
            # Nobody is there to be told of the failure: it is kept as the exit of a job without a process.
            self._record(row, status, returned_ns)
        elif ended is not None:
            self._record(row, *ended)
        if not self.attended and row.pid is not None:
            self._output.start(row)

    def _open_started(self, call: Call, pid: int) -> int | None:
        """A descriptor of the process that a runtime says it has left; None if it can't be that."""
        if self.table.running(pid) is not None:
            return None  # another job's
        pidfd = open_pidfd(pid)
        if pidfd is None:
            # Nobody but us can have reaped a child of ours: this number is not of one.
            return None
        # With that open the number can't become another's, so what is read of it now is of this process.
        started = read_start_time(pid)
        if started is None or started < call.since_ticks or not descends_from_us(pid):
            os.close(pidfd)
            return None
        return pidfd

    # ---- exits ----

    def reap(self) -> None:
        """Runtimes first: their process is then still there to be opened, in most cases."""
        # Where anything is raised, the rest is not forgotten.
        self.unreaped = True
        for call in list(self.calls.values()):
            pid, status = os.waitpid(call.pid, os.WNOHANG)
            if pid:
                self._returned(call, status)
        for _ in range(_REAPS_A_TURN):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if pid == 0:
                self.unreaped = False
                break
            self._reaped(pid, status, monotonic_ns())

    def _reaped(self, pid: int, status: int, now_ns: int) -> None:
        row = self.table.running(pid)
        if row is not None:
            self._record(row, status, now_ns)
            return
        call = self.calls.get(pid)
        if call is not None:
            self._returned(call, status)
            return
        oldest = min((other.spawned_ns for other in self.calls.values()), default=None)
        self.table.unclaimed.add(pid, status, now_ns, oldest)

    def _record(self, row: Row, status: int, mono_ns: int) -> None:
        """On disk first, then in the table, then told."""
        wall_ns = time_ns() - (monotonic_ns() - mono_ns)
        record = ExitSlot(row.job, row.pid or 0, row.start_time or 0, status, mono_ns, wall_ns, row.lease_ended)
        try:
            self.slots.fill(row.slot, record)
        except OSError as error:
            # A disk that fails must not hide an exit from the living.
            _complain(f"exit of job {row.job} is not on disk: {error}")
        if self.table.ended(row, status, mono_ns, wall_ns) and self.attended:
            self._tell(row)


def _remove_stale(pid_file: str) -> None:
    """A pid of an earlier call must not be taken for this one's."""
    try:
        os.unlink(pid_file)
    except FileNotFoundError:
        return


def _complain(text: str) -> None:
    """In the keeper's log, if there is room."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return
