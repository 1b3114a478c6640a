"""Where the output of one run of one process goes: its sources, how far it is, and who reads."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Protocol

from lighterman.errors import AlreadyExists, InvalidState
from lighterman.keeper.segments import DROP_OLDEST, SegmentWriter

__all__ = ["OutputSink", "Pin", "Pump", "Source", "StreamEnd"]


class Pump(Protocol):
    """What moves the output of all containers into their segments; asked by the sinks on the loop."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    def open(self, directory: str, max_bytes: int, max_files: int, policy: str = ...) -> OutputSink: ...
    def attach(self, source: Source) -> None: ...
    def command(self, act: Callable[..., None], *arguments: object) -> None: ...
    def finish_source(self, source: Source) -> None: ...
    def close_sink(self, sink: OutputSink) -> None: ...
    def unblock(self, sink: OutputSink) -> None: ...
    async def close(self) -> None: ...


class StreamEnd(StrEnum):
    """How a stream ended."""

    EOF = "eof"  # nobody holds the write end any more
    BUFFERED = "buffered"  # the process has exited, what it wrote is in safety; somebody else still holds the write end
    CLOSED = "closed"  # we stopped; what comes later is the keeper's


class Source:
    """One stream on its way. The pump's thread writes the fields, the loop reads them.

    Args: read: instead of a descriptor; gives `b""` at the end.
    """

    __slots__ = ("end", "fd", "left", "pipe", "progress", "read", "registered", "sink", "stream", "untold")

    def __init__(
        self,
        sink: OutputSink,
        stream: int,
        fd: int,
        pipe: tuple[int, int] | None = None,
        read: Callable[[int], Awaitable[bytes]] | None = None,
    ) -> None:
        self.sink = sink
        self.stream = stream
        self.fd = fd
        self.pipe = pipe
        self.read = read
        self.registered = False
        self.left: int | None = None  # bytes until the end, once the process has exited
        self.progress = sink.progress  # the offset after its last frame
        self.untold = 0  # bytes that were dropped, and of which no frame before its end tells
        self.end: StreamEnd | None = None


class Pin:
    """The place of a reader that may lose nothing: no file from there on is deleted, the container waits if need be.

    Args:
        stream: the reader wants this one only, and is not held back by the other.
    """

    __slots__ = ("_sink", "offset", "stream")

    def __init__(self, sink: OutputSink, offset: int, stream: int | None) -> None:
        self._sink = sink
        self.offset = offset
        self.stream = stream

    def move(self, offset: int) -> None:
        """Everything before `offset` has been read."""
        self.offset = offset
        self._sink.pin_moved()

    def release(self) -> None:
        """The reader is gone. Again is nothing; any thread."""
        self._sink.unpin(self)


class OutputSink:
    """Made by `OutputPump.open`. Methods are called on the event loop.

    Attributes:
        directory: where the segments are. policy: see `keeper/segments.py`.
        progress: the offset after the last complete frame.
        error: why output waits in its pipe just now, or None. It is tried again until it works.
        blocked: whether it waits for a pinned reader.
        dropping: whether output is dropped just now, because of `error` or, without one, of a pinned reader.
    """

    __slots__ = (
        "_callbacks",
        "_pins",
        "_pump",
        "_waiters",
        "blocked",
        "directory",
        "dropping",
        "error",
        "policy",
        "progress",
        "retry_s",
        "sources",
        "watched",
        "writer",
    )

    def __init__(self, pump: Pump, directory: str, writer: SegmentWriter) -> None:
        self._pump = pump
        self.directory = directory
        self.policy = writer.policy
        self.writer = writer  # the thread's; `starts` may be read anywhere
        self.sources: dict[int, Source] = {}
        self.progress = writer.end
        self.error: OSError | None = None
        self.blocked = False
        self.dropping = False
        self.retry_s = 0.0  # the thread's: how long it waits after the last error
        self.watched = 0  # how many wait for news; without them the loop is not woken
        self._pins: dict[Pin, None] = {}  # the collector may release one in any thread: single steps only
        self._waiters: list[asyncio.Future[None]] = []
        self._callbacks: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        ends = ", ".join(f"{stream} {source.end or 'open'}" for stream, source in self.sources.items())
        return f"<OutputSink {self.directory} at {self.progress}: {ends or 'no stream'}>"

    # ---- sources ----

    def add(self, stream: int, fd: int) -> None:
        """Take over the read end of a pipe, which becomes non-blocking; closed at its end. Raises: AlreadyExists."""
        self._add(stream, fd, None)

    def add_terminal(self, fd: int, pipe_r: int, pipe_w: int) -> None:
        """Take over a pty's master and both ends of the pipe that its output goes through (see `splice_through`).

        The master becomes non-blocking for everybody who shares it. Its end comes only after `finish`.
        """
        self._add(1, fd, (pipe_r, pipe_w))

    def add_reader(self, stream: int, read: Callable[[int], Awaitable[bytes]]) -> None:
        """Take over a stream that has no descriptor: up to so many bytes, `b""` at its end. Raises: AlreadyExists."""
        self._attach(Source(self, stream, -1, read=read))

    def _add(self, stream: int, fd: int, pipe: tuple[int, int] | None) -> None:
        if sys.platform != "win32":
            for each in (fd, *(pipe or ())[:1]):
                os.set_blocking(each, False)
        self._attach(Source(self, stream, fd, pipe))

    def _attach(self, source: Source) -> None:
        stream = source.stream
        if stream in self.sources:
            raise AlreadyExists(f"{self.directory}: stream {stream} was added before")
        self.sources[stream] = source
        try:
            self._pump.attach(source)
        except BaseException:
            del self.sources[stream]
            raise

    def finish(self, stream: int) -> None:
        """The process has exited: the stream ends at end of file, or after the bytes that are in the pipe now.

        Of a terminal at most 128 KiB more are taken, if others keep writing. Again is nothing.
        """
        source = self._source(stream)
        if source.end is None:
            self._pump.command(self._pump.finish_source, source)

    async def close(self) -> None:
        """Stop moving and close the descriptors. What is in the pipes stays there. Again is nothing."""
        if any(source.end is None for source in self.sources.values()):
            self._pump.command(self._pump.close_sink, self)
        for stream in list(self.sources):
            await self.wait_stream_end(stream)

    # ---- news ----

    def stream_end(self, stream: int) -> StreamEnd | None:
        """How the stream ended; None while it goes on. Raises: InvalidState if there is no such stream."""
        return self._source(stream).end

    def stream_progress(self, stream: int) -> int:
        """The offset after the stream's last frame. Raises: InvalidState if there is no such stream."""
        return self._source(stream).progress

    def stream_untold(self, stream: int) -> int:
        """Of a stream that has ended: bytes that were dropped, and of which no frame up to there tells."""
        return self._source(stream).untold

    @property
    def ended(self) -> bool:
        """Whether all streams have ended (and there was one)."""
        return bool(self.sources) and all(source.end is not None for source in self.sources.values())

    async def wait_stream_end(self, stream: int) -> StreamEnd:
        """Return when every byte of the stream is in the segments."""
        source = self._source(stream)
        await self.wait_until(lambda: source.end is not None)
        return source.end or StreamEnd.CLOSED

    async def wait_beyond(self, offset: int) -> None:
        """Return when there is output after `offset`, or all streams have ended."""
        await self.wait_until(lambda: self.progress > offset or self.ended)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when it is true; looked at after each change."""
        if condition():
            return
        self.watched += 1
        try:
            # Again, now that the thread knows that somebody waits.
            while not condition():
                news = self._pump.loop.create_future()
                self._waiters.append(news)
                await news
        finally:
            self.watched -= 1

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back on the loop after changes, several taken together. Returns what ends it."""
        self.watched += 1
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)
                self.watched -= 1

        return unsubscribe

    def wake(self) -> None:
        """Called by the pump."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        for callback in tuple(self._callbacks):
            callback()

    # ---- readers ----

    @property
    def starts(self) -> Sequence[int]:
        """The offsets of the files there are."""
        return self.writer.starts

    def pin(self, offset: int, stream: int | None = None) -> Pin:
        """Keep everything from `offset` on until the pin moves or is released."""
        pin = Pin(self, offset, stream)
        self._pins[pin] = None
        return pin

    def unpin(self, pin: Pin) -> None:
        """As `Pin.release`."""
        self._pins.pop(pin, None)
        self.pin_moved()

    def pin_moved(self) -> None:
        """A reader has moved on."""
        if self.blocked or self.dropping:
            self._pump.command(self._pump.unblock, self)

    def needed_from(self) -> int | None:
        """The lowest offset that somebody needs; None if nobody does. Called in the pump's thread."""
        if self.policy == DROP_OLDEST:
            return None
        lowest: int | None = None
        for pin in tuple(self._pins):
            offset = pin.offset
            if pin.stream is not None:
                source = self.sources.get(pin.stream)
                # It has all there is of its stream: what it needs is still to come.
                if source is not None and offset >= source.progress:
                    offset = max(offset, self.writer.end)
            lowest = offset if lowest is None else min(lowest, offset)
        return lowest

    def _source(self, stream: int) -> Source:
        source = self.sources.get(stream)
        if source is None:
            raise InvalidState(f"{self.directory}: there is no stream {stream}")
        return source
