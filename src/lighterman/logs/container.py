"""The log of a container over all its runs: a directory `GENERATION/segment-*.log` for each.

What one container keeps is bounded over all runs together: the files of earlier ones make way, but for those that a
reader who may lose nothing has yet to read. Of a run whose files had to go an empty one stays, named
after the offset at its end, so that an old cursor's gap can still be counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Literal

import msgspec

from lighterman import limits
from lighterman.errors import StoreError
from lighterman.flag import Flag
from lighterman.keeper.segments import HEADER_BYTES, STDERR, STDOUT, list_segments, segment_name, trim_runs
from lighterman.logs.query import LogQuery, Selection
from lighterman.logs.reader import STREAM_NAMES, Cursor, Frame, LogRecord, SegmentReader, offset_since
from lighterman.logs.sink import OutputSink, Pump
from lighterman.logs.state import LogState, SinkState
from lighterman.logs.streams import FrameStream
from lighterman.spec import LogPolicy
from lighterman.threads import in_thread

__all__ = ["ContainerLog", "list_generations", "trim_generations"]

log = logging.getLogger(__name__)

# A container that restarts once a minute leaves its last hours, and a directory that is still quickly listed.
GENERATIONS = 1000
# How far before the end the last few records are looked for first.
TAIL_BYTES = 64 * 1024

_STDOUT, _STDERR = STREAM_NAMES[STDOUT], STREAM_NAMES[STDERR]


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
        self._earlier: dict[int, OutputSink] = {}  # runs before it that are not read, or not even written, to their end
        self._expecting = False
        self._news = Flag()

    async def open_run(self, generation: int, *, takeover: bool = False) -> OutputSink:
        """The sink of a run that begins, or that is taken over from another process. Older runs make way for it.

        Raises: OSError.
        """
        path = str(self._directory / str(generation))
        sinks = {**self._earlier, **dict((self._live,) if self._live is not None else ())}
        # Replaced and never changed: threads look at it.
        self._earlier = {run: sink for run, sink in sinks.items() if run != generation and _is_needed(sink)}
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
        try:
            trim_generations(self._directory, self._max_bytes * (self._max_files - 1), generation, self._is_needed)
        except OSError as failed:
            # They stay for now, and the writer tries again with its next file: no reason to refuse a run.
            log.warning("%s: earlier output stays for now: %s", self._directory, failed)
        sink = self._pump.open(path, self._max_bytes, self._max_files, self.policy)
        sink.writer.is_needed = self._is_needed
        return sink

    def _is_needed(self, generation: int) -> bool:
        """Whether an earlier run is still read by somebody who may lose nothing. Called in any thread."""
        sink = self._earlier.get(generation)
        return sink is not None and _is_needed(sink)

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
        Raises: StoreError if the last run's end is damaged; OSError.
        """
        bound = _Bound()
        if not query.follow:
            bound.set(self._live)
        if query.tail is not None:
            query = await self._from_tail(query, query.tail, bound)
        timer = None
        if query.follow and query.until is not None:
            delay_s = max(query.until - time.time(), 0.0)
            timer = asyncio.get_running_loop().call_later(delay_s, self._pass, bound)
        try:
            async with aclosing(self._selected(query, bound)) as selected:
                async for records in selected:
                    yield records
        finally:
            if timer is not None:
                timer.cancel()

    async def _selected(self, query: LogQuery, bound: _Bound) -> AsyncGenerator[list[LogRecord], None]:
        selection = Selection(query)
        async with aclosing(self._pieces(query, bound)) as all_pieces:
            async for pieces in all_pieces:
                if records := selection.of(pieces):
                    yield records
                if selection.over:
                    break
        if records := selection.rest():
            yield records

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

    async def _pieces(self, query: LogQuery, bound: _Bound) -> AsyncGenerator[list[LogRecord], None]:
        place = query.after or Cursor(0, 0)
        first = place.generation
        while True:
            news = self._news
            if not self._expecting:
                bound.set(self._live)
            is_last_look = bound.is_set
            for generation in await self._runs(first, bound):
                # Read once more in the next round, from its last record on: it may not have been at its end.
                first = generation
                async with aclosing(self._of_run(generation, place, query, bound)) as run:
                    async for records in run:
                        place = records[-1].cursor
                        yield records
            if is_last_look:
                return
            # Also set if a run has begun since the runs were listed.
            await news.wait()

    async def _runs(self, first: int, bound: _Bound) -> list[int]:
        """The runs that there are from `first` on, ascending."""
        while True:
            live = self._live
            listed = await in_thread(list_generations, self._directory)
            # A run that began while the names were read may be missing where a later one is not.
            if live is self._live:
                runs = {*listed, *(() if live is None else (live[0],))}
                return sorted(run for run in runs if first <= run and (bound.last is None or run <= bound.last))

    async def _of_run(
        self, generation: int, place: Cursor, query: LogQuery, bound: _Bound
    ) -> AsyncGenerator[list[LogRecord], None]:
        if self._writing(generation) is None:
            async with aclosing(self._stored(generation, place, query)) as stored:
                async for records in stored:
                    place = records[-1].cursor
                    yield records
        # Now, or since it was taken over from the keeper while its files were read.
        if (sink := self._writing(generation)) is not None:
            async with aclosing(self._running(generation, sink, place, query, bound)) as running:
                async for records in running:
                    yield records

    def _writing(self, generation: int) -> OutputSink | None:
        """The sink of the latest run, or of an earlier one that is not written to its end yet."""
        if self._live is not None and self._live[0] == generation:
            return self._live[1]
        earlier = self._earlier.get(generation)
        return earlier if earlier is not None and not earlier.ended else None

    async def _stored(self, generation: int, place: Cursor, query: LogQuery) -> AsyncGenerator[list[LogRecord], None]:
        directory = str(self._directory / str(generation))
        pieces = _Pieces(generation, place, query)
        reader = SegmentReader(directory, await _begin(directory, pieces.begin, query))
        try:
            # Not behind a writer that may be faster: what is live has its own way.
            while self._writing(generation) is None and (frames := await self._read_stored(reader, generation)):
                if records := pieces.of(frames):
                    yield records
            if self._writing(generation) is not None:
                return
            missing = await in_thread(lambda: reader.missing)
            if gaps := pieces.gaps(reader.offset, *missing):
                yield gaps
        finally:
            reader.close()

    async def _read_stored(self, reader: SegmentReader, generation: int) -> list[Frame]:
        """As `SegmentReader.read`; with a later run behind it a damaged end is a gap, and no reason to stop."""
        try:
            return await in_thread(reader.read)
        except StoreError as failed:
            later = await in_thread(list_generations, self._directory)
            if later and later[-1] > generation:
                log.warning("%s", failed)
                return await in_thread(reader.skip_rest)
            raise

    async def _running(
        self, generation: int, sink: OutputSink, place: Cursor, query: LogQuery, bound: _Bound
    ) -> AsyncGenerator[list[LogRecord], None]:
        pieces = _Pieces(generation, place, query)
        stream = FrameStream(sink, await _begin(sink.directory, pieces.begin, query), pinned=False)
        try:
            while frames := await stream.read_frames(until=lambda: bound.offset(generation, sink)):
                if records := pieces.of(frames):
                    yield records
        finally:
            stream.close()
        if sink.ended and stream.offset >= sink.progress:
            told = stream.offset - sink.progress
            out, err = sink.writer.untold_each
            if gaps := pieces.gaps(stream.offset, 0, max(out - told, 0), err - max(min(told - out, err), 0)):
                yield gaps

    def _pass(self, bound: _Bound) -> None:
        bound.set(self._live)
        self._tell()
        for sink in (*self._earlier.values(), *((self._live[1],) if self._live is not None else ())):
            sink.wake()

    # ---- the last few ----

    async def _from_tail(self, query: LogQuery, count: int, bound: _Bound) -> LogQuery:
        """The same query, begun where the last `count` records begin; reads backwards in ever larger steps."""
        query = msgspec.structs.replace(query, tail=None)
        still = msgspec.structs.replace(query, follow=False)
        first = query.after or Cursor(0, 0)
        if query.follow:
            # What is there now is looked through; only the reading goes on.
            bound = _Bound()
            bound.set(self._live)
        if count == 0:
            return msgspec.structs.replace(query, after=await self._end(first, bound))
        async for place in self._places_before(first, bound):
            # What begins in the middle may be a part of a record: of each stream the first one does not count.
            cut = 0 if place == first else 2
            latest: deque[Cursor] = deque(maxlen=count + cut)
            seen, before = 0, place
            async for records in self._selected(msgspec.structs.replace(still, after=place), bound):
                for record in records:
                    # What only tells of a gap is no record that was asked for.
                    if record.data:
                        latest.append(before)
                        seen += 1
                    before = record.cursor
            if seen >= count + cut or place == first:
                # With fewer than asked for, all of them.
                return msgspec.structs.replace(query, after=latest[-count] if seen >= count else place)
        return query

    async def _places_before(self, first: Cursor, bound: _Bound) -> AsyncIterator[Cursor]:
        """Places further and further from the end; the last one is `first`."""
        for generation in reversed(await self._runs(first.generation, bound)):
            live, directory = self._live, str(self._directory / str(generation))
            known = bound.offset(generation, live[1]) if live is not None and live[0] == generation else None
            starts, end = await in_thread(_span, directory, known)
            begin = first.offset if generation == first.generation else starts
            step = TAIL_BYTES
            while end - step > begin:
                yield Cursor(generation, end - step)
                step *= 8
            if generation != first.generation:
                yield Cursor(generation, 0)
        yield first

    async def _end(self, first: Cursor, bound: _Bound) -> Cursor:
        end = first
        async for records in self._pieces(LogQuery(after=first), bound):
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


def trim_generations(
    directory: Path, max_bytes: int, before: int, is_needed: Callable[[int], bool] = lambda generation: False
) -> None:
    """Delete the oldest files of the runs before a generation until they have `max_bytes` or less. Blocks.

    Args: is_needed: whether a run has to stay all the same. Raises: OSError.
    """
    older = [generation for generation in list_generations(directory) if generation < before]
    for generation in older[:-GENERATIONS]:
        if not is_needed(generation):
            shutil.rmtree(directory / str(generation))
    trim_runs(str(directory), max_bytes, before, is_needed)


class _Bound:
    """How far a reading goes: without end while it follows; else up to what there was when it was set, and no further.

    A program that writes faster than it is read would never let it come to an end.

    Attributes: last: the last run, if one was under way.
    """

    def __init__(self) -> None:
        self.is_set = False
        self.last: int | None = None
        self._offsets: dict[int, int] = {}

    def set(self, live: tuple[int, OutputSink] | None) -> None:
        """From now on; again is nothing."""
        if self.is_set:
            return
        self.is_set = True
        if live is not None:
            self.last = live[0]
            self._offsets[live[0]] = live[1].progress

    def offset(self, generation: int, sink: OutputSink) -> int | None:
        """In a run that is under way; None for no end."""
        return self._offsets.setdefault(generation, sink.progress) if self.is_set else None


class _Pieces:
    """Frames of one run as records, without what was read before the place where reading began."""

    def __init__(self, generation: int, place: Cursor, query: LogQuery) -> None:
        mine = generation == place.generation
        # Of a gap nobody may know which stream it was: then it is told to whoever asks for either.
        self._unknown = query.streams[0]
        self._generation = generation
        self._read = {STDOUT: place.stdout, STDERR: place.stderr} if mine else {STDOUT: 0, STDERR: 0}
        self.begin = place.offset if mine else 0

    def of(self, frames: list[Frame]) -> list[LogRecord]:
        records = []
        for frame in frames:
            data = frame.data
            read = self._read.get(frame.stream, 0)
            if read > frame.end - len(data):
                data = data[max(read - (frame.end - len(data)), 0) :]
            if data or frame.lost:
                records.append(self._record(frame, data))
        return records

    def _record(self, frame: Frame, data: bytes) -> LogRecord:
        out, err = (read if read > frame.end else 0 for read in self._read.values())
        cursor = Cursor(self._generation, frame.end, out, err)
        stream = STREAM_NAMES.get(frame.stream, self._unknown)
        return LogRecord(stream, frame.time_ns / 1e9, data, cursor, frame.lost)

    def gaps(self, offset: int, unknown: int, stdout: int, stderr: int) -> list[LogRecord]:
        """What is missing at the end of the run."""
        gaps: list[LogRecord] = []
        for stream, missing in ((self._unknown, unknown), (_STDOUT, stdout), (_STDERR, stderr)):
            if missing > 0:
                offset += missing
                # Nothing is left to tell when it was written.
                gaps.append(LogRecord(stream, 0.0, b"", Cursor(self._generation, offset), missing))
        return gaps


def _is_needed(sink: OutputSink) -> bool:
    needed = sink.needed_from()
    return not sink.ended or (needed is not None and needed < sink.writer.end)


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


def _span(directory: str, end: int | None) -> tuple[int, int]:
    """Where what is kept of a run begins and ends; `end` if it is known. Blocks."""
    starts = list_segments(directory)
    if not starts:
        return 0, 0
    if end is not None:
        return starts[0], end
    reader = SegmentReader(directory, starts[-1])
    # No more than there is now: the keeper may be writing.
    left = _size(f"{directory}/{segment_name(starts[-1])}")
    try:
        while left > 0 and (frames := reader.read()):
            left -= sum(HEADER_BYTES + len(frame.data) for frame in frames)
    except StoreError:
        # Who reads from there is told.
        return starts[0], reader.offset
    finally:
        reader.close()
    return starts[0], reader.offset


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
