"""Lines put together from the pieces that were read, such that reading can go on after any of them.

The two streams interleave: when a line of one is complete, the beginning of a line of the other may have been read and
not been given out. The cursor after a line therefore is the place of the oldest byte that is still owed, and how far
beyond it the other stream has been given out (see `Cursor`).
"""

from __future__ import annotations

from collections.abc import Iterator

from lighterman.logs.reader import Cursor, LogRecord, StreamName

__all__ = ["LINE_BYTES", "LineAssembler"]

# A line longer than this comes in pieces of it: a program that never writes a newline must not fill our memory.
LINE_BYTES = 1024 * 1024


class _Begun:
    """A line without its end: where its first byte lies, where the place after its last one is."""

    __slots__ = ("end", "parts", "size", "start", "time")

    def __init__(self, start: int, time: float) -> None:
        self.start = start
        self.end = start
        self.time = time
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, data: bytes, end: int) -> None:
        self.parts.append(data)
        self.size += len(data)
        self.end = end


class LineAssembler:
    """One reader's. Records go in as they were read; `flush` gives out what has no newline, at the end of a run."""

    def __init__(self, after: Cursor) -> None:
        self._generation = after.generation
        self._read_to = after.offset
        self._given: dict[StreamName, int] = {"stdout": after.stdout, "stderr": after.stderr}
        self._begun: dict[StreamName, _Begun] = {}

    def feed(self, record: LogRecord) -> Iterator[LogRecord]:
        """The lines that this piece completes. What is lost comes as a record of its own, between whole pieces."""
        cursor = record.cursor
        if cursor.generation != self._generation:
            yield from self.flush()
            self._generation = cursor.generation
            self._given = {"stdout": 0, "stderr": 0}
        begin = cursor.offset - len(record.data)
        if record.lost:
            yield from self.flush()
            self._read_to = begin
            yield LogRecord(record.stream, record.time, b"", self._cursor(begin), record.lost)
        yield from self._split(record.stream, record.time, record.data, begin)
        self._read_to = cursor.offset

    def has_begun_by(self, time: float) -> bool:
        """Whether a line that was begun by then waits for its end."""
        return any(begun.time <= time for begun in self._begun.values())

    def flush(self) -> Iterator[LogRecord]:
        """What was begun, as partial lines, the older one first."""
        for stream, _ in sorted(self._begun.items(), key=lambda item: item[1].start):
            yield self._finish(stream, self._read_to, partial=True)

    def _split(self, stream: StreamName, time: float, data: bytes, begin: int) -> Iterator[LogRecord]:
        at = 0
        while at < len(data):
            begun = self._begun.get(stream)
            if begun is None:
                begun = self._begun[stream] = _Begun(begin + at, time)
            longest = at + LINE_BYTES - begun.size
            newline = data.find(b"\n", at, longest)
            stop = newline + 1 if newline >= 0 else min(longest, len(data))
            begun.add(data[at:stop], begin + stop)
            at = stop
            if newline >= 0 or begun.size >= LINE_BYTES:
                yield self._finish(stream, begin + at, partial=newline < 0)

    def _finish(self, stream: StreamName, read_to: int, *, partial: bool) -> LogRecord:
        begun = self._begun.pop(stream)
        self._given[stream] = begun.end
        data = begun.parts[0] if len(begun.parts) == 1 else b"".join(begun.parts)
        return LogRecord(stream, begun.time, data, self._cursor(read_to), 0, partial)

    def _cursor(self, read_to: int) -> Cursor:
        owed = min((begun.start for begun in self._begun.values()), default=read_to)
        offset = min(owed, read_to)
        out, err = (given if given > offset else 0 for given in self._given.values())
        return Cursor(self._generation, offset, out, err)
