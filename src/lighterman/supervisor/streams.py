"""The streams of one process, as the backend gets them: what of each byte is whose business, until the drain is over.

A backend either reads and writes here, or takes a descriptor away with `detach` and says `drained()` when the bytes
are in safety. At the exit of the process the owner calls `begin_drain()` on every readable stream: from then on it
ends at the bytes that were buffered at that moment, even if a grandchild holds the pipe open for ever [L19].
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from lighterman.clock import Clock
from lighterman.errors import AlreadyClosed, BrokenPipe, InvalidState, NotFound
from lighterman.runtimes.base import ReadPipe, WritePipe

__all__ = ["DrainEnd", "InputFilter", "ReadStream", "Streams", "WriteStream"]

log = logging.getLogger(__name__)


class InputFilter(Protocol):
    """Changes bytes on their way to stdin; keeps no state between calls."""

    def __call__(self, data: bytes) -> bytes: ...


class DrainEnd(StrEnum):
    """What ended a stream's drain."""

    EOF = "eof"
    BUFFERED = "buffered"
    STUCK = "stuck"


class ReadStream:
    """stdout, stderr or a terminal's output; binary, each byte once, closes itself at its end [L17]."""

    def __init__(self, pipe: ReadPipe, name: str) -> None:
        self.name = name
        self._pipe = pipe
        self._reading = False
        self._detached = False
        self._left: int | None = None  # bytes until the drain's end, once it has begun
        self._draining = asyncio.Event()
        self._ended: asyncio.Event = asyncio.Event()
        self._end: DrainEnd | None = None
        self.progress = 0  # bytes read, so that a drain can tell a slow consumer from a stuck one

    async def read(self, max_bytes: int = 65536) -> bytes:
        """Up to `max_bytes` as soon as there are any; `b""` at the end. Raises: InvalidState if detached or busy."""
        if self._detached:
            raise InvalidState(f"{self.name} was detached: read its descriptor")
        if self._ended.is_set():
            return b""
        if self._reading:
            raise InvalidState(f"{self.name} is being read by another task")
        self._reading = True
        try:
            return await self._read(max_bytes)
        finally:
            self._reading = False

    async def _read(self, max_bytes: int) -> bytes:
        if self._left is not None:
            max_bytes = min(max_bytes, self._left)
            if max_bytes == 0:
                await self._finish(DrainEnd.BUFFERED)
                return b""
        reading = asyncio.ensure_future(self._pipe.read(max_bytes))
        beginning = asyncio.ensure_future(self._draining.wait())
        try:
            # A read that waits on a pipe which a grandchild holds must notice that the drain has begun.
            if self._left is None:
                await asyncio.wait((reading, beginning), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and self._left is not None and self._pipe.buffered() == 0:
                # What came in before the drain began is read by now, or the wait above would have ended by it.
                await asyncio.sleep(0)
                if not reading.done():
                    await self._finish(DrainEnd.BUFFERED)
                    return b""
            data = await reading
        except BrokenPipe:
            data = b""
        finally:
            for waiting in (reading, beginning):
                if not waiting.done():
                    waiting.cancel()
        if not data:
            await self._finish(DrainEnd.EOF)
            return b""
        self.progress += len(data)
        if self._left is not None:
            self._left = max(0, self._left - len(data))
        return data

    def fileno(self) -> int:
        """The descriptor, where the platform has one."""
        return self._pipe.fileno()

    def detach(self) -> int:
        """Take the descriptor; the caller reads it, closes it, and calls `drained()` when its bytes are in safety."""
        if self._reading:
            raise InvalidState(f"{self.name} is being read")
        fd = self._pipe.detach()
        self._detached = True
        return fd

    async def wait_drain(self) -> None:
        """For who has detached: return when the process has ended and the rest must be read."""
        await self._draining.wait()

    def drained(self, end: DrainEnd = DrainEnd.EOF) -> None:
        """For who has detached: every byte that the process wrote is in safety."""
        self._end = self._end or end
        self._ended.set()

    async def close(self) -> None:
        """Stop reading; what was not read is lost. Again is nothing."""
        if not self._ended.is_set():
            await self._finish(DrainEnd.EOF)

    async def wait_closed(self) -> None:
        """Return when it was closed, or has closed itself."""
        await self._ended.wait()

    # ---- the owner's side ----

    def begin_drain(self) -> None:
        """The process has ended: from now on the stream has an end."""
        if self._ended.is_set() or self._draining.is_set():
            return
        if not self._detached:
            self._left = self._pipe.buffered()
        self._draining.set()

    async def wait_drained(self, clock: Clock, limit_s: float) -> DrainEnd:
        """Until the end is reached, or the consumer has made no progress for `limit_s` seconds; closes it then."""
        while not self._ended.is_set():
            before = self.progress
            try:
                async with clock.timeout(limit_s):
                    await self._ended.wait()
            except TimeoutError:
                if self.progress == before and not self._ended.is_set():
                    log.warning("%s: its consumer made no progress for %g s after the exit", self.name, limit_s)
                    await self._finish(DrainEnd.STUCK)
        return self._end or DrainEnd.EOF

    async def _finish(self, end: DrainEnd) -> None:
        if self._ended.is_set():
            return
        self._end = end
        self._ended.set()
        if not self._detached:
            await self._pipe.close()


class WriteStream:
    """stdin, or a terminal's input. Closing it lets the process read end of file [L15]; stdout stays open [L16]."""

    def __init__(
        self,
        pipe: WritePipe,
        tell_runtime: Callable[[], Awaitable[None]],
        change: InputFilter | None = None,
    ) -> None:
        self._pipe = pipe
        self._tell_runtime = tell_runtime
        self._change = change
        self._closing: asyncio.Future[None] | None = None
        self._detached = False

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises: AlreadyClosed, BrokenPipe if the process has closed its end."""
        if self._closing is not None:
            raise AlreadyClosed("stdin is closed")
        if self._detached:
            raise InvalidState("stdin was detached: write to its descriptor")
        await self._pipe.write(self._change(data) if self._change else data)

    def fileno(self) -> int:
        """The descriptor, where the platform has one."""
        return self._pipe.fileno()

    def detach(self) -> int:
        """Take the descriptor; the caller closes it, and then calls `close` so that the runtime is told."""
        if self._change is not None:
            raise InvalidState("stdin is filtered on this image and can't be detached")
        fd = self._pipe.detach()
        self._detached = True
        return fd

    async def close(self) -> None:
        """Close the pipe and tell the runtime; done when nobody else holds the write end. Again joins the first."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if not self._detached:
            await self._pipe.close()
        try:
            await self._tell_runtime()
        except (NotFound, AlreadyClosed, InvalidState) as already:
            # The process, or its stdin, went away by itself: what was asked for is so.
            log.debug("closing stdin: %s", already)

    async def wait_closed(self) -> None:
        """Return when `close` has been called and is done."""
        while self._closing is None:
            await asyncio.sleep(0)
        await asyncio.shield(self._closing)


@dataclass(frozen=True, slots=True)
class Streams:
    """What a process has: with a terminal no stderr, and None for each that it lacks."""

    stdin: WriteStream | None
    stdout: ReadStream | None
    stderr: ReadStream | None
    terminal: bool = False

    @property
    def readable(self) -> tuple[ReadStream, ...]:
        """Those that have to be drained."""
        return tuple(stream for stream in (self.stdout, self.stderr) if stream is not None)
