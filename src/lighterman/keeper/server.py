"""The keeper's loop and its clients. One thread, nothing in it waits."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select
import sys
from _collections_abc import Callable
from _socket import SHUT_RD, SO_PEERCRED, SOL_SOCKET, socket
from struct import Struct
from time import monotonic

from . import requests, wire
from .calls import Call, ConsoleSocket
from .channel import DescriptorsLost, close_all, receive
from .handover import CallState, PeerState, State
from .jobs import Jobs
from .peer import ENGINE, OBSERVER, Peer, PeerLost
from .place import Place
from .requests import Refused
from .slots import SlotFile
from .spawning import Spawner
from .table import Row
from .upgrade import SIGNALS, Upgrade
from .verbs import Verbs
from .wire import WireError

_UCRED = Struct("iII")
_MESSAGES_A_TURN = 32
_MAX_PEERS = 32
_EMFILE = 24


class Keeper:
    """Everything the keeper holds while it runs."""

    def __init__(self, place: Place, listener: socket, slots: SlotFile, spawner: Spawner, own_cgroup: bool) -> None:
        self._place = place
        self._listener = listener
        self._own_cgroup = own_cgroup
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._peers: dict[int, Peer] = {}
        self._engine: Peer | None = None
        self.jobs = Jobs(
            slots, spawner, self._watch, self._unwatch, self._answer_call, self._tell_exit, self._tell_lease
        )
        self._upgrade = Upgrade(self.jobs, place.arguments, self._state, self._refuse)
        self._verbs = Verbs(self.jobs, own_cgroup, self._leave, self._upgrade.ask)
        self._idle_since = monotonic()
        self._leaving = False

    # ---- the loop ----

    def run(self) -> None:
        """Serve until told to leave, or until there was nothing to do for `idle_s`."""
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in SIGNALS:
            _signal.signal(number, lambda _number, _frame: None)
        _signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        # What came while we became another program comes now.
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, SIGNALS)
        self._watch(wake_r, select.EPOLLIN, lambda _events: self._signalled(wake_r))
        self._watch(self._listener.fileno(), select.EPOLLIN, lambda _events: self._accept())
        while not self._leaving:
            ready = [(fd, self._handlers.get(fd), events) for fd, events in self._poll.poll(self._sleep_s(), 64)]
            for fd, handler, events in ready:
                # One earlier in this turn may have closed this descriptor, and its number may be another's by now.
                if handler is not None and self._handlers.get(fd) is handler:
                    self._guard(handler, events)
            if self.jobs.unreaped:
                self._guard(self.jobs.reap)
                self._guard(self._push_exits)
            self._guard(self.jobs.expire)
            if self._upgrade.is_due:
                self._guard(self._upgrade.become)
            self._leave_if_idle()

    def _guard(self, handler: Callable[..., None], *arguments: int) -> None:
        """A defect of ours is said in the log, and does not cost every container its parent."""
        try:
            handler(*arguments)
        except Exception:  # noqa: BLE001
            sys.excepthook(*sys.exc_info())

    def _sleep_s(self) -> float:
        if self.jobs.unreaped:
            return 0
        due = self.jobs.next_due()
        if not self._busy():
            idle = self._idle_since + self._place.idle_s
            due = idle if due is None else min(due, idle)
        return -1 if due is None else max(0.0, due - monotonic())

    def _busy(self) -> bool:
        return bool(self._peers or self.jobs.any or len(self.jobs.leases))

    def _leave_if_idle(self) -> None:
        now = monotonic()
        if self._busy():
            self._idle_since = now
        if self.jobs.forsaken or now >= self._idle_since + self._place.idle_s:
            self._leaving = True

    def _leave(self) -> None:
        self._leaving = True

    def _signalled(self, wake_r: int) -> None:
        for number in os.read(wake_r, 4096):
            if number != _signal.SIGCHLD and not self.jobs.any:
                self._leaving = True
        # Also when the pipe was full and lost a byte: the wake-up itself is never lost.
        self.jobs.unreaped = True

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
        _, uid = _pid_and_user(sock)
        if uid != os.geteuid() or len(self._peers) >= _MAX_PEERS:
            sock.close()
            return
        self._add(Peer(sock))

    def _add(self, peer: Peer) -> None:
        self._peers[peer.fd] = peer
        self._watch(peer.fd, select.EPOLLIN, lambda events: self._serve(peer, events))

    def _drop(self, peer: Peer) -> None:
        if self._peers.pop(peer.fd, None) is None:
            return
        self._unwatch(peer.fd)
        self._unwatch_process(peer)
        peer.close()
        self.jobs.disown(peer)
        self._upgrade.disown(peer)
        if peer is self._engine:
            self._engine = None
            self.jobs.abandon()

    def _watch_process(self, peer: Peer) -> None:
        """An engine's end: a child that its program has forked keeps the connection open."""
        pid, _ = _pid_and_user(peer.sock)
        if not pid:
            return  # of another pid namespace
        try:
            peer.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended(peer)
        except OSError:
            return  # then the connection alone tells
        else:
            self._watch(peer.pidfd, select.EPOLLIN, lambda _events: self._ended(peer))

    def _unwatch_process(self, peer: Peer) -> None:
        if peer.pidfd is not None:
            self._unwatch(peer.pidfd)
            os.close(peer.pidfd)
            peer.pidfd = None

    def _ended(self, peer: Peer) -> None:
        self._unwatch_process(peer)
        # What it had sent is read before the end that this makes.
        peer.sock.shutdown(SHUT_RD)

    def _serve(self, peer: Peer, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._settle_writes(peer)
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read(peer)
        except (PeerLost, WireError, OSError):
            # Whatever it was, it is this client's: the others and the facts stay.
            self._drop(peer)
        except Exception:
            self._drop(peer)
            raise

    def _read(self, peer: Peer) -> None:
        for _ in range(_MESSAGES_A_TURN):
            try:
                message, fds = receive(peer.sock)
            except BlockingIOError:
                break
            except DescriptorsLost as lost:
                _, _, request = wire.unpack_header(lost.data)
                text = f"keeper: {lost}"
                peer.send(wire.ERROR, request, {"code": requests.FAILED, "text": text, "errno": _EMFILE})
                continue
            if not message:
                close_all(fds)
                raise PeerLost("end")
            try:
                self._answer(peer, message, fds)
            finally:
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

    def _answer_call(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        self._tell(peer, wire.OK, request, body, fds)

    def _tell_exit(self, row: Row) -> None:
        if self._engine is not None:
            self._engine.untold.append(row)

    def _tell_lease(self, name: str, gone_until: float | None, over: bool) -> None:
        if self._engine is not None:
            self._tell(self._engine, wire.LEASES, 0, {"lease": name, "gone_until": gone_until, "over": over}, [])

    def _refuse(self, peer: Peer, request: int, text: str) -> None:
        self._tell(peer, wire.ERROR, request, {"code": requests.FAILED, "text": f"keeper: {text}"}, [])

    def _push_exits(self) -> None:
        if self._engine is not None:
            try:
                self._settle_writes(self._engine)
            except PeerLost:
                self._drop(self._engine)

    def _answer(self, peer: Peer, message: bytes, fds: list[int]) -> None:
        version, verb, request = wire.unpack_header(message)
        if version not in wire.PROTOCOLS:
            text = f"keeper speaks protocol {', '.join(map(str, wire.PROTOCOLS))}, the client {version}"
            peer.send(wire.ERROR, request, {"code": requests.VERSION, "text": text})
            raise PeerLost(text)
        peer.version = version
        try:
            body = wire.unpack_body(message)
            if verb == wire.HELLO:
                self._hello(peer, request, body)
                return
            if not peer.role:
                raise WireError("no HELLO before the first request")
            self._verbs.handle(peer, verb, request, body, fds)
        except Refused as refused:
            peer.send(wire.ERROR, request, {"code": refused.code, "text": refused.text})
        except OSError as error:
            text = f"keeper: {error.strerror}"
            peer.send(wire.ERROR, request, {"code": requests.FAILED, "text": text, "errno": error.errno})

    def _hello(self, peer: Peer, request: int, body: dict[str, object]) -> None:
        role = requests.text(body, "role")
        if role not in (ENGINE, OBSERVER) or peer.role:
            raise Refused(requests.INVALID, f"role {role[:20]!r}: must be {ENGINE} or {OBSERVER}, once")
        peer.role = role
        if role == ENGINE:
            older, self._engine = self._engine, peer
            if older is not None:
                self._fence(older)
            self._watch_process(peer)
            self.jobs.attend()
        peer.send(wire.OK, request, self._about())

    def _about(self) -> dict[str, object]:
        return {
            "version": wire.VERSION,
            "build": self._place.build,
            "pid": os.getpid(),
            "own_cgroup": self._own_cgroup,
        }

    def _fence(self, older: Peer) -> None:
        self._tell(older, wire.FENCED, 0, {}, [])
        self._drop(older)

    # ---- over an exec ----

    def _state(self) -> State:
        """All that the next program needs."""
        state, jobs, upgrade = State(), self.jobs, self._upgrade
        spawner = jobs.spawner
        state.settings = {
            "own_cgroup": self._own_cgroup,
            "attended": jobs.attended,
            "idle_since": self._idle_since,
            "slots_path": jobs.slots.path,
            "slots": jobs.slots.slots,
            "spawner": spawner.settings,
            "asker": upgrade.asker.fd if upgrade.asker is not None else None,
            "request": upgrade.request,
        }
        own_mounts, oom = spawner.descriptors
        state.descriptors = {
            "run": self._place.run_fd,
            "lock": self._place.lock,
            "listener": self._listener.fileno(),
            "slots": jobs.slots.fd,
            "own_mounts": own_mounts,
            "oom": oom,
        }
        state.serial = jobs.table.serial
        state.binaries = jobs.binaries
        state.rows = {row.job: row for row in jobs.table.rows()}
        state.unclaimed = jobs.table.unclaimed.all()
        state.leases, state.ending = list(jobs.leases.held()), list(jobs.leases.ending())
        state.over = list(jobs.leases.over)
        state.mailboxes = list(jobs.mailboxes.all())
        state.calls = [_call_state(call) for call in jobs.calls.values() if call.then is None]
        for peer in self._peers.values():
            left = PeerState(peer.fd, peer.role, peer.version, peer is self._engine)
            left.queue = [(message, list(fds)) for message, fds in peer.queue]
            left.untold = [row.job for row in peer.untold if state.rows.get(row.job) is row]
            state.peers.append(left)
        return state

    def resume(self, state: State) -> None:
        """Go on as the program before this one would have; called once, before `run`."""
        settings, jobs = state.settings, self.jobs
        self._idle_since = settings["idle_since"]
        jobs.attended = settings["attended"]
        jobs.binaries |= state.binaries
        jobs.table.resume(state.rows.values(), state.serial)
        jobs.table.unclaimed.resume(state.unclaimed)
        for left in state.peers:
            sock = socket(self._listener.family, self._listener.type, 0, left.fd)
            sock.setblocking(False)
            peer = Peer(sock)
            peer.role, peer.version = left.role, left.version
            peer.resume(left.queue, (state.rows[job] for job in left.untold))
            self._add(peer)
            if left.is_the_engine:
                self._engine = peer
                self._watch_process(peer)
        for call in state.calls:
            self._resume_call(call, state)
        for lease in state.leases:
            jobs.leases.grant(lease)
        for lease in state.ending:
            jobs.leases.go_on_ending(lease)
        jobs.leases.over.update(state.over)
        for box in state.mailboxes:
            jobs.mailboxes.put(box)
        jobs.go_on()
        for peer in list(self._peers.values()):
            try:
                self._settle_writes(peer)
            except PeerLost:
                self._drop(peer)
        asker = self._peers.get(settings["asker"]) if settings["asker"] is not None else None
        if asker is not None:
            self._tell(asker, wire.OK, settings["request"], self._about(), [])

    def _resume_call(self, left: CallState, state: State) -> None:
        console = ConsoleSocket.resumed(left.console, left.console_fds) if left.console is not None else None
        call = Call(
            left.pid,
            left.spawned_ns,
            left.since_ticks,
            left.deadline_ns,
            self._peers.get(left.peer) if left.peer is not None else None,
            left.request,
            state.rows[left.job] if left.job is not None else None,
            left.pid_file,
            console,
        )
        call.timed_out = left.timed_out
        self.jobs.calls[call.pid] = call
        if console is not None:
            self.jobs.watch_console(call, console)


def _pid_and_user(sock: socket) -> tuple[int, int]:
    """Who has connected it."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED.size))
    return pid, uid


def _call_state(call: Call) -> CallState:
    return CallState(
        {
            "pid": call.pid,
            "spawned_ns": call.spawned_ns,
            "since_ticks": call.since_ticks,
            "deadline_ns": call.deadline_ns,
            "peer": call.peer.fd if call.peer is not None else None,
            "request": call.request,
            "job": call.row.job if call.row is not None else None,
            "pid_file": call.pid_file,
            "timed_out": call.timed_out,
            "console": call.console.path if call.console is not None else None,
        },
        call.console.descriptors if call.console is not None else [],
    )
