"""Output read back from the segments while it is written: every byte, in order, from wherever one begins.

A reader pins its place, so that nothing it has yet to read is rotated away; if it falls behind by all that a container
may keep, the container waits for it. It pins when it begins to read, not before: a stream that nobody reads holds
nobody up, and what was rotated away by then is counted in `lost`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

from lighterman.errors import InvalidState
from lighterman.logs.lines import LINE_BYTES
from lighterman.logs.reader import Frame, SegmentReader
from lighterman.logs.sink import OutputSink, Pin
from lighterman.threads import in_thread

__all__ = ["FrameStream", "LogStream"]

# A container that writes as fast as we read must not keep the event loop to itself. So much is read in 0.13 ms where
# its frames have 64 KiB, and in 5 ms where they have 100 bytes (medians of 200 readings, 2 cores).
IN_A_ROW_BYTES = 256 * 1024


class FrameStream:
    """The frames of one run, live. One reader at a time."""

    def __init__(self, sink: OutputSink, after: int = 0, stream: int | None = None, *, pinned: bool = True) -> None:
        """Begin after an offset; `stream` leaves out the other one. Without a pin it may lose, and never holds up."""
        self._sink = sink
        self._pinned = pinned
        self._stream = stream
        self._reader = SegmentReader(sink.directory, after, lambda: sink.starts)
        self._pin: Pin | None = None
        self._reading = False
        self._closed = False
        self._in_a_row = 0

    @property
    def offset(self) -> int:
        """Everything before it has been read."""
        return self._reader.offset

    @property
    def lost(self) -> int:
        """How many bytes are missing: dropped, of this stream; rotated away or damaged, of both, so an upper bound."""
        return self._reader.lost

    async def read_frames(self, *, until: Callable[[], int | None] = lambda: None) -> list[Frame]:
        """The next frames, about 256 KiB of them, as soon as there are any; none at the end.

        Args: until: an offset where reading ends, and nothing is waited for; None for as long as there is none. It is
            looked at when the sink is woken.
        Raises: InvalidState if another task reads; StoreError; OSError.
        """
        if self._closed:
            return []
        if self._reading:
            raise InvalidState("this stream is being read by another task")
        self._reading = True
        try:
            if self._pinned and self._pin is None:
                self._pin = self._sink.pin(self._reader.offset, self._stream)
                # A stream that is dropped half read must not hold its container up for ever.
                weakref.finalize(self, self._pin.release).atexit = False
            while True:
                # The end before the progress: what came before the end is then seen.
                ended = self._ended()
                everything = self._sink.progress
                bound, end = until(), self._until()
                if bound is not None:
                    end = min(bound, end)
                if self._reader.offset < end:
                    if self._in_a_row >= IN_A_ROW_BYTES:
                        # Before the read: a cancellation that comes here must not take frames with it.
                        self._in_a_row = 0
                        await asyncio.sleep(0)
                    frames = await self._read(end)
                    if frames:
                        return frames
                    continue
                if ended:
                    self.close()
                    return []
                if bound is not None:
                    return []
                # Nothing of this stream lies in between, so it needs no frame before this place.
                self._reader.offset = max(self._reader.offset, everything)
                self._move_pin()
                # Any output at all, so that this place keeps up with the other stream.
                await self._sink.wait_until(
                    lambda: self._sink.progress > self._reader.offset or self._ended() or until() is not None
                )
        finally:
            self._reading = False

    def close(self) -> None:
        """Stop reading; what was not read is nobody's business any more. Again is nothing."""
        self._closed = True
        self._reader.close()
        if self._pin is not None:
            self._pin.release()

    def _ended(self) -> bool:
        return self._sink.ended if self._stream is None else self._sink.stream_end(self._stream) is not None

    def _until(self) -> int:
        return self._sink.progress if self._stream is None else self._sink.stream_progress(self._stream)

    async def _read(self, until: int) -> list[Frame]:
        try:
            # A thread hop costs more (28 us, on a busy machine 94; medians of 300) than what a short program has
            # written takes to read (8 us for 20 bytes; median of 200). RWF_NOWAIT: the loop never waits for a disk.
            frames = self._reader.read(until, self._stream, nowait=True)
            self._in_a_row += sum(len(frame.data) for frame in frames)
        except BlockingIOError:
            frames = await self._read_in_thread(until)
        self._move_pin()
        return frames

    async def _read_in_thread(self, until: int) -> list[Frame]:
        offset, lost = self._reader.offset, self._reader.lost
        reading = asyncio.ensure_future(in_thread(self._reader.read, until, self._stream))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            # The thread still uses the reader; and what it has read there goes nowhere, so the place has to go back.
            await asyncio.wait((reading,))
            self._reader.go_to(offset)
            self._reader.lost = lost
            raise

    def _move_pin(self) -> None:
        if self._pin is not None and self._pin.offset != self._reader.offset:
            self._pin.move(self._reader.offset)


class LogStream:
    """stdout or stderr of one run as a stream of bytes; as often as one likes, each from its own place.

    One task reads at a time.
    """

    def __init__(self, sink: OutputSink, stream: int, after: int = 0) -> None:
        self._frames = FrameStream(sink, after, stream)
        self._sink = sink
        self._stream = stream
        self._buffer = bytearray()
        self._eof = False
        self._untold = 0

    @property
    def lost(self) -> int:
        """As `FrameStream.lost`; at the end also what was dropped and could not be told of in the log."""
        return self._frames.lost + self._untold

    def at_eof(self) -> bool:
        """Whether everything has been read and nothing will come."""
        return self._eof and not self._buffer

    async def read(self, n: int = -1) -> bytes:
        """Up to `n` bytes as soon as there are any, b"" at the end; with -1 everything up to the end.

        Raises: as `FrameStream.read_frames`.
        """
        if n == 0:
            return b""
        while not self._eof and (n < 0 or not self._buffer):
            await self._fill()
        return self._take(len(self._buffer) if n < 0 else min(n, len(self._buffer)))

    async def readline(self) -> bytes:
        """The next line with its newline; without one at the end, or after LINE_BYTES; b"" at the end."""
        seen = 0
        while True:
            newline = self._buffer.find(b"\n", seen, LINE_BYTES)
            if newline >= 0:
                return self._take(newline + 1)
            seen = len(self._buffer)
            if self._eof or seen >= LINE_BYTES:
                return self._take(min(seen, LINE_BYTES))
            await self._fill()

    async def readexactly(self, n: int) -> bytes:
        """`n` bytes. Raises: asyncio.IncompleteReadError at the end, with what there was."""
        while not self._eof and len(self._buffer) < n:
            await self._fill()
        if len(self._buffer) < n:
            raise asyncio.IncompleteReadError(self._take(len(self._buffer)), n)
        return self._take(n)

    def __aiter__(self) -> LogStream:
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    async def capture(self, max_bytes: int) -> tuple[bytes, bool]:
        """The first `max_bytes`, once the stream has ended, and whether there were more. Holds nobody up after them."""
        while not self._eof and len(self._buffer) <= max_bytes:
            await self._fill()
        truncated = len(self._buffer) > max_bytes or self.lost > 0
        kept = bytes(memoryview(self._buffer)[:max_bytes])
        self._buffer.clear()
        self.close()
        await self._sink.wait_stream_end(self._stream)
        return kept, truncated

    def close(self) -> None:
        """Stop reading. Again is nothing."""
        self._eof = True
        self._frames.close()

    async def _fill(self) -> None:
        frames = await self._frames.read_frames()
        if not frames:
            self._eof = True
            self._untold = self._sink.stream_untold(self._stream)
        for frame in frames:
            self._buffer += frame.data

    def _take(self, count: int) -> bytes:
        taken = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return taken
