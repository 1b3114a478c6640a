"""The streams of one process, as the backend gets them.

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

from lighterman.clock import Clock
from lighterman.errors import AlreadyClosed, BrokenPipe, InvalidState, NotFound
from lighterman.flag import Flag
from lighterman.runtimes.base import ReadPipe, WritePipe

__all__ = ["DrainEnd", "ReadStream", "Streams", "WriteStream"]

log = logging.getLogger(__name__)


class DrainEnd(StrEnum):
    """What ended a stream's drain."""

    EOF = "eof"
    BUFFERED = "buffered"
    STUCK = "stuck"


class ReadStream:
    """stdout, stderr or a terminal's output; binary, each byte once, closes itself at its end [L17]."""

    def __init__(self, pipe: ReadPipe, name: str) -> None:
        self.name = name
        self._taken = 0
        self._progress: Callable[[], int] = lambda: self._taken
        self._pipe = pipe
        self._reading: asyncio.Future[bytes] | None = None
        self._detached = False
        self._draining = Flag()
        self._left: int | None = None  # bytes until the drain's end, once it has begun
        self._counts_reading = False  # whether the bytes of the read under way are among `_left`
        self._end: DrainEnd | None = None
        self._ended = Flag()
        self._at_drain: Callable[[], None] | None = None

    async def read(self, max_bytes: int = 65536) -> bytes:
        """Up to `max_bytes` as soon as there are any; `b""` at the end.

        Raises: InvalidState if it was detached, or another task is reading it.
        """
        if self._detached:
            raise InvalidState(f"{self.name} was detached: read its descriptor")
        if self._reading is not None:
            raise InvalidState(f"{self.name} is being read by another task")
        if self._ended.is_set():
            return b""
        if self._left is None:
            data = await self._read_until_drain(max_bytes)
            if data is not None:
                return await self._took(data, self._counts_reading)
        if not self._left:
            await self._finish(DrainEnd.EOF if await self._is_at_end() else DrainEnd.BUFFERED)
            return b""
        try:
            data = await self._pipe.read(min(max_bytes, self._left))
        except BrokenPipe:
            data = b""
        return await self._took(data, counted=True)

    async def _read_until_drain(self, max_bytes: int) -> bytes | None:
        """None if the drain began first: a read that a grandchild's open pipe keeps waiting must notice that."""
        self._reading = asyncio.ensure_future(self._pipe.read(max_bytes))
        beginning = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((self._reading, beginning), return_when=asyncio.FIRST_COMPLETED)
            if not self._reading.done():
                self._reading.cancel()
                await asyncio.wait((self._reading,))
            return None if self._reading.cancelled() else self._reading.result()
        except BrokenPipe:
            return b""
        finally:
            beginning.cancel()
            self._reading.cancel()
            self._reading = None

    async def _is_at_end(self) -> bool:
        """Whether nobody holds the pipe open any more: then a read does not wait, and has nothing."""
        if self._pipe.buffered():
            return False
        reading = asyncio.ensure_future(self._pipe.read(1))
        await asyncio.sleep(0)
        if not reading.done():
            reading.cancel()
            await asyncio.wait((reading,))
        return not reading.cancelled() and (reading.exception() is not None or not reading.result())

    async def _took(self, data: bytes, counted: bool) -> bytes:
        self._taken += len(data)
        if counted and self._left is not None:
            self._left = max(0, self._left - len(data))
        if not data:
            await self._finish(DrainEnd.EOF)
        return data

    def fileno(self) -> int:
        """The descriptor. Raises: NotSupported where the platform has none."""
        return self._pipe.fileno()

    def detach(self, *, progress: Callable[[], int] | None = None) -> int:
        """Take the descriptor; the caller reads it, closes it, and calls `drained()` when its bytes are in safety.

        Args: progress: how many bytes have been taken so far; a drain gives up only on a consumer that stands still.
        """
        if self._reading is not None:
            raise InvalidState(f"{self.name} is being read")
        fd = self._pipe.detach()
        self._detached = True
        self._progress = progress or self._progress
        return fd

    def detach_through(self) -> tuple[int, int]:
        """Take both ends of the pipe that a terminal's output is to go through. Raises: NotSupported where none is."""
        return self._pipe.detach_through()

    async def wait_drain(self) -> None:
        """For who has detached it: return when the process has ended, and the rest has to be read."""
        await self._draining.wait()

    def on_drain(self, call: Callable[[], None]) -> None:
        """For who has detached it: `call` at the exit, without a task that waits for it; at once if it is over."""
        if self._draining.is_set():
            call()
        else:
            self._at_drain = call

    def drained(self, end: DrainEnd = DrainEnd.EOF) -> None:
        """For who has detached it: every byte that the process wrote is in safety."""
        if self._end is None:
            self._end = end
        self._ended.set()

    async def close(self) -> None:
        """Stop reading; what was not read is lost. Again is nothing."""
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
            # The bytes of a read that is done have left the pipe; those of one still waiting are counted here.
            self._counts_reading = self._reading is not None and not self._reading.done()
            self._left = self._pipe.buffered()
        self._draining.set()
        if self._at_drain is not None:
            self._at_drain()

    async def wait_drained(self, clock: Clock, limit_s: float) -> DrainEnd:
        """Until the end is reached, or the consumer has made no progress for `limit_s` seconds; it is closed then."""
        while not self._ended.is_set():
            before = self._progress()
            try:
                async with clock.timeout(limit_s):
                    await self._ended.wait()
            except TimeoutError:
                if self._progress() == before and not self._ended.is_set():
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
        change: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._pipe = pipe
        self._tell_runtime = tell_runtime
        self._change = change
        self._detached = False
        self._closing: asyncio.Task[None] | None = None
        self._closed = Flag()

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises: AlreadyClosed, BrokenPipe if the process has closed its end."""
        if self._closing is not None:
            raise AlreadyClosed("stdin is closed")
        if self._detached:
            raise InvalidState("stdin was detached: write to its descriptor")
        await self._pipe.write(self._change(data) if self._change else data)

    def fileno(self) -> int:
        """The descriptor. Raises: NotSupported where the platform has none."""
        return self._pipe.fileno()

    def detach(self) -> int:
        """Take the descriptor; the caller closes it, and then calls `close` so that the runtime is told."""
        if self._change is not None:
            raise InvalidState("stdin of this image is filtered and can't be detached")
        fd = self._pipe.detach()
        self._detached = True
        return fd

    async def close(self) -> None:
        """Close the pipe and tell the runtime; done when nobody else holds the write end. Again joins the first."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            if not self._detached:
                await self._pipe.close()
            await self._tell_runtime()
        except (NotFound, AlreadyClosed, InvalidState) as already:
            # The process or its stdin went away by itself: what was asked for is so.
            log.debug("closing stdin: %s", already)
        finally:
            self._closed.set()

    async def wait_closed(self) -> None:
        """Return when `close` has been called and is done."""
        await self._closed.wait()


@dataclass(frozen=True, slots=True)
class Streams:
    """What a process has: with a terminal no stderr, and None for each that it lacks; `generation` is the run.

    `start_time` is the runtime's: with `pid` it is this process for ever.
    """

    stdin: WriteStream | None
    stdout: ReadStream | None
    stderr: ReadStream | None
    terminal: bool = False
    generation: int = 1
    pid: int = 0
    start_time: int | None = None

    @property
    def readable(self) -> tuple[ReadStream, ...]:
        """Those that have to be drained."""
        return tuple(stream for stream in (self.stdout, self.stderr) if stream is not None)
