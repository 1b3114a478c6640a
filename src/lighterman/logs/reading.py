"""Output read by the event loop, where a stream has no descriptor that a thread could move (Windows).

The same sinks and segments as `pump.py`, but nobody holds the output for us: what was read when we die, and not
written yet, is lost. Of the policies only `block` is known here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from lighterman import limits
from lighterman.ends import to_its_end
from lighterman.errors import AlreadyClosed, LightermanError, NotSupported
from lighterman.keeper.segments import BLOCK_WRITER, SegmentWriter
from lighterman.logs.sink import OutputSink, Source, StreamEnd
from lighterman.threads import in_thread

__all__ = ["ReadingPump"]

log = logging.getLogger(__name__)

PIECE_BYTES = 64 * 1024
# A full disk is looked at again after the first, later after up to the second.
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0


class ReadingPump:
    """See `logs.sink.Pump`. All methods are called on the event loop, except that `open` may be called in a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: dict[Source, asyncio.Task[None]] = {}
        self._turns: dict[OutputSink, asyncio.Lock] = {}  # a writer has one user at a time
        self._moved: dict[OutputSink, asyncio.Event] = {}  # a reader of a blocked sink has moved on
        self._closed = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def open(
        self,
        directory: str,
        max_bytes: int = limits.SEGMENT_BYTES,
        max_files: int = limits.SEGMENT_FILES,
        policy: str = BLOCK_WRITER,
    ) -> OutputSink:
        """As `OutputPump.open`."""
        if self._closed:
            raise AlreadyClosed("the output pump is closed")
        return OutputSink(self, directory, SegmentWriter(directory, max_bytes, max_files, policy))

    def attach(self, source: Source) -> None:
        """Begin to move a source's bytes."""
        if source.read is None:
            raise NotSupported("output of a descriptor: here it is read from its stream")
        self._turns.setdefault(source.sink, asyncio.Lock())
        self._tasks[source] = self._loop.create_task(self._move(source), name=f"output into {source.sink.directory}")

    def command(self, act: Callable[..., None], *arguments: object) -> None:
        """Have something done soon."""
        if not self._closed:
            self._loop.call_soon(act, *arguments)

    def finish_source(self, source: Source) -> None:
        """The stream ends by itself at the exit."""

    def close_sink(self, sink: OutputSink) -> None:
        """Stop moving."""
        for source in sink.sources.values():
            if source in self._tasks:
                self._tasks[source].cancel()

    def unblock(self, sink: OutputSink) -> None:
        """A reader has moved on: look again."""
        if sink in self._moved:
            self._moved[sink].set()

    async def close(self) -> None:
        """Stop. Again is nothing."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- one stream ----

    async def _move(self, source: Source) -> None:
        assert source.read is not None
        how = StreamEnd.CLOSED
        try:
            while data := await source.read(PIECE_BYTES):
                await self._write(source, data)
            how = StreamEnd.EOF
        except LightermanError as failed:
            log.error("%s: stream %d can't be read any more: %s", source.sink.directory, source.stream, failed)
        finally:
            del self._tasks[source]
            self._end(source, how)

    def _end(self, source: Source, how: StreamEnd) -> None:
        sink = source.sink
        source.end = how
        if sink.ended:
            sink.writer.close()
            self._turns.pop(sink, None)
        sink.wake()

    async def _write(self, source: Source, data: bytes) -> None:
        """All of it, however long that takes."""
        sink = source.sink
        while data:
            async with self._turns[sink]:
                await self._wait_for_readers(sink)
                data = data[await self._written(source, data) :]
            if sink.error is not None:
                # Not while it is our turn: the other stream may want to end.
                await asyncio.sleep(sink.retry_s)

    async def _written(self, source: Source, data: bytes) -> int:
        sink, writer = source.sink, source.sink.writer
        writer.keep_from = sink.needed_from()
        try:
            moved = await to_its_end(in_thread(writer.write, source.stream, data))
        except OSError as error:
            if sink.error is None:
                log.warning("%s: output waits in its pipe: %s", sink.directory, error)
            sink.error = error
            sink.retry_s = min(max(2 * sink.retry_s, RETRY_FIRST_S), RETRY_MAX_S)
            moved = 0
        else:
            sink.error, sink.retry_s = None, 0.0
            sink.progress = source.progress = writer.end
        sink.wake()
        return moved

    async def _wait_for_readers(self, sink: OutputSink) -> None:
        """A reader that may lose nothing is further behind than the files may grow: let the container wait for it."""
        while self._is_overfull(sink):
            sink.blocked = True
            moved = self._moved[sink] = asyncio.Event()
            sink.wake()
            try:
                await moved.wait()
            finally:
                del self._moved[sink]
        if sink.blocked:
            sink.blocked = False
            sink.wake()

    def _is_overfull(self, sink: OutputSink) -> bool:
        writer = sink.writer
        if not writer.overfull:
            return False
        needed = writer.keep_from = sink.needed_from()
        try:
            writer.prune()
        except OSError as failed:
            log.warning("%s: an old file stays for now: %s", sink.directory, failed)
        # Without such a reader it may be too large for a while: an old file is open somewhere.
        return writer.overfull and needed is not None and needed < writer.end
