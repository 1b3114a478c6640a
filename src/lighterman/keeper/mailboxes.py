"""Datagram sockets of engines, in which containers tell of themselves (sd_notify): read here while no engine is there.

What was said is kept by its meaning, the last word on each: a queue would be full after a few, and whoever says more
would stand still.
"""

from __future__ import annotations

import os
from _collections_abc import Callable, Iterator
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, SOCK_DGRAM, SOL_SOCKET, socket
from select import EPOLLIN
from struct import Struct
from time import monotonic, monotonic_ns, time_ns

MAX_MAILBOXES = 4096
_DATAGRAM_BYTES = 4096  # systemd takes a page too; more is left out
_A_TURN = 16
_PAUSE_S = 0.01  # then: who floods it costs 100 wake-ups a second, no more

_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the same number names what the kernel answers with
_TIMESPEC = Struct("@ll")
# The kernel's stamp comes first and fills it: descriptors that come along find no room, and are dropped.
_ANCILLARY_BYTES = CMSG_SPACE(_TIMESPEC.size)

Watch = Callable[[int, int, Callable[[int], None]], None]


class Mailbox:
    """One socket.

    Attributes:
        ready_ns: when the last READY=1 was sent, on CLOCK_MONOTONIC; 0 for never. stopping: STOPPING=1 came after it.
        status: the last STATUS.
    """

    __slots__ = ("fd", "name", "ready_ns", "status", "stopping")

    def __init__(
        self, name: str, fd: int, ready_ns: int = 0, stopping: bool = False, status: bytes | None = None
    ) -> None:
        self.name = name
        self.fd = fd
        self.ready_ns = ready_ns
        self.stopping = stopping
        self.status = status

    def stamp(self) -> None:
        """Let the kernel say of each datagram when it was sent. Raises: OSError if it is no socket."""
        ours = socket(AF_UNIX, SOCK_DGRAM, 0, self.fd)
        try:
            ours.setsockopt(SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        finally:
            ours.detach()

    def receive(self) -> tuple[bytes, int]:
        """The next datagram, and when it was sent, on CLOCK_MONOTONIC. Raises: BlockingIOError if there is none."""
        ours = socket(AF_UNIX, SOCK_DGRAM, 0, self.fd)
        try:
            datagram, ancillary, _, _ = ours.recvmsg(
                _DATAGRAM_BYTES + 1, _ANCILLARY_BYTES, MSG_DONTWAIT | MSG_CMSG_CLOEXEC
            )
        finally:
            ours.detach()
        for level, kind, stamp in ancillary:
            if (level, kind) == (SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(stamp)
                return datagram, monotonic_ns() - max(0, time_ns() - seconds * 1_000_000_000 - nanoseconds)
        return datagram, monotonic_ns()

    def take(self, datagram: bytes, sent_ns: int) -> None:
        """Note what one datagram says; what is no NAME=value is left out, of several the last counts."""
        said = dict(line.split(b"=", 1) for line in datagram.split(b"\n") if b"=" in line)
        self.status = said.get(b"STATUS", self.status)
        self.stopping = self.stopping or said.get(b"STOPPING") == b"1"
        if said.get(b"READY") == b"1":
            self.stopping = False
            self.ready_ns = sent_ns


class Mailboxes:
    """All of them, by name."""

    def __init__(self, watch: Watch, unwatch: Callable[[int], None]) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._boxes: dict[str, Mailbox] = {}
        self._watched: set[str] = set()
        self._attended = False
        self._again_at: float | None = None

    @property
    def full(self) -> bool:
        return len(self._boxes) >= MAX_MAILBOXES

    def get(self, name: str) -> Mailbox | None:
        return self._boxes.get(name)

    def all(self) -> Iterator[Mailbox]:
        return iter(self._boxes.values())

    def put(self, box: Mailbox) -> None:
        """Keep one; its descriptor is ours. It replaces an earlier one of the name."""
        box.stamp()
        self.remove(box.name)
        self._boxes[box.name] = box
        self._resume()

    def remove(self, name: str) -> None:
        """Let one go; an unknown one is fine."""
        box = self._boxes.pop(name, None)
        if box is not None:
            self._suspend(box)
            os.close(box.fd)

    def attend(self) -> None:
        """An engine is there, and reads."""
        self._attended = True
        self._again_at = None
        for box in self._boxes.values():
            self._suspend(box)

    def abandon(self) -> None:
        """It has gone."""
        self._attended = False
        self._resume()

    def next_due(self) -> float | None:
        """When `retry` has something to do, on the monotonic clock."""
        return self._again_at

    def retry(self, now: float) -> None:
        """Read on after a pause."""
        if self._again_at is not None and self._again_at <= now:
            self._resume()

    def _resume(self) -> None:
        self._again_at = None
        if self._attended:
            return
        for box in self._boxes.values():
            if box.name not in self._watched:
                self._watched.add(box.name)
                self._watch(box.fd, EPOLLIN, lambda _events, box=box: self._read(box))  # type: ignore[misc]

    def _suspend(self, box: Mailbox) -> None:
        if box.name in self._watched:
            self._watched.discard(box.name)
            self._unwatch(box.fd)

    def _read(self, box: Mailbox) -> None:
        for _ in range(_A_TURN):
            try:
                datagram, sent_ns = box.receive()
            except BlockingIOError:
                return
            if len(datagram) <= _DATAGRAM_BYTES:
                box.take(datagram, sent_ns)
        self._suspend(box)
        self._again_at = self._again_at or monotonic() + _PAUSE_S
