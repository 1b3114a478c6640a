"""Log segments, the reading side: frames back from the files, while a writer appends, rotates and deletes.

A frame that is not complete yet is not there yet. A file that is open stays readable after it was deleted. What was
deleted before it was opened is counted: the offset of the next frame tells how much is missing. Damage costs its block
(see `keeper/segments.py`) and is counted in the same way; at the very end, where no later frame can tell how much it
was, it is a StoreError.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from lighterman.errors import StoreError
from lighterman.keeper.files import OURS, pread
from lighterman.keeper.segments import (
    BLOCK,
    HEADER_BYTES,
    STDERR,
    STDOUT,
    frame_position,
    list_segments,
    payload_bytes,
    read_untold,
    segment_name,
    unpack_header,
)

__all__ = ["STREAM_NAMES", "Cursor", "Frame", "LogRecord", "SegmentReader", "StreamName", "offset_since", "read_frames"]

StreamName = Literal["stdout", "stderr"]
STREAM_NAMES: dict[int, StreamName] = {STDOUT: "stdout", STDERR: "stderr"}
UNKNOWN_STREAM = 0


class Cursor(msgspec.Struct, frozen=True, order=True):
    """A place in a container's log: before it lie `offset` bytes of output of the run `generation`.

    Attributes:
        stdout, stderr: bytes of that stream up to this offset have been read too, where it is beyond `offset`: so it is
            after a line that was completed while a line of the other stream had begun.
    """

    generation: int
    offset: int
    stdout: int = 0
    stderr: int = 0


class LogRecord(msgspec.Struct, frozen=True):
    """A piece of output as it came, or a line.

    Attributes:
        stream: which of the two.
        time: when its first byte was seen, in seconds since the Unix epoch.
        data: the bytes.
        cursor: the place after it; `logs(after=cursor)` goes on with the next.
        lost: how many bytes are missing right before this record, because they were rotated away or damaged. A record
            without data stands for nothing else: that many were dropped by the container's policy, or are gone at the
            end of a run.
        partial: of lines only: it has no newline, since the run or the reading ended there, or it is very long.
    """

    stream: StreamName
    time: float
    data: bytes
    cursor: Cursor
    lost: int = 0
    partial: bool = False


class Frame(NamedTuple):
    """A piece of output with its place: `end` is the offset after it. `lost` as in `LogRecord`.

    Of a gap that ends where no frame is yet nobody knows the stream, nor the time: UNKNOWN_STREAM, 0.
    """

    stream: int
    time_ns: int
    data: bytes
    end: int
    lost: int


class SegmentReader:
    """Reads one directory forward. Synchronous, one call at a time, from any thread.

    Attributes:
        offset: everything before it has been returned, left out, or counted as lost.
        lost: how many bytes were gone before they could be read. Of what was rotated away or damaged nobody knows the
            stream; of what was dropped only that of the stream that is read.
    """

    def __init__(self, directory: str, after: int = 0, starts: Callable[[], Sequence[int]] | None = None) -> None:
        """`starts` gives the offsets of the files without listing the directory (the writer knows them)."""
        self._fd = -1
        self.offset = after
        self.lost = 0
        self._directory = directory
        self._starts = starts
        self._start = -1
        self._position = 0
        self._walked = 0  # where the last frame of the file that was looked at ends

    def read(self, until: int | None = None, stream: int | None = None, *, nowait: bool = False) -> list[Frame]:
        """The next frames, about 256 KiB of them; none if there are no more now.

        Args:
            until: the offset up to which there are complete frames, if the caller knows.
            stream: leave out the other one.
            nowait: raise BlockingIOError rather than wait for a disk; the same call can then be made without it.

        Raises: StoreError for damage at the end; OSError.
        """
        while until is None or self.offset < until:
            if self._fd < 0 and not self._open_at_offset(nowait):
                break
            frames = self._read_block(until, stream, nowait)
            if frames:
                return frames
            if frames is None and not self._open_next(nowait):
                break
        if until is not None and self.offset < until:
            if self._start > self.offset:
                # All before the file that was begun has been deleted, and nothing is in that one yet.
                lost = self._start - self.offset
                self.lost += lost
                self.offset = self._start
                return [Frame(UNKNOWN_STREAM, 0, b"", self.offset, lost)]
            raise StoreError(f"{self._directory}: the log ends at {self.offset} and should go on to {until}")
        return []

    def skip_rest(self) -> list[Frame]:
        """A damaged end as a gap, when `read` has told of it; nothing if reading began after it. Blocks.

        How much it was, nobody knows: no more than the file has. A writer would go on no later than at that offset.
        Raises: OSError.
        """
        size = os.fstat(self._fd).st_size
        self._position = frame_position(size)
        lost = self._walked + max(size, 1) - self.offset
        if lost <= 0:
            return []
        self.lost += lost
        self.offset += lost
        return [Frame(UNKNOWN_STREAM, 0, b"", self.offset, lost)]

    @property
    def missing(self) -> tuple[int, int, int]:
        """How much of what comes next is known to be gone, though no frame after it tells.

        First what was of either stream, then what was dropped of stdout and of stderr. Blocks. Raises: OSError.
        """
        end = max(self._start, self.offset)
        return end - self.offset, *read_untold(self._directory, end)

    def go_to(self, offset: int) -> None:
        """Go on from another offset."""
        self.close()
        self._start = -1
        self.offset = offset

    def close(self) -> None:
        """Close the file. Reading again opens it again."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        # A generator or a stream that is dropped half read.
        self.close()

    # ---- one block ----

    def _read_block(self, until: int | None, stream: int | None, nowait: bool) -> list[Frame] | None:
        """The frames in the rest of a block; None at the end of the file, for now."""
        position = frame_position(self._position)
        size = os.fstat(self._fd).st_size
        count = min(size - position, BLOCK - position % BLOCK)
        if count < HEADER_BYTES:
            return None
        data = memoryview(self._pread(count, position, nowait))
        frames: list[Frame] = []
        at = 0
        while len(data) - at >= HEADER_BYTES and (until is None or self.offset < until):
            header = unpack_header(data, at, position)
            if header is None:
                if self._skip_damage(position, size):
                    return frames
                return frames or None
            source, flags, length, offset, time_ns = header
            payload = payload_bytes(flags, length)
            body = at + HEADER_BYTES
            if len(data) - body < payload:
                return frames or None
            end = self._walked = offset + length
            if end > self.offset:
                first = max(self.offset - offset, 0)
                lost = max(offset - self.offset, 0)
                self.lost += lost
                if lost and not payload:
                    # Not together with what was dropped: that is of this stream.
                    frames.append(Frame(UNKNOWN_STREAM, 0, b"", offset, lost))
                    lost = 0
                if stream is None or stream == source:
                    dropped = 0 if payload else length - first
                    self.lost += dropped
                    lost += dropped
                    frames.append(Frame(source, time_ns, bytes(data[body + first : body + payload]), end, lost))
                self.offset = end
            position += HEADER_BYTES + payload
            self._position = position
            at = body + payload
            position = frame_position(position)
            if position % BLOCK == 0:
                break
        return frames

    def _skip_damage(self, position: int, size: int) -> bool:
        """Go on at the next block. Returns False if there is none."""
        block = position - position % BLOCK + BLOCK
        if block >= size:
            return False
        self._position = block
        return True

    def _pread(self, count: int, position: int, nowait: bool) -> bytes | bytearray:
        if not nowait:
            return pread(self._fd, count, position)
        if sys.platform == "win32":
            raise BlockingIOError(errno.EAGAIN, "nothing tells whether it would wait")
        data = bytearray(count)
        try:
            # What was written a moment ago is in memory; if it is not, say so instead of waiting for the disk.
            got = os.preadv(self._fd, [data], position, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                raise BlockingIOError(errno.EAGAIN, "this file system can't tell whether it would wait") from error
            raise
        if got < count:
            raise BlockingIOError(errno.EAGAIN, "a part of it is not in memory")
        return data

    # ---- files ----

    def _list(self, nowait: bool) -> Sequence[int]:
        if self._starts is not None:
            return self._starts()
        if nowait:
            raise BlockingIOError(errno.EAGAIN, "the directory has to be listed")
        return list_segments(self._directory)

    def _open(self, start: int, starts: Sequence[int], nowait: bool) -> bool:
        """Returns False if the file was deleted meanwhile."""
        # The newest file's name and inode are in memory, as its writer holds it open; others may have to be looked up.
        if nowait and start != starts[-1]:
            raise BlockingIOError(errno.EAGAIN, "an older file has to be opened")
        path = f"{self._directory}/{segment_name(start)}"
        try:
            fd = os.open(path, os.O_RDONLY | OURS)
        except FileNotFoundError:
            return False
        self.close()
        self._fd = fd
        self._start = self._walked = start
        self._position = 0
        return True

    def _open_at_offset(self, nowait: bool) -> bool:
        """Open the file that has the offset, or else the first one after it. Returns False if there is none."""
        before: Sequence[int] = ()
        while True:
            starts = self._list(nowait)
            if starts and starts == before and self._starts is not None:
                # Of a run that has ended somebody else deletes files, and its writer does not hear of it.
                self._starts = None
                continue
            if not starts or starts == before:
                return False
            before = starts
            start = max((start for start in starts if start <= self.offset), default=starts[0])
            if self._open(start, starts, nowait):
                try:
                    self._seek(nowait)
                except BaseException:
                    self.close()
                    raise
                return True

    def _open_next(self, nowait: bool) -> bool:
        """Go to the file after this one, when this one has been read to its end. Returns False if there is none yet."""
        before: Sequence[int] = ()
        while True:
            starts = [start for start in self._list(nowait) if start > self._start]
            if starts and starts == before and self._starts is not None:
                self._starts = None
                continue
            if not starts or starts == before:
                break
            before = starts
            # Nobody appends to a file that has a successor; but it may have been appended to since it was read.
            if self._more(nowait) or any(self._open(start, starts, nowait) for start in starts):
                return True
        # Read once more: a writer that cuts its last frame rewrites the header.
        if self._damaged(nowait):
            where = f"{self._directory}/{segment_name(self._start)}, byte {frame_position(self._position)}"
            raise StoreError(f"{where}: damaged, and nothing after it tells how much is lost")
        return False

    def _more(self, nowait: bool) -> bool:
        position = frame_position(self._position)
        size = os.fstat(self._fd).st_size
        if size - position < HEADER_BYTES:
            return False
        header = unpack_header(self._pread(HEADER_BYTES, position, nowait), 0, position)
        return header is not None and size - position - HEADER_BYTES >= payload_bytes(header[1], header[2])

    def _damaged(self, nowait: bool) -> bool:
        position = frame_position(self._position)
        if os.fstat(self._fd).st_size - position < HEADER_BYTES:
            return False
        return unpack_header(self._pread(HEADER_BYTES, position, nowait), 0, position) is None

    def _seek(self, nowait: bool) -> None:
        """Find the last block that begins at or before the offset."""
        first, last = 0, max(os.fstat(self._fd).st_size - HEADER_BYTES, 0) // BLOCK
        while first < last:
            middle = (first + last + 1) // 2
            header = unpack_header(self._pread(HEADER_BYTES, middle * BLOCK, nowait), 0, middle * BLOCK)
            # A damaged one is met again when it is walked over.
            if header is not None and header[3] <= self.offset:
                first = middle
            else:
                last = middle - 1
        self._position = first * BLOCK


def offset_since(directory: str, time_ns: int) -> int:
    """The offset of a file before which nothing is as young as `time_ns`. Blocks. Raises: OSError."""
    starts = list_segments(directory)
    found = starts[0] if starts else 0
    for start in starts[1:]:
        header = _first_header(f"{directory}/{segment_name(start)}")
        if header is not None and header[4] >= time_ns:
            break
        if header is not None:
            found = start
    return found


def _first_header(path: str) -> tuple[int, int, int, int, int] | None:
    try:
        fd = os.open(path, os.O_RDONLY | OURS)
    except FileNotFoundError:
        return None
    try:
        data = pread(fd, HEADER_BYTES, 0)
    finally:
        os.close(fd)
    return unpack_header(data, 0, 0) if len(data) == HEADER_BYTES else None


def read_frames(directory: str, after: int = 0, until: int | None = None) -> Iterator[Frame]:
    """All complete frames there are from an offset on, or up to another. Raises: as `SegmentReader.read`."""
    reader = SegmentReader(directory, after)
    try:
        while frames := reader.read(until):
            yield from frames
    finally:
        reader.close()
