"""The receiving end of sd_notify(3): a datagram socket of the engine's in a directory that the container can see.

The protocol is systemd's: lines of NAME=value in one datagram. Whoever is in the container may send anything there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from struct import Struct

import msgspec

from lighterman import limits
from lighterman.errors import StoreError

__all__ = ["Notification", "NotifySocket", "parse"]

log = logging.getLogger(__name__)

_NAME = "notify.sock"
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the same number names what the kernel answers with
_TIMESPEC = Struct("@ll")
# The kernel's stamp comes first and fills it: descriptors that come along find no room, and are dropped.
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """What one datagram says, as far as it is understood; unknown names are left out."""

    ready: bool = False
    stopping: bool = False
    reloading: bool = False
    watchdog: bool = False
    status: str | None = None


def parse(datagram: bytes) -> Notification:
    """Read one datagram. What is no `NAME=value` is left out; of several the last counts."""
    said = dict(line.split(b"=", 1) for line in datagram.split(b"\n") if b"=" in line)
    status = said.get(b"STATUS")
    return Notification(
        ready=said.get(b"READY") == b"1",
        stopping=said.get(b"STOPPING") == b"1",
        reloading=said.get(b"RELOADING") == b"1",
        watchdog=said.get(b"WATCHDOG") == b"1",
        status=status.decode("utf-8", "replace") if status is not None else None,
    )


class NotifySocket:
    """Bound at `directory/notify.sock`, which is made anew: an earlier engine's socket hears nothing any more.

    After `expect_ready` what says READY=1 is looked at and stays in the socket until `settle`: whoever has the socket
    after us finds it. It counts as said when it was sent, as the kernel says: what a run that is over has left in the
    queue is that run's, whenever it is read.
    """

    def __init__(self, directory: str) -> None:
        self._begin(_bind(directory))

    @classmethod
    def resumed(cls, descriptor: int, ready_mono: float | None, stopping: bool, status: bytes | None) -> NotifySocket:
        """An earlier engine's, which the keeper has kept and read; it owns the descriptor from now on."""
        resumed = cls.__new__(cls)
        resumed._begin(socket.socket(fileno=descriptor))
        resumed._socket.setblocking(False)
        resumed.expect_ready()
        resumed._ready_at, resumed.stopping = ready_mono, stopping
        resumed.status = status.decode("utf-8", "replace") if status is not None else None
        return resumed

    def _begin(self, made: socket.socket) -> None:
        self.status: str | None = None
        self.stopping = False
        self._ready_at: float | None = None
        self._news = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._since = 0.0
        self._socket = made
        made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    @property
    def descriptor(self) -> int:
        """For the keeper to keep."""
        return self._socket.fileno()

    def close(self) -> None:
        """Again is nothing."""
        self._socket.close()

    def expect_ready(self, since: float = 0.0) -> None:
        """A run begins: what says that it is ready stays in the socket until `settle`.

        Args: since: what was sent before (CLOCK_MONOTONIC) is of an earlier one.
        """
        self._since = since
        self._settled.clear()

    def settle(self) -> None:
        """That it is ready is written down."""
        self._settled.set()

    async def receive(self) -> None:
        """Take in what comes, until it is cancelled."""
        while True:
            await self._wait_readable()
            try:
                # One byte more shows what is too long.
                datagram, sent = self._peek()
            except BlockingIOError:
                continue
            if len(datagram) <= limits.NOTIFY_BYTES:
                said = parse(datagram)
                self._take(said, sent)
                if said.ready and sent > self._since:
                    await self._wait_settled()
            else:
                log.warning("a notification of more than %d bytes was left out", limits.NOTIFY_BYTES)
            with contextlib.suppress(BlockingIOError):
                self._socket.recv(1)
            # Of what the run before has left there is a queue at most, and nobody is to wait for it.
            await asyncio.sleep(limits.NOTIFY_PAUSE_S if sent > self._since else 0)

    def _peek(self) -> tuple[bytes, float]:
        """The next datagram, which stays, and when it was sent."""
        datagram, ancillary, _, _ = self._socket.recvmsg(limits.NOTIFY_BYTES + 1, _ANCILLARY_BYTES, socket.MSG_PEEK)
        for level, kind, stamp in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(stamp)
                ago_s = time.time() - (seconds + nanoseconds / 1e9)
                return datagram, time.monotonic() - max(0.0, ago_s)
        return datagram, time.monotonic()

    async def _wait_readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        descriptor = self._socket.fileno()

        def wake() -> None:
            if not readable.done():
                readable.set_result(None)

        loop.add_reader(descriptor, wake)
        try:
            await readable
        finally:
            loop.remove_reader(descriptor)

    async def _wait_settled(self) -> None:
        """Bounded: on a full disk the program's next word must not wait for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.NOTIFY_SETTLE_S):
                await self._settled.wait()

    def _take(self, said: Notification, sent: float) -> None:
        if said.status is not None:
            self.status = said.status
        self.stopping = self.stopping or said.stopping
        if said.ready:
            self.stopping = False
            self._ready_at = sent
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def wait_ready(self, since: float) -> None:
        """Return once READY=1 was sent after `since` (CLOCK_MONOTONIC): an earlier one was of the run before."""
        while self._ready_at is None or self._ready_at <= since:
            await self._news.wait()


def _bind(directory: str) -> socket.socket:
    # Anybody in the container may send; the directory's parents are closed to everybody on the host.
    os.makedirs(directory, mode=0o755, exist_ok=True)
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # Through the descriptor: a socket's path has at most 107 bytes.
        path = f"/proc/self/fd/{descriptor}/{_NAME}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        made.bind(path)
        os.chmod(path, 0o666)
        made.setblocking(False)
    except OSError as failed:
        made.close()
        raise StoreError(f"{directory}: the socket for notifications can't be made: {failed}") from failed
    except BaseException:
        made.close()
        raise
    finally:
        os.close(descriptor)
    return made
