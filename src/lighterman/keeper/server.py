"""The keeper's loop: clients, runtime calls, exits. One thread, nothing in it waits; it does what it is told."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select
from _collections_abc import Callable
from _socket import SO_PEERCRED, SOL_SOCKET, socket
from struct import Struct
from time import monotonic, monotonic_ns, time_ns

from . import requests, stats, wire
from .calls import Call, ConsoleSocket, open_pidfd, read_pid_file, read_start_time
from .channel import close_all, receive
from .leases import Leases, remove_directories
from .output import Output
from .peer import Peer, PeerLost, exit_values
from .requests import Refused, SpawnRequest
from .slots import ExitSlot, SlotFile
from .spawning import Spawner, SpawnPlan
from .table import Row, Table
from .wire import WireError

_UCRED = Struct("iII")
_MESSAGES_A_TURN = 32
_REAPS_A_TURN = 512
_MAX_PEERS = 32
_MAX_CALLS = 512
# Kept free for what is not a job: clients, segment files, terminals.
_SPARE_DESCRIPTORS = 256
_PAGE_BYTES = wire.MESSAGE_BYTES - 1024
_ENGINE = "engine"
_OBSERVER = "observer"


class Keeper:
    """Everything the keeper holds while it runs."""

    def __init__(self, listener: socket, slots: SlotFile, spawner: Spawner, idle_s: float, own_cgroup: bool) -> None:
        self.table = Table()
        self._listener = listener
        self._slots = slots
        self._spawner = spawner
        self._idle_s = idle_s
        self._own_cgroup = own_cgroup
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._peers: dict[int, Peer] = {}
        self._engine: Peer | None = None
        self._calls: dict[int, Call] = {}
        self._binaries: dict[str, int] = {}
        self._output = Output(self._watch, self._unwatch)
        self._leases = Leases(self.table, self._watch, self._unwatch)
        self._idle_since = monotonic()
        self._leaving = False
        self._unreaped = False
        self._verbs: dict[int, Callable[[Peer, int, dict[str, object], list[int]], None]] = {
            wire.SPAWN: self._spawn,
            wire.LIST: self._list,
            wire.FETCH: self._fetch,
            wire.CLOSE: self._close_held,
            wire.ACKNOWLEDGE: self._acknowledge,
            wire.PING: self._ping,
            wire.STATS: self._stats,
            wire.REGISTER: self._register,
            wire.SHUTDOWN: self._shutdown,
            wire.EXIT_OF: self._exit_of,
            wire.ABORT: self._abort,
            wire.LEASE: self._lease,
            wire.RELEASE: self._release,
        }

    # ---- the loop ----

    def run(self) -> None:
        """Serve until told to leave, or until there was nothing to do for `idle_s`."""
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
            _signal.signal(number, lambda _number, _frame: None)
        _signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        self._watch(wake_r, select.EPOLLIN, lambda _events: self._signalled(wake_r))
        self._watch(self._listener.fileno(), select.EPOLLIN, lambda _events: self._accept())
        while not self._leaving:
            for fd, events in self._poll.poll(self._sleep_s(), 64):
                # A handler earlier in this turn may have closed this descriptor.
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)
            if self._unreaped:
                self._reap()
            self._expire()

    def _sleep_s(self) -> float:
        if self._unreaped:
            return 0
        due = [call.deadline_ns / 1e9 for call in self._calls.values() if not call.timed_out]
        if not self._busy():
            due.append(self._idle_since + self._idle_s)
        due += [at for at in (self._output.next_retry(), self._leases.next_due()) if at is not None]
        return max(0.0, min(due) - monotonic()) if due else -1

    def _busy(self) -> bool:
        return bool(self._peers or len(self.table) or self._calls or len(self._leases))

    def _expire(self) -> None:
        now = monotonic()
        for call in self._calls.values():
            if not call.timed_out and call.deadline_ns <= now * 1e9:
                call.kill()
        self._output.retry(now)
        due = self._leases.next_due()
        if due is not None and due <= now:
            self._enforce_leases()
        if self._busy():
            self._idle_since = now
        elif now >= self._idle_since + self._idle_s:
            self._leaving = True

    def _enforce_leases(self) -> None:
        for call in self._calls.values():
            if call.row is not None and call.row.lease and not self._leases.holds(call.row.lease):
                call.kill()
        for lease in self._leases.enforce():
            if not lease.remove:
                continue
            # What is removed held the store too: nobody is left who could ask for these exits.
            for row in [row for row in self.table.rows() if row.lease == lease.name]:
                self._forget(row)
            remove_directories(lease.remove)
            if not len(self.table) and not self._calls and not len(self._leases):
                self._leaving = True

    def _signalled(self, wake_r: int) -> None:
        for number in os.read(wake_r, 4096):
            if number != _signal.SIGCHLD and not len(self.table) and not self._calls:
                self._leaving = True
        # Also when the pipe was full and lost a byte: the wake-up itself is never lost.
        self._unreaped = True

    def _watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        self._poll.register(fd, events)
        self._handlers[fd] = handler

    def _unwatch(self, fd: int) -> None:
        del self._handlers[fd]
        self._poll.unregister(fd)

    # ---- clients ----

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            # It went away again, or we are out of descriptors: then it waits in the backlog.
            return
        sock = socket(self._listener.family, self._listener.type, 0, fd)
        sock.setblocking(False)
        _, uid, _ = _UCRED.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED.size))
        if uid != os.geteuid() or len(self._peers) >= _MAX_PEERS:
            sock.close()
            return
        peer = Peer(sock)
        self._peers[fd] = peer
        self._watch(fd, select.EPOLLIN, lambda events: self._serve(peer, events))

    def _drop(self, peer: Peer) -> None:
        if self._peers.pop(peer.fd, None) is None:
            return
        self._unwatch(peer.fd)
        peer.close()
        for call in self._calls.values():
            if call.peer is peer:
                call.peer = None
        if peer is self._engine:
            self._engine = None
            for row in self.table.rows():
                if row.pid is not None:
                    self._output.start(row)

    def _serve(self, peer: Peer, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._settle_writes(peer)
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read(peer)
        except (PeerLost, WireError, OSError):
            # Whatever it was, it is this client's: the others and the facts stay.
            self._drop(peer)

    def _read(self, peer: Peer) -> None:
        for _ in range(_MESSAGES_A_TURN):
            try:
                message, fds = receive(peer.sock)
            except BlockingIOError:
                break
            if not message:
                close_all(fds)
                raise PeerLost("end")
            try:
                self._answer(peer, message, fds)
            finally:
                # A verb takes out of the list what it keeps.
                close_all(fds)
            if peer.fd not in self._peers:
                return
        self._settle_writes(peer)

    def _settle_writes(self, peer: Peer) -> None:
        pending = not peer.flush()
        if pending != peer.watching_writes:
            peer.watching_writes = pending
            self._poll.modify(peer.fd, select.EPOLLIN | (select.EPOLLOUT if pending else 0))

    def _tell(self, peer: Peer, verb: int, request: int, body: dict[str, object], fds: list[int]) -> None:
        """Send outside of `_serve`, where nobody else would notice that the client is lost."""
        try:
            peer.send(verb, request, body, fds)
            self._settle_writes(peer)
        except PeerLost:
            self._drop(peer)

    def _answer(self, peer: Peer, message: bytes, fds: list[int]) -> None:
        version, verb, request = wire.unpack_header(message)
        if version != wire.VERSION:
            text = f"keeper speaks protocol {wire.VERSION}, the client {version}"
            peer.send(wire.ERROR, request, {"code": requests.VERSION, "text": text})
            raise PeerLost(text)
        try:
            body = wire.unpack_body(message)
            if verb == wire.HELLO:
                self._hello(peer, request, body)
                return
            if not peer.role:
                raise WireError("no HELLO before the first request")
            handler = self._verbs.get(verb)
            if handler is None:
                raise Refused(requests.UNSUPPORTED, f"keeper does not support verb {verb}")
            if peer.role != _ENGINE and verb not in (wire.LIST, wire.PING, wire.STATS, wire.EXIT_OF):
                raise Refused(requests.STATE, f"verb {verb} is for the engine only")
            handler(peer, request, body, fds)
        except Refused as refused:
            peer.send(wire.ERROR, request, {"code": refused.code, "text": refused.text})
        except OSError as error:
            text = f"keeper: {error.strerror}"
            peer.send(wire.ERROR, request, {"code": requests.FAILED, "text": text, "errno": error.errno})

    def _hello(self, peer: Peer, request: int, body: dict[str, object]) -> None:
        role = requests.text(body, "role")
        if role not in (_ENGINE, _OBSERVER) or peer.role:
            raise Refused(requests.INVALID, f"role {role[:20]!r}: must be {_ENGINE} or {_OBSERVER}, once")
        peer.role = role
        if role == _ENGINE:
            older, self._engine = self._engine, peer
            if older is not None:
                self._fence(older)
            self._output.stop_all()
        answer: dict[str, object] = {"version": wire.VERSION, "pid": os.getpid(), "own_cgroup": self._own_cgroup}
        peer.send(wire.OK, request, answer)

    def _fence(self, older: Peer) -> None:
        self._tell(older, wire.FENCED, 0, {}, [])
        self._drop(older)

    # ---- verbs ----

    def _ping(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        peer.send(wire.OK, request, {})

    def _stats(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        rss_bytes, private_bytes = stats.memory()
        answer: dict[str, object] = {
            "pid": os.getpid(),
            "rss_bytes": rss_bytes,
            "private_bytes": private_bytes,
            "jobs": len(self.table),
            "descriptors": stats.descriptors(),
            "version": wire.VERSION,
            "own_cgroup": self._own_cgroup,
        }
        peer.send(wire.OK, request, answer)

    def _register(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        name = requests.text(body, "name")
        if not name or "/" in name or len(fds) != 1:
            raise Refused(requests.INVALID, f"binary {name[:40]!r}: must be a name without '/' and one descriptor")
        if len(self._binaries) >= 16 and name not in self._binaries:
            raise Refused(requests.LIMIT, f"binary {name[:40]!r}: 16 are registered already")
        older = self._binaries.get(name)
        self._binaries[name] = fds.pop()
        if older is not None:
            os.close(older)
        peer.send(wire.OK, request, {})

    def _shutdown(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        if (len(self.table) or self._calls) and body.get("force") is not True:
            raise Refused(requests.STATE, f"keeper has {len(self.table)} jobs: end them first")
        self._leaving = True
        peer.send(wire.OK, request, {})

    def _lease(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        name = requests.lease_name(body)
        remove = requests.paths(body, "remove")
        if len(fds) != 1:
            raise Refused(requests.INVALID, f"lease {name}: needs the owner's pidfd")
        if self._leases.full:
            raise Refused(requests.LIMIT, f"lease {name}: too many leases")
        self._leases.grant(name, fds.pop(), remove)
        peer.send(wire.OK, request, {})

    def _release(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        self._leases.release(requests.lease_name(body))
        peer.send(wire.OK, request, {})

    def _list(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """Rows after serial `after`, as many as fit into one message; `more` says whether there are others."""
        page: list[object] = []
        size = 0
        last = requests.number(body, "after")
        more = False
        for row in self.table.after(last):
            exit = exit_values(row) if row.exited else None
            entry = [row.job, row.pid, row.start_time, exit, row.recipe, row.meta, list(row.held)]
            size += len(wire.encode(entry))
            if page and (size > _PAGE_BYTES or len(page) == 256):
                more = True
                break
            page.append(entry)
            last = row.serial
        peer.send(wire.OK, request, {"jobs": page, "last": last, "more": more})

    def _exit_of(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        row = self._row(body)
        peer.send(wire.OK, request, {"exit": exit_values(row) if row.exited else None})

    def _fetch(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        held = self._row(body).held
        duplicates: list[int] = []
        try:
            for fd in held.values():
                duplicates.append(os.dup(fd))
        except OSError:
            close_all(duplicates)
            raise
        peer.send(wire.OK, request, {"names": list(held)}, duplicates)

    def _close_held(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        row = self._row(body)
        names = requests.names(body)
        missing = [name for name in names if name not in row.held]
        if missing:
            raise Refused(requests.NOT_FOUND, f"job {row.job} holds no {missing[0][:40]!r}")
        for name in set(names):
            os.close(row.held.pop(name))
        peer.send(wire.OK, request, {})

    def _acknowledge(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """Has no answer. Only an exit that was told can be acknowledged: one that was not is never lost."""
        row = self.table.get(requests.job_key(body))
        if row is not None and row.exited:
            self._forget(row)

    def _row(self, body: dict[str, object]) -> Row:
        job = requests.job_key(body)
        row = self.table.get(job)
        if row is None:
            raise Refused(requests.NOT_FOUND, f"keeper has no job {job}")
        return row

    def _forget(self, row: Row) -> None:
        self._output.stop(row)
        self.table.remove(row)
        self._slots.free(row.slot, filled=row.exited)
        held, row.held = row.held, {}
        close_all(held.values())

    # ---- runtime calls ----

    def _spawn(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        asked = SpawnRequest(body, fds)
        if self.table.get(asked.job) is not None:
            raise Refused(requests.EXISTS, f"job {asked.job}: the keeper has it already")
        if asked.lease and not self._leases.holds(asked.lease):
            raise Refused(requests.STATE, f"job {asked.job}: lease {asked.lease[:40]!r} is unknown or over")
        if len(self._calls) >= _MAX_CALLS:
            raise Refused(requests.LIMIT, f"job {asked.job}: {_MAX_CALLS} runtime calls are in flight")
        if max(fds) >= self._spawner.descriptor_limit - _SPARE_DESCRIPTORS:
            raise Refused(requests.LIMIT, f"job {asked.job}: keeper is out of descriptors, raise ulimit -n")
        row = self._reserve(asked, fds) if asked.pid_file is not None else None
        console = None
        try:
            if asked.pid_file is not None:
                _remove_stale(asked.pid_file)
            if asked.console is not None:
                console = ConsoleSocket(asked.console)
            spawned_ns = monotonic_ns()
            pid = self._spawner.spawn(self._plan(asked))
        except BaseException as error:
            if console is not None:
                console.close()
            if row is not None:
                self._forget(row)
            if isinstance(error, ValueError):
                raise Refused(requests.INVALID, f"job {asked.job}: {error}") from error
            raise
        deadline_ns = spawned_ns + int(asked.timeout_s * 1e9)
        call = Call(pid, spawned_ns, deadline_ns, peer, request, row, asked.pid_file, console)
        self._calls[pid] = call
        if console is not None:
            self._watch_console(call, console)

    def _abort(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """End a runtime call that is under way; its own answer follows as that of one whose time was over."""
        job = requests.job_key(body)
        for call in self._calls.values():
            if call.row is not None and call.row.job == job:
                call.kill()
        peer.send(wire.OK, request, {})

    def _plan(self, asked: SpawnRequest) -> SpawnPlan:
        executable = asked.executable
        if not executable.startswith("/"):
            if executable not in self._binaries:
                raise Refused(requests.NOT_FOUND, f"executable {executable[:80]!r}: no path and not registered")
            executable = f"/proc/self/fd/{self._binaries[executable]}"
        return SpawnPlan(
            executable, asked.argv, asked.env, asked.cwd, asked.descriptors, asked.mount_fd, asked.mount_target
        )

    def _reserve(self, asked: SpawnRequest, fds: list[int]) -> Row:
        """A row with its slot and its own descriptors. Raises: Refused, OSError."""
        try:
            slot = self._slots.reserve()
        except OSError as error:
            raise Refused(requests.LIMIT, f"job {asked.job}: no room for its exit on disk: {error.strerror}") from error
        held: dict[str, int] = {}
        try:
            for name, fd in asked.hold.items():
                held[name] = os.dup(fd)
        except OSError:
            close_all(held.values())
            self._slots.free(slot, filled=False)
            raise
        row = self.table.add(asked.job, slot, held, asked.segments, asked.recipe, asked.meta)
        row.lease = asked.lease
        return row

    def _watch_console(self, call: Call, console: ConsoleSocket) -> None:
        self._watch(console.fileno(), select.EPOLLIN, lambda _events: self._take_console(call))

    def _take_console(self, call: Call) -> None:
        console = call.console
        if console is None:
            return
        self._unwatch(console.fileno())
        master = console.take()
        if master is None:
            self._watch_console(call, console)
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
        del self._calls[call.pid]
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
            "fds": [],
        }
        fds: list[int] = []
        names: list[str] = []
        row = call.row
        ended = None
        if row is not None:
            pid = read_pid_file(call.pid_file) if call.pid_file and status == 0 else None
            ended = self.table.unclaimed.claim(pid, call.spawned_ns) if pid is not None else None
            if pid is not None and ended is not None:
                row.pid = pid
            elif pid is not None:
                pidfd = open_pidfd(pid)
                if pidfd is None:
                    # Nobody but us can have reaped a child of ours: this number is not of one.
                    pid = None
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
                self._forget(row)
            self._tell(call.peer, wire.OK, call.request, answer, fds)
        else:
            close_all(fds)
        if row is None or self.table.get(row.job) is not row:
            return
        if row.pid is None:
            # Nobody is there to be told of the failure: it is kept as the exit of a job without a process.
            self._record(row, status, returned_ns)
        elif ended is not None:
            self._record(row, *ended)
        if self._engine is None and row.pid is not None:
            self._output.start(row)

    # ---- exits ----

    def _reap(self) -> None:
        """Runtimes first: their process is then still there to be opened, in most cases."""
        self._unreaped = False
        for call in list(self._calls.values()):
            pid, status = os.waitpid(call.pid, os.WNOHANG)
            if pid:
                self._returned(call, status)
        for _ in range(_REAPS_A_TURN):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._reaped(pid, status, monotonic_ns())
        else:
            self._unreaped = True
        if self._engine is not None:
            try:
                self._settle_writes(self._engine)
            except PeerLost:
                self._drop(self._engine)

    def _reaped(self, pid: int, status: int, now_ns: int) -> None:
        row = self.table.running(pid)
        if row is not None:
            self._record(row, status, now_ns)
            return
        call = self._calls.get(pid)
        if call is not None:
            self._returned(call, status)
            return
        oldest = min((other.spawned_ns for other in self._calls.values()), default=None)
        self.table.unclaimed.add(pid, status, now_ns, oldest)

    def _record(self, row: Row, status: int, mono_ns: int) -> None:
        """On disk first, then in the table, then told."""
        wall_ns = time_ns() - (monotonic_ns() - mono_ns)
        self._slots.fill(row.slot, ExitSlot(row.job, row.pid or 0, row.start_time or 0, status, mono_ns, wall_ns))
        if self.table.ended(row, status, mono_ns, wall_ns) and self._engine is not None:
            self._engine.untold.append(row)


def _remove_stale(pid_file: str) -> None:
    """A pid of an earlier call must not be taken for this one's."""
    try:
        os.unlink(pid_file)
    except FileNotFoundError:
        return
