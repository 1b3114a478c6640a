"""A log in the forms that other programs read: Docker's json-file, and CRI's log lines.

Both want records that are lines: `export.docker_json(container.logs(lines=True))`. A line longer than 16 KiB comes in
pieces, as it does from dockerd and containerd.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import AsyncIterator, Iterator

from msgspec import structs

from lighterman.ends import to_its_end
from lighterman.keeper.files import OURS
from lighterman.logs.reader import LogRecord
from lighterman.threads import in_thread, look_at_files

__all__ = ["PIECE_BYTES", "cri_lines", "docker_json", "write_file"]

# dockerd's copier and containerd's default (max_container_log_line_size).
PIECE_BYTES = 16 * 1024
# Written at once, so that a thread is worth its while.
_WRITE_BYTES = 256 * 1024


async def docker_json(lines: AsyncIterator[LogRecord]) -> AsyncIterator[bytes]:
    """One JSON object a line: `{"log":"text\\n","stream":"stdout","time":"RFC 3339"}`.

    A piece that is not the last of its line has no newline in `log`. JSON knows no bytes: what is no UTF-8 becomes
    U+FFFD. What was not kept is an entry with an empty `log` and `"attrs":{"lost_bytes":"N"}`.
    """
    async for record in _whole_characters(lines):
        time = _rfc3339(record.time)
        if record.lost:
            yield _json({"log": "", "stream": record.stream, "attrs": {"lost_bytes": str(record.lost)}, "time": time})
        for piece in _pieces(record.data):
            yield _json({"log": piece.decode("utf-8", "replace"), "stream": record.stream, "time": time})


async def cri_lines(lines: AsyncIterator[LogRecord]) -> AsyncIterator[bytes]:
    """`TIME STREAM TAG CONTENT`, the tag F for a line's last piece, P for those before it and for one without an end.

    A line that a run did not end has an empty last piece before the next run's first, which is no part of it.
    Bytes stay what they are. The form has no word for what was not kept.
    """
    begun: dict[str, LogRecord] = {}
    async for record in lines:
        for stream, open_line in tuple(begun.items()):
            if open_line.cursor.generation != record.cursor.generation:
                del begun[stream]
                yield f"{_rfc3339(open_line.time)} {stream} F \n".encode()
        if record.data.endswith(b"\n"):
            begun.pop(record.stream, None)
        elif record.data:
            begun[record.stream] = record
        head = f"{_rfc3339(record.time)} {record.stream} ".encode()
        for piece in _pieces(record.data):
            if piece.endswith(b"\n"):
                yield b"%bF %b" % (head, piece)
            else:
                yield b"%bP %b\n" % (head, piece)


async def _whole_characters(lines: AsyncIterator[LogRecord]) -> AsyncIterator[LogRecord]:
    """The same, but where a very long line comes in several records none ends in the middle of a character of UTF-8."""
    held: dict[str, LogRecord] = {}
    async for record in lines:
        before = held.get(record.stream)
        if before is not None and record.data and _follows(before, record):
            record = structs.replace(record, data=before.data + record.data)
            del held[record.stream]
        elif before is not None:
            # Nothing completes it: it was no character.
            yield held.pop(record.stream)
        border = _whole_up_to(record.data) if record.partial else len(record.data)
        if border < len(record.data):
            held[record.stream] = structs.replace(record, data=record.data[border:], lost=0)
        if border or record.lost or not record.data:
            yield structs.replace(record, data=record.data[:border])
    for record in held.values():
        yield record


def _follows(before: LogRecord, record: LogRecord) -> bool:
    return not record.lost and before.cursor.generation == record.cursor.generation


def _whole_up_to(data: bytes) -> int:
    """The end of the data, or the place up to 3 bytes before it where a character begins that is not complete."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            size = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return len(data) - back if size > back else len(data)
    return len(data)


async def write_file(chunks: AsyncIterator[bytes], path: str | os.PathLike[str]) -> int:
    """Write what one of the above gives into a file, which must not exist yet; 0600. Returns: bytes written.

    Raises: OSError, as FileExistsError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | OURS
    fd = await look_at_files(f"file {os.fspath(path)!r:.140}", lambda: os.open(path, flags, 0o600), os.close)
    with os.fdopen(fd, "wb", buffering=0) as file:
        written = 0
        waiting = bytearray()
        # To its end: a thread that goes on would write into whatever gets the descriptor's number next.
        async for chunk in chunks:
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                written += await to_its_end(in_thread(_write_all, file.fileno(), bytes(waiting)))
                waiting.clear()
        return written + await to_its_end(in_thread(_write_all, file.fileno(), bytes(waiting)))


def _write_all(fd: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return len(data)


def _pieces(data: bytes) -> Iterator[bytes]:
    """Of up to PIECE_BYTES, the newline apart; a character of UTF-8 stays whole."""
    at = 0
    while at < len(data):
        end = at + PIECE_BYTES
        # The newline alone is no piece.
        end = len(data) if end + 1 >= len(data) and data.endswith(b"\n") else _character_border(data, at, end)
        yield data[at:end]
        at = end


def _character_border(data: bytes, at: int, end: int) -> int:
    """`end`, or up to 3 bytes before it; the end of the data if that comes first."""
    if end >= len(data):
        return len(data)
    border = end
    while border > max(end - 3, at + 1) and data[border] & 0xC0 == 0x80:
        border -= 1
    return border if data[border] & 0xC0 != 0x80 else end


def _json(entry: dict[str, object]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _rfc3339(seconds: float) -> str:
    # A float holds the microseconds of this century exactly, and not the nanoseconds.
    microseconds = round(seconds * 1e6)
    whole, rest = divmod(microseconds, 1_000_000)
    return f"{_utc(whole)}.{rest:06d}000Z"


def _utc(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
