"""The keeper's loop and its clients. One thread, nothing in it waits."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select
import sys
from _collections_abc import Callable
from _socket import SO_PEERCRED, SOL_SOCKET, socket
from struct import Struct
from time import monotonic

from . import requests, wire
from .channel import close_all, receive
from .jobs import Jobs
from .peer import ENGINE, OBSERVER, Peer, PeerLost
from .requests import Refused
from .slots import SlotFile
from .spawning import Spawner
from .table import Row
from .verbs import Verbs
from .wire import WireError

_UCRED = Struct("iII")
_MESSAGES_A_TURN = 32
_MAX_PEERS = 32


class Keeper:
    """Everything the keeper holds while it runs."""

    def __init__(self, listener: socket, slots: SlotFile, spawner: Spawner, idle_s: float, own_cgroup: bool) -> None:
        self._listener = listener
        self._idle_s = idle_s
        self._own_cgroup = own_cgroup
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._peers: dict[int, Peer] = {}
        self._engine: Peer | None = None
        self.jobs = Jobs(slots, spawner, self._watch, self._unwatch, self._answer_call, self._tell_exit)
        self._verbs = Verbs(self.jobs, own_cgroup, self._leave)
        self._idle_since = monotonic()
        self._leaving = False

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
                    self._guard(handler, events)
            if self.jobs.unreaped:
                self._guard(self.jobs.reap)
                self._push_exits()
            self._guard(self.jobs.expire)
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
            idle = self._idle_since + self._idle_s
            due = idle if due is None else min(due, idle)
        return -1 if due is None else max(0.0, due - monotonic())

    def _busy(self) -> bool:
        return bool(self._peers or self.jobs.any or len(self.jobs.leases))

    def _leave_if_idle(self) -> None:
        now = monotonic()
        if self._busy():
            self._idle_since = now
        if self.jobs.forsaken or now >= self._idle_since + self._idle_s:
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
        self.jobs.disown(peer)
        if peer is self._engine:
            self._engine = None
            self.jobs.abandon()

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

    def _push_exits(self) -> None:
        if self._engine is not None:
            try:
                self._settle_writes(self._engine)
            except PeerLost:
                self._drop(self._engine)

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
            self.jobs.attend()
        answer: dict[str, object] = {"version": wire.VERSION, "pid": os.getpid(), "own_cgroup": self._own_cgroup}
        peer.send(wire.OK, request, answer)

    def _fence(self, older: Peer) -> None:
        self._tell(older, wire.FENCED, 0, {}, [])
        self._drop(older)
