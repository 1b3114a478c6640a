"""The log of a container over all its runs: a directory `GENERATION/segment-*.log` for each.

What one container keeps is bounded over all runs together. Of a run whose files had to go an empty one stays, named
after the offset at its end, so that an old cursor's gap can still be counted.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Literal

import msgspec

from lighterman import limits
from lighterman.flag import Flag
from lighterman.keeper.segments import STDERR, STDOUT, delete_oldest, list_segments, segment_name
from lighterman.logs.query import LogQuery, Selection
from lighterman.logs.reader import STREAM_NAMES, Cursor, Frame, LogRecord, SegmentReader, offset_since
from lighterman.logs.sink import OutputSink, Pump
from lighterman.logs.state import LogState, SinkState
from lighterman.logs.streams import FrameStream
from lighterman.spec import LogPolicy
from lighterman.threads import in_thread

__all__ = ["ContainerLog", "list_generations", "trim_generations"]

# A container that restarts once a minute leaves its last hours, and a directory that is still quickly listed.
GENERATIONS = 1000
# How far before the end the last few records are looked for first.
TAIL_BYTES = 64 * 1024


class ContainerLog:
    """One container's log. Methods are called on the event loop."""

    def __init__(
        self,
        pump: Pump,
        directory: Path,
        max_bytes: int = limits.SEGMENT_BYTES,
        max_files: int = limits.SEGMENT_FILES,
        policy: LogPolicy = "block",
    ) -> None:
        self._pump = pump
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_files = max_files
        self.policy = policy
        self._live: tuple[int, OutputSink] | None = None
        self._expecting = False
        self._news = Flag()

    async def open_run(self, generation: int, *, takeover: bool = False) -> OutputSink:
        """The sink of a run that begins, or that is taken over from another process. Older runs make way for it.

        Raises: OSError.
        """
        path = str(self._directory / str(generation))
        # The first run has nothing to look through, and is the one that somebody waits for.
        if generation > 1 or takeover or self.policy != "block":
            sink = await in_thread(self._open_with_room, path, generation)
        else:
            sink = self._pump.open(path, self._max_bytes, self._max_files)
        self._live = (generation, sink)
        self._expecting = True
        self._tell()
        return sink

    def _open_with_room(self, path: str, generation: int) -> OutputSink:
        trim_generations(self._directory, self._max_bytes * (self._max_files - 1), generation)
        return self._pump.open(path, self._max_bytes, self._max_files, self.policy)

    def end(self) -> None:
        """No further run is due: who follows comes to an end after the last byte. A new run takes it back."""
        self._expecting = False
        self._tell()

    def records(self, after: Cursor | None = None, *, follow: bool = False) -> AsyncGenerator[LogRecord, None]:
        """Everything there is after a cursor, in order, each piece once; with `follow` also what comes, until `end`.

        Raises: as `batches`.
        """
        return self.select(LogQuery(after=after, follow=follow))

    def select(self, query: LogQuery) -> AsyncGenerator[LogRecord, None]:
        """What a query asks for, record by record. Raises: as `batches`."""
        return _one_by_one(self.batches(query))

    async def batches(self, query: LogQuery) -> AsyncGenerator[list[LogRecord], None]:
        """What a query asks for, as many records at a time as there are at hand.

        Never holds the container up: who reads too slowly finds what was rotated away counted in `LogRecord.lost`.
        Raises: StoreError; OSError.
        """
        if query.tail is not None:
            query = await self._from_tail(query, query.tail)
        selection = Selection(query)
        watch = _Watch()
        timer = None
        if query.follow and query.until is not None:
            delay_s = max(query.until - time.time(), 0.0)
            timer = asyncio.get_running_loop().call_later(delay_s, self._pass, watch)
        try:
            async with aclosing(self._pieces(query, watch)) as all_pieces:
                async for pieces in all_pieces:
                    if records := selection.of(pieces):
                        yield records
                    if selection.over:
                        return
            if records := selection.rest():
                yield records
        finally:
            if timer is not None:
                timer.cancel()

    @property
    def news(self) -> Flag:
        """Set when a run is opened, or when the last one that was due has ended; then there is another one."""
        return self._news

    def state(self, sinks: tuple[SinkState, ...] = ()) -> LogState:
        """How the run that is under way, or was last, is doing."""
        if self._live is None:
            return LogState(policy=self.policy, sinks=sinks)
        sink = self._live[1]
        why: Literal["disk", "reader"] | None = "disk" if sink.error else "reader"
        return LogState(
            policy=self.policy,
            blocked=why if sink.blocked or (sink.error and not sink.dropping) else None,
            dropping=why if sink.dropping else None,
            error=str(sink.error) if sink.error else None,
            dropped_bytes=sink.writer.dropped,
            evicted_bytes=sink.writer.evicted,
            sinks=sinks,
        )

    # ---- pieces, as they were written ----

    async def _pieces(self, query: LogQuery, watch: _Watch) -> AsyncGenerator[list[LogRecord], None]:
        place = query.after or Cursor(0, 0)
        while True:
            news = self._news
            follow = query.follow and self._expecting and not watch.passed
            for generation in await in_thread(list_generations, self._directory):
                if generation >= place.generation and not self._is_live(generation):
                    async with aclosing(self._stored(generation, place, query)) as stored:
                        async for records in stored:
                            place = records[-1].cursor
                            yield records
            live = self._live
            if live is not None and live[0] >= place.generation:
                generation, sink = live
                async with aclosing(self._running(generation, sink, place, query, watch, follow=follow)) as running:
                    async for records in running:
                        place = records[-1].cursor
                        yield records
                # Of this run nothing more comes.
                if sink.ended:
                    place = max(place, Cursor(generation, sink.progress))
            if not follow:
                return
            await news.wait()

    def _is_live(self, generation: int) -> bool:
        return self._live is not None and self._live[0] == generation

    async def _stored(self, generation: int, place: Cursor, query: LogQuery) -> AsyncGenerator[list[LogRecord], None]:
        directory = str(self._directory / str(generation))
        pieces = _Pieces(generation, place)
        reader = SegmentReader(directory, await _begin(directory, pieces.begin, query))
        try:
            while frames := await in_thread(reader.read):
                if records := pieces.of(frames):
                    yield records
            if missing := await in_thread(lambda: reader.missing):
                yield [_gap(generation, reader.offset, missing)]
        finally:
            reader.close()

    async def _running(
        self, generation: int, sink: OutputSink, place: Cursor, query: LogQuery, watch: _Watch, *, follow: bool
    ) -> AsyncGenerator[list[LogRecord], None]:
        pieces = _Pieces(generation, place)
        stream = FrameStream(sink, await _begin(sink.directory, pieces.begin, query), pinned=False)
        try:
            while frames := await stream.read_frames(wait=follow, stop=lambda: watch.passed):
                if records := pieces.of(frames):
                    yield records
        finally:
            stream.close()
        untold = sink.progress + sink.writer.untold - max(stream.offset, sink.progress)
        if sink.ended and untold > 0:
            yield [_gap(generation, max(stream.offset, sink.progress), untold)]

    def _pass(self, watch: _Watch) -> None:
        watch.passed = True
        self._tell()
        if self._live is not None:
            self._live[1].wake()

    # ---- the last few ----

    async def _from_tail(self, query: LogQuery, count: int) -> LogQuery:
        """The same query, begun where the last `count` records begin; reads backwards in ever larger steps."""
        query = msgspec.structs.replace(query, tail=None)
        still = msgspec.structs.replace(query, follow=False)
        first = query.after or Cursor(0, 0)
        if count == 0:
            return msgspec.structs.replace(query, after=await self._end(first))
        async for place in self._places_before(first):
            # What begins in the middle may be a part of a record: of each stream the first one does not count.
            cut = 0 if place == first else 2
            latest: deque[Cursor] = deque(maxlen=count + cut)
            seen, before = 0, place
            async for records in self.batches(msgspec.structs.replace(still, after=place)):
                for record in records:
                    latest.append(before)
                    before = record.cursor
                    seen += 1
            if seen >= count + cut or place == first:
                # With fewer than asked for, all of them.
                return msgspec.structs.replace(query, after=latest[-count] if seen >= count else place)
        return query

    async def _places_before(self, first: Cursor) -> AsyncIterator[Cursor]:
        """Places further and further from the end; the last one is `first`."""
        for generation in reversed(await in_thread(list_generations, self._directory)):
            if generation < first.generation:
                break
            starts, end = await in_thread(_span, str(self._directory / str(generation)))
            begin = first.offset if generation == first.generation else starts
            step = TAIL_BYTES
            while end - step > begin:
                yield Cursor(generation, end - step)
                step *= 8
            if generation != first.generation:
                yield Cursor(generation, 0)
        yield first

    async def _end(self, first: Cursor) -> Cursor:
        end = first
        async for records in self._pieces(LogQuery(after=first), _Watch()):
            end = records[-1].cursor
        return end

    def _tell(self) -> None:
        news, self._news = self._news, Flag()
        news.set()


def list_generations(directory: Path) -> list[int]:
    """The runs that have left something, ascending; none if there is no such directory. Raises: OSError."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == str(int(name)))


def trim_generations(directory: Path, max_bytes: int, before: int) -> None:
    """Delete the oldest files of the runs before a generation until they have `max_bytes` or less. Blocks.

    Raises: OSError.
    """
    older = [generation for generation in list_generations(directory) if generation < before]
    for generation in older[:-GENERATIONS]:
        shutil.rmtree(directory / str(generation))
    files = [
        (path, path / segment_name(start))
        for path in (directory / str(generation) for generation in older[-GENERATIONS:])
        for start in list_segments(str(path))
    ]
    sizes = [file.stat().st_size for _, file in files]
    excess = sum(sizes) - max_bytes
    for (path, _), size in zip(files, sizes, strict=True):
        if excess <= 0:
            return
        if size:
            delete_oldest(str(path))
            excess -= size


class _Watch:
    """Whether the time until which a reader follows has passed."""

    def __init__(self) -> None:
        self.passed = False


class _Pieces:
    """Frames of one run as records, without what was read before the place where reading began."""

    def __init__(self, generation: int, place: Cursor) -> None:
        mine = generation == place.generation
        self._generation = generation
        self._read = {STDOUT: place.stdout, STDERR: place.stderr} if mine else {STDOUT: 0, STDERR: 0}
        self.begin = place.offset if mine else 0

    def of(self, frames: list[Frame]) -> list[LogRecord]:
        records = []
        for frame in frames:
            data = frame.data
            read = self._read[frame.stream]
            if read > frame.end - len(data):
                data = data[max(read - (frame.end - len(data)), 0) :]
            if data or frame.lost:
                records.append(self._record(frame, data))
        return records

    def _record(self, frame: Frame, data: bytes) -> LogRecord:
        out, err = (read if read > frame.end else 0 for read in self._read.values())
        cursor = Cursor(self._generation, frame.end, out, err)
        return LogRecord(STREAM_NAMES[frame.stream], frame.time_ns / 1e9, data, cursor, frame.lost)


async def _one_by_one(batches: AsyncGenerator[list[LogRecord], None]) -> AsyncGenerator[LogRecord, None]:
    # Closed from the outside in: who stops early leaves nothing open.
    async with aclosing(batches):
        async for records in batches:
            for record in records:
                yield record


async def _begin(directory: str, offset: int, query: LogQuery) -> int:
    if query.since is None:
        return offset
    # A second of reserve: the first byte of a line may be older than its end.
    since_ns = int((query.since - 1.0) * 1e9)
    return max(offset, await in_thread(offset_since, directory, since_ns)) if since_ns > 0 else offset


def _span(directory: str) -> tuple[int, int]:
    """Where what is kept of a run begins and ends. Blocks."""
    starts = list_segments(directory)
    if not starts:
        return 0, 0
    reader = SegmentReader(directory, starts[-1])
    try:
        while reader.read():
            continue
    finally:
        reader.close()
    return starts[0], reader.offset


def _gap(generation: int, offset: int, missing: int) -> LogRecord:
    # Nothing is left to tell when it was written.
    return LogRecord("stdout", 0.0, b"", Cursor(generation, offset + missing), missing)
