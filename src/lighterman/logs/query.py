"""What somebody wants to read of a log: from where, of which time and stream, in pieces or in lines."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import msgspec

from lighterman.errors import InvalidSpec
from lighterman.logs.lines import LineAssembler
from lighterman.logs.reader import Cursor, LogRecord, StreamName

__all__ = ["LogQuery", "Selection", "log_query"]

_STREAMS: tuple[StreamName, ...] = ("stdout", "stderr")
# What a datetime can hold.
_FIRST_S = datetime.datetime.min.replace(tzinfo=datetime.UTC).timestamp()
_LAST_S = datetime.datetime.max.replace(tzinfo=datetime.UTC).timestamp()
# More records than a log that is kept can have; a deque's bound must be a C number.
_MAX_TAIL = 2**31
# Offsets are of 64 bits in the files.
_MAX_CURSOR = 2**64 - 1


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """See `Container.logs`. Times are Unix seconds."""

    after: Cursor | None = None
    follow: bool = False
    since: float | None = None
    until: float | None = None
    tail: int | None = None
    streams: tuple[StreamName, ...] = _STREAMS
    lines: bool = False


def log_query(
    *,
    after: Cursor | None = None,
    follow: bool = False,
    since: datetime.datetime | float | None = None,
    until: datetime.datetime | float | None = None,
    tail: int | None = None,
    streams: StreamName | Iterable[StreamName] = _STREAMS,
    lines: bool = False,
) -> LogQuery:
    """Check what was asked for. Raises: InvalidSpec."""
    if tail is not None and (isinstance(tail, bool) or not isinstance(tail, int) or tail < 0):
        raise InvalidSpec(f"tail {_shown(tail)}: must be a number of records, 0 or more")
    if tail is not None and tail > _MAX_TAIL:
        raise InvalidSpec(f"tail {_shown(tail)}: must be {_MAX_TAIL} or less")
    if after is not None and not _is_cursor(after):
        raise InvalidSpec(f"after {_shown(after)}: must be a record's cursor")
    if not isinstance(streams, Iterable):
        raise InvalidSpec(f"streams {streams!r:.80}: must be 'stdout', 'stderr' or both")
    wanted = (streams,) if isinstance(streams, str) else tuple(streams)
    if not wanted or not set(wanted) <= set(_STREAMS):
        raise InvalidSpec(f"streams {streams!r}: must be 'stdout', 'stderr' or both")
    return LogQuery(
        after=after,
        follow=follow,
        since=_seconds("since", since),
        until=_seconds("until", until),
        tail=tail,
        streams=tuple(stream for stream in _STREAMS if stream in wanted),
        lines=lines,
    )


def _is_cursor(value: object) -> bool:
    fields = msgspec.structs.astuple(value) if isinstance(value, Cursor) else ()
    return bool(fields) and all(type(field) is int and 0 <= field <= _MAX_CURSOR for field in fields)


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:
        # An integer of more digits than Python turns into text.
        return "of thousands of digits"


def _seconds(name: str, value: datetime.datetime | float | None) -> float | None:
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            raise InvalidSpec(f"{name} {value!r}: must have a time zone, as datetime.now(timezone.utc) has")
        return value.timestamp()
    # A NaN fails this comparison too.
    if value is not None and not (isinstance(value, int | float) and _FIRST_S <= value <= _LAST_S):
        raise InvalidSpec(
            f"{name} {_shown(value)}: must be Unix seconds or a datetime with a time zone, of the years 1 to 9999"
        )
    return float(value) if value is not None else None


class Selection:
    """One reader's way from pieces to the records of its query.

    Attributes: over: whether nothing that comes can belong to it.
    """

    def __init__(self, query: LogQuery) -> None:
        self._query = query
        self._assembler = LineAssembler(query.after or Cursor(0, 0)) if query.lines else None
        self._lost = 0
        self._place = query.after or Cursor(0, 0)
        self.over = False

    def of(self, pieces: list[LogRecord]) -> list[LogRecord]:
        """The records that these pieces complete."""
        found: list[LogRecord] = []
        for piece in pieces:
            self._place = piece.cursor
            if piece.stream in self._query.streams:
                self._take(self._with_lost(piece), found)
            elif piece.data:
                # Of which stream it was, nobody can know: it is told with what comes next.
                self._lost += piece.lost
            if self._is_past(piece):
                self.over = True
                break
        return found

    def rest(self) -> list[LogRecord]:
        """What was begun, at the end, and what was lost there."""
        lines = [line for line in self._assembler.flush() if self._wanted(line)] if self._assembler else []
        gap = LogRecord(self._query.streams[0], 0.0, b"", self._place, self._lost)
        return [*lines, gap] if self._lost and self._wanted(gap) else lines

    def _is_past(self, piece: LogRecord) -> bool:
        until = self._query.until
        if until is None or piece.time <= until:
            return False
        # A line belongs to the time of its first byte, however late its end comes.
        return self._assembler is None or not self._assembler.has_begun_by(until)

    def _with_lost(self, piece: LogRecord) -> LogRecord:
        if not self._lost:
            return piece
        lost, self._lost = self._lost, 0
        return msgspec.structs.replace(piece, lost=piece.lost + lost)

    def _take(self, piece: LogRecord, found: list[LogRecord]) -> None:
        if self._assembler is None:
            if self._wanted(piece):
                found.append(piece)
            return
        found += (line for line in self._assembler.feed(piece) if self._wanted(line))

    def _wanted(self, record: LogRecord) -> bool:
        # A gap at the end of a run has no time, and belongs to nobody's interval.
        since, until = self._query.since, self._query.until
        if until is not None and record.time > until:
            return False
        return since is None or record.time >= since
