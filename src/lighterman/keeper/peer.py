"""One client: what it still has to be sent, within a bound, and which exits it has not been told."""

from __future__ import annotations

from _collections_abc import Iterable, Sequence
from _socket import socket

from . import wire
from .channel import close_all, transmit
from .table import Row

MAX_QUEUED_MESSAGES = 1024
MAX_QUEUED_BYTES = 4 * 1024 * 1024
_EXITS_A_MESSAGE = 128
ENGINE = "engine"
OBSERVER = "observer"


class PeerLost(Exception):
    """The client is gone, broke the protocol or does not read."""


class Peer:
    """A connection. `role` is empty until HELLO; `version` is the protocol that the client speaks.

    Attributes:
        pidfd: of an engine's process. queue: messages with their descriptors that did not fit yet.
        untold: exits that it was not told.
    """

    def __init__(self, sock: socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.role = ""
        self.pidfd: int | None = None
        self.version = wire.VERSION
        self.untold: list[Row] = []
        self.watching_writes = False
        self.queue: list[tuple[bytes, Sequence[int]]] = []
        self._queued_bytes = 0

    @property
    def is_engine(self) -> bool:
        return self.role == ENGINE

    def send(self, verb: int, request: int, body: dict[str, object], fds: Sequence[int] = ()) -> None:
        """Send or queue; `fds` are ours to close from now on. Raises: PeerLost."""
        self.send_packed(wire.pack(verb, request, body, version=self.version), fds)

    def send_packed(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Like `send`, with the message made."""
        self.queue.append((message, fds))
        self._queued_bytes += len(message)
        self.flush()
        if len(self.queue) > MAX_QUEUED_MESSAGES or self._queued_bytes > MAX_QUEUED_BYTES:
            raise PeerLost("it does not read its answers")

    def flush(self) -> bool:
        """Send what fits; True if all is sent. Answers go before exits, so that SPAWN's comes before its EXIT.

        Raises: PeerLost.
        """
        try:
            while self.queue:
                message, fds = self.queue[0]
                transmit(self.sock, message, fds)
                del self.queue[0]
                self._queued_bytes -= len(message)
                close_all(fds)
            while self.untold:
                batch = self.untold[:_EXITS_A_MESSAGE]
                transmit(self.sock, self._exits(batch), ())
                del self.untold[: len(batch)]
        except BlockingIOError:
            return False
        except OSError as error:
            raise PeerLost(str(error)) from error
        return True

    def resume(self, queue: Iterable[tuple[bytes, Sequence[int]]], untold: Iterable[Row]) -> None:
        """Go on where the program before this one was."""
        self.queue += queue
        self._queued_bytes = sum(len(message) for message, _ in self.queue)
        self.untold += untold

    def _exits(self, rows: list[Row]) -> bytes:
        return wire.pack(wire.EXITS, 0, {"exits": [exit_values(row) for row in rows]}, version=self.version)

    def close(self) -> None:
        for _, fds in self.queue:
            close_all(fds)
        self.queue.clear()
        self.untold.clear()
        self.sock.close()


def exit_values(row: Row) -> list[object]:
    """An exit on the wire: `[job, serial, wait status, mono_ns, wall_ns, lease ended]`; a serial is one use of it."""
    return [row.job, row.serial, row.status, row.mono_ns, row.wall_ns, row.lease_ended]
