"""A datagram socket that may be away, full, or back again."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

from lighterman import limits
from lighterman.logs.reader import LogRecord
from lighterman.logs.sinks.base import SinkFailed

__all__ = ["DatagramOutlet"]

log = logging.getLogger(__name__)


class DatagramOutlet:
    """Sends each record as one or more datagrams; `messages` is what a kind of sink makes of a record."""

    kind = "datagram"

    def __init__(self, family: socket.AddressFamily, address: str | tuple[str, int]) -> None:
        self._family = family
        self._address = address
        self._socket: socket.socket | None = None
        self.refused = 0

    def messages(self, record: LogRecord) -> Sequence[bytes]:
        """The datagrams of one record."""
        raise NotImplementedError

    async def send(self, records: Sequence[LogRecord]) -> int:
        """As `Outlet.send`."""
        for count, record in enumerate(records):
            try:
                async with asyncio.timeout(limits.SINK_SEND_S):
                    for message in self.messages(record):
                        await self._send(message)
            except (OSError, TimeoutError) as failed:
                if isinstance(failed, OSError) and failed.errno == errno.EMSGSIZE:
                    # It never will be taken: the records after it must not wait for that.
                    self.refused += 1
                    log.warning("log sink %s: %s: a record is too long for it and left out", self.kind, self._address)
                    continue
                await self.close()
                if count:
                    return count
                reason = failed.strerror if isinstance(failed, OSError) and failed.strerror else "it takes nothing"
                raise SinkFailed(f"{self._address}: {reason}") from failed
        return len(records)

    async def close(self) -> None:
        """As `Outlet.close`."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _send(self, message: bytes) -> None:
        opened = self._opened()
        try:
            await _when_writable(opened, lambda: opened.send(message))
        except OSError as failed:
            # Of the second nobody knows whether the message or the moment is to blame; sd_journal_send takes both so.
            if failed.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            await self.send_large(opened, message, failed)

    async def send_large(self, opened: socket.socket, message: bytes, failed: OSError) -> None:
        """Send what the socket has refused for its length. Raises: OSError, `failed` if there is no other way."""
        raise failed

    def _opened(self) -> socket.socket:
        if self._socket is None:
            opened = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                opened.connect(self._address)
            except BaseException:
                opened.close()
                raise
            self._socket = opened
        return self._socket

    @staticmethod
    def when_writable(opened: socket.socket, act: Callable[[], object]) -> Awaitable[None]:
        """Do it as soon as the socket takes it."""
        return _when_writable(opened, act)


async def _when_writable(opened: socket.socket, act: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            act()
        except BlockingIOError:
            writable: asyncio.Future[None] = loop.create_future()
            loop.add_writer(opened, lambda future=writable: future.done() or future.set_result(None))  # type: ignore[misc]
            try:
                await writable
            finally:
                loop.remove_writer(opened)
        else:
            return
