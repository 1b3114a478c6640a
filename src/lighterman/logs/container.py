"""The log of a container over all its runs: a directory `GENERATION/segment-*.log` for each.

What one container keeps is bounded over all runs together. Of a run whose files had to go an empty one stays, named
after the offset at its end, so that an old cursor's gap can still be counted.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from lighterman import limits
from lighterman.flag import Flag
from lighterman.keeper.segments import SegmentWriter, list_segments, segment_name
from lighterman.logs.pump import OutputPump
from lighterman.logs.reader import STREAM_NAMES, Cursor, Frame, LogRecord, SegmentReader
from lighterman.logs.sink import OutputSink
from lighterman.logs.streams import FrameStream

__all__ = ["ContainerLog", "list_generations", "trim_generations"]

# A container that restarts once a minute leaves its last hours, and a directory that is still quickly listed.
GENERATIONS = 1000


class ContainerLog:
    """One container's log. Methods are called on the event loop."""

    def __init__(
        self,
        pump: OutputPump,
        directory: Path,
        max_bytes: int = limits.SEGMENT_BYTES,
        max_files: int = limits.SEGMENT_FILES,
    ) -> None:
        self._pump = pump
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._live: tuple[int, OutputSink] | None = None
        self._expecting = False
        self._news = Flag()

    async def open_run(self, generation: int, *, takeover: bool = False) -> OutputSink:
        """The sink of a run that begins, or that is taken over from another process. Older runs make way for it.

        Raises: OSError.
        """
        path = str(self._directory / str(generation))
        # The first run has nothing to look through, and is the one that somebody waits for.
        if generation > 1 or takeover:
            room = self._max_bytes * (self._max_files - 1)
            await asyncio.to_thread(trim_generations, self._directory, room, generation)
            sink = await asyncio.to_thread(self._pump.open, path, self._max_bytes, self._max_files)
        else:
            sink = self._pump.open(path, self._max_bytes, self._max_files)
        self._live = (generation, sink)
        self._expecting = True
        self._tell()
        return sink

    def end(self) -> None:
        """No further run is due: who follows comes to an end after the last byte. A new run takes it back."""
        self._expecting = False
        self._tell()

    async def records(self, after: Cursor | None = None, *, follow: bool = False) -> AsyncIterator[LogRecord]:
        """Everything there is after a cursor, in order, each piece once; with `follow` also what comes, until `end`.

        Never holds the container up: who reads too slowly finds what was rotated away counted in `LogRecord.lost`.
        Raises: StoreError; OSError.
        """
        place = after or Cursor(0, 0)
        while True:
            news = self._news
            expecting = self._expecting
            for generation in await asyncio.to_thread(list_generations, self._directory):
                if generation >= place.generation and not self._is_live(generation):
                    async for record in self._stored(generation, place):
                        place = record.cursor
                        yield record
            live = self._live
            if live is not None and live[0] >= place.generation:
                async for record in self._running(*live, place, follow and expecting):
                    place = record.cursor
                    yield record
                # Of this run nothing more comes.
                if live[1].ended:
                    place = max(place, Cursor(live[0], live[1].progress))
            if not follow or not expecting:
                return
            await news.wait()

    def _is_live(self, generation: int) -> bool:
        return self._live is not None and self._live[0] == generation

    async def _stored(self, generation: int, place: Cursor) -> AsyncIterator[LogRecord]:
        reader = SegmentReader(str(self._directory / str(generation)), _offset(generation, place))
        try:
            while frames := await asyncio.to_thread(reader.read):
                for frame in frames:
                    yield _record(generation, frame)
            if reader.missing:
                yield _gap(generation, reader.offset, reader.missing)
        finally:
            reader.close()

    async def _running(
        self, generation: int, sink: OutputSink, place: Cursor, follow: bool
    ) -> AsyncIterator[LogRecord]:
        stream = FrameStream(sink, _offset(generation, place), pinned=False)
        try:
            while frames := await stream.read_frames(wait=follow):
                for frame in frames:
                    yield _record(generation, frame)
        finally:
            stream.close()

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
        (path, start, path / segment_name(start))
        for path in (directory / str(generation) for generation in older[-GENERATIONS:])
        for start in list_segments(str(path))
    ]
    sizes = [file.stat().st_size for _, _, file in files]
    excess = sum(sizes) - max_bytes
    for (path, start, file), size in zip(files, sizes, strict=True):
        if excess <= 0:
            return
        if start == list_segments(str(path))[-1]:
            _leave_end(path)
        if size:
            file.unlink()
            excess -= size


def _leave_end(path: Path) -> None:
    """Put an empty file at the end of a run, so that its last file can go."""
    writer = SegmentWriter(str(path), limits.SEGMENT_BYTES, limits.SEGMENT_FILES)
    try:
        writer.cut()
        (path / segment_name(writer.end)).touch(0o600)
    finally:
        writer.close()


def _offset(generation: int, place: Cursor) -> int:
    return place.offset if generation == place.generation else 0


def _record(generation: int, frame: Frame) -> LogRecord:
    stream = STREAM_NAMES[frame.stream]
    return LogRecord(stream, frame.time_ns / 1e9, frame.data, Cursor(generation, frame.end), frame.lost)


def _gap(generation: int, offset: int, missing: int) -> LogRecord:
    # Nothing is left to tell when it was written.
    return LogRecord("stdout", 0.0, b"", Cursor(generation, offset + missing), missing)
