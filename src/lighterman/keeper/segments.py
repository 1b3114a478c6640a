"""Log segments, the writing side: output goes from a pipe into files, exactly, whoever is killed in between.

Standard library only, and none of its expensive parts: the keeper loads this file by its path, without the package.

A directory holds the output of one run of one process, in files `segment-OFFSET.log` (20 digits), each a row of frames:

    offset  size  field     why
    0       4     magic     b"LMS1"; the digit is the version of this layout
    4       1     stream    1 stdout, 2 stderr
    5       1     flags     COPIED: the payload never was in a pipe, so a short one can't be completed
    6       2     reserved  0
    8       4     length    of the payload, 1 or more
    12      4     checksum  CRC-32 of the other 28 bytes. The payload has none: splice(2) never shows it to us
    16      8     offset    payload bytes of both streams before this frame: a gap between two frames counts itself
    24      8     time      nanoseconds since the Unix epoch, when the first byte was seen

All numbers are little-endian. The header is written *before* splice(2) moves the payload out of the pipe: what a kill
leaves behind is a short last frame, and the pipe still holds the very bytes that are missing.

No frame crosses a multiple of BLOCK in its file, and what is too short for a header and one byte before it stays empty.
So reading can begin at any multiple of BLOCK: the end of a file is found by walking through one block, a time or an
offset by bisection, and damage costs no more than its block. Scanning for the magic would let a container forge frames.

Safe against the death of any process of ours, not against loss of power (nothing here calls fsync).
"""

import errno
import os
import select
from fcntl import ioctl
from struct import Struct
from termios import FIONREAD
from time import time_ns
from zlib import crc32

STDOUT = 1
STDERR = 2

COPIED = 1

MAGIC = b"LMS1"
_FIELDS = Struct("<4sBBHIIQQ")
_BEFORE_CHECKSUM = Struct("<4sBBHI")
_AFTER_CHECKSUM = Struct("<QQ")
_INT = Struct("i")
HEADER_BYTES = _FIELDS.size

# 2,000 frames of 100 bytes, walked in a millisecond; large enough that a header per block costs nothing.
BLOCK = 256 * 1024
# A smaller file would be mostly names and inodes.
MIN_FILE_BYTES = 4096

_PREFIX = "segment-"
_SUFFIX = ".log"
_DIGITS = 20

# Linux's number; the os module has it as SPLICE_F_NONBLOCK only from 3.10 on with a new enough libc.
_NONBLOCK = 2
# What a write to a pipe moves whole or not at all (PIPE_BUF).
_ATOMIC = 4096


def segment_name(offset: int) -> str:
    """The name of the file whose first frame has this offset."""
    return f"{_PREFIX}{offset:0{_DIGITS}d}{_SUFFIX}"


def segment_offset(name: str) -> int | None:
    """The inverse of `segment_name`; None for any other name."""
    digits = name[len(_PREFIX) : -len(_SUFFIX)]
    if len(name) == len(_PREFIX) + _DIGITS + len(_SUFFIX) and digits.isascii() and digits.isdigit():
        offset = int(digits)
        return offset if name == segment_name(offset) else None
    return None


def list_segments(directory: str) -> list[int]:
    """The offsets of a directory's files, ascending; none if the directory does not exist. Raises: OSError."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(offset for offset in map(segment_offset, names) if offset is not None)


def pack_header(stream: int, flags: int, length: int, offset: int, time: int) -> bytes:
    """One frame header."""
    before = _BEFORE_CHECKSUM.pack(MAGIC, stream, flags, 0, length)
    after = _AFTER_CHECKSUM.pack(offset, time)
    return before + crc32(after, crc32(before)).to_bytes(4, "little") + after


def unpack_header(
    buffer: "bytes | bytearray | memoryview", at: int, position: int
) -> tuple[int, int, int, int, int] | None:
    """(stream, flags, length, offset, time in ns) of the header at `buffer[at:]`; None if it is damaged.

    `position` is its place in the file: a length that would cross a block can only be damage.
    """
    magic, stream, flags, _, length, checksum, offset, time = _FIELDS.unpack_from(buffer, at)
    if magic != MAGIC or length == 0 or length > room_at(position) or stream not in (STDOUT, STDERR):
        return None
    before = _BEFORE_CHECKSUM.pack(magic, stream, flags, _, length)
    if crc32(_AFTER_CHECKSUM.pack(offset, time), crc32(before)) != checksum:
        return None
    return stream, flags, length, offset, time


def room_at(position: int) -> int:
    """How much payload a frame that begins at this place of a file can have; below 1 it begins at the next block."""
    return BLOCK - position % BLOCK - HEADER_BYTES


def frame_position(position: int) -> int:
    """Where the frame after one that ends at `position` begins."""
    return position if room_at(position) > 0 else position + BLOCK - position % BLOCK


def buffered(fd: int) -> int:
    """The number of bytes in a pipe (FIONREAD)."""
    count: int = _INT.unpack(ioctl(fd, FIONREAD, b"\0\0\0\0"))[0]
    return count


def at_end(fd: int) -> bool:
    """Whether a pipe is empty and nobody holds its write end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    events = poll.poll(0)
    # The order matters: after the hang-up nobody can add a byte.
    return bool(events) and bool(events[0][1] & select.POLLHUP) and buffered(fd) == 0


class SegmentWriter:
    """Writes the frames of one directory. One at a time, in one thread at a time.

    Opening repairs what a kill left: a short header is cut off, a short payload is `owed`, damage is left behind by
    going on in a new file. Nothing is created before the first byte. Every method may raise OSError (a full disk, for
    one): nothing is lost then, the pipe keeps what was not moved, and the same call can be made again.

    Attributes:
        end: payload bytes of all complete frames so far; the offset of the next frame. Survives rotation and reopening.
        owed: (stream, bytes) that the last frame lacks, or None. They are the next bytes of that stream's pipe.
        keep_from: the lowest offset that a reader still needs, or None. Files from there on are not deleted.
    """

    __slots__ = (
        "_directory",
        "_fd",
        "_flags",
        "_max_bytes",
        "_max_files",
        "_position",
        "_starts",
        "_time",
        "_written",
        "end",
        "keep_from",
        "owed",
    )

    def __init__(self, directory: str, max_bytes: int, max_files: int) -> None:
        """Open. `max_bytes` bounds one file, `max_files` their number (one more while `keep_from` holds the oldest)."""
        self._directory = directory
        self._max_bytes = max(max_bytes, MIN_FILE_BYTES)
        self._max_files = max(max_files, 1)
        self._fd = -1
        self._position = 0  # in the file, of the next frame; of the owed one while one is owed
        self._written = 0  # payload bytes of the owed frame that are in the file
        self._flags = 0  # of the owed frame
        self._time = 0  # likewise
        self.end = 0
        self.owed: tuple[int, int] | None = None
        self.keep_from: int | None = None
        self._starts = list_segments(directory)
        if self._starts:
            try:
                self._reopen(self._starts[-1])
            except BaseException:
                self.close()
                raise

    # ---- what callers do ----

    def splice(self, stream: int, fd: int, max_bytes: int) -> int:
        """Move up to `max_bytes` out of a pipe, without waiting.

        Returns: how many, 0 at the end of file. Fewer than there are does not mean that there are no more.
        Raises: BlockingIOError if the pipe is empty, or if `owed` names the other stream (which has to go first);
            OSError if nothing could be written. It raises only when nothing was moved.
        """
        self._settle(stream)
        wanted = min(buffered(fd), max_bytes)
        if wanted <= 0:
            if max_bytes <= 0 or not at_end(fd):
                raise BlockingIOError(errno.EAGAIN, "the pipe is empty")
            self.cut()
            return 0
        moved = 0
        try:
            while moved < wanted:
                if self.owed is None:
                    self._begin(stream, 0, wanted - moved)
                count = self._fill(fd, wanted - moved)
                if count == 0:
                    break
                moved += count
        except OSError:
            if moved == 0:
                raise
        return moved

    def splice_through(self, stream: int, tty_fd: int, pipe_r: int, pipe_w: int, max_bytes: int) -> int:
        """As `splice`, for a terminal: splice(2) can't go from a pty into a file, so it goes through a pipe.

        The pty must be non-blocking. The pipe's ends must outlive a kill as a container's pipe does (the keeper holds
        both): what was moved into it and not out of it comes first in the next call, of whichever process.
        Returns 0 when no process has the terminal open (EIO); another may open it again.
        """
        moved = 0
        while moved < max_bytes:
            try:
                moved += self.splice(stream, pipe_r, max_bytes - moved)
            except BlockingIOError:
                if self.owed is not None and self.owed[0] != stream:
                    raise
                try:
                    ended = _tty_to_pipe(tty_fd, pipe_w, max_bytes - moved) == 0
                except BlockingIOError:
                    if moved == 0:
                        raise
                    break
                if ended:
                    break
            except OSError:
                if moved == 0:
                    raise
                break
        return moved

    def write(self, stream: int, data: bytes, flags: int = 0) -> int:
        """Write bytes that are in no pipe. Returns how many went in; raises only if none did (see `splice`)."""
        self._settle(0)
        done = 0
        try:
            while done < len(data):
                length = self._begin(stream, flags | COPIED, len(data) - done)
                done += self._copy(data[done : done + length])
        except OSError:
            if done == 0:
                raise
        return done

    def cut(self) -> None:
        """End the owed frame where it is: its pipe is gone. What the file has of it stays."""
        if self.owed is None:
            return
        stream, _ = self.owed
        if self._written == 0:
            os.ftruncate(self._fd, self._position)
        else:
            header = pack_header(stream, self._flags, self._written, self.end, self._time)
            if os.pwrite(self._fd, header, self._position) != HEADER_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._position += HEADER_BYTES + self._written
            self.end += self._written
        self._written = 0
        self.owed = None

    @property
    def starts(self) -> tuple[int, ...]:
        """The offsets of the files there are, ascending."""
        return tuple(self._starts)

    @property
    def overfull(self) -> bool:
        """Whether a reader that is behind keeps more files than there should be: better stop, and `prune` later."""
        return len(self._starts) > self._max_files

    def prune(self) -> None:
        """Delete the oldest files beyond the limit that nobody needs. Rotation does it by itself."""
        self._delete_beyond(self._max_files)

    def close(self) -> None:
        """Close the file. An owed frame stays owed, for the next writer of this directory."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    # ---- one frame ----

    def _settle(self, stream: int) -> None:
        """Make way for a frame of this stream, or let it complete its own."""
        if self.owed is None:
            return
        if self._flags & COPIED:
            self.cut()
        elif self.owed[0] != stream:
            raise BlockingIOError(errno.EAGAIN, "the other stream has to complete its frame first")

    def _begin(self, stream: int, flags: int, length: int) -> int:
        """Write the header of a frame of up to `length` bytes; from here on they are owed. Returns how many."""
        position = frame_position(self._position)
        if self._fd < 0 or position + HEADER_BYTES >= self._max_bytes:
            self._rotate()
            position = 0
        length = min(length, room_at(position), self._max_bytes - position - HEADER_BYTES)
        time = time_ns()
        if os.pwrite(self._fd, pack_header(stream, flags, length, self.end, time), position) != HEADER_BYTES:
            os.ftruncate(self._fd, position)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._position = position
        self._written = 0
        self._flags = flags
        self._time = time
        self.owed = (stream, length)
        return length

    def _fill(self, fd: int, limit: int) -> int:
        """Move payload into the owed frame. Returns 0 if the pipe turned out to be empty."""
        if self.owed is None:
            return 0
        stream, missing = self.owed
        where = self._position + HEADER_BYTES + self._written
        try:
            count = os.splice(fd, self._fd, min(missing, limit), offset_dst=where, flags=_NONBLOCK)
        except BlockingIOError:
            return 0
        self._account(stream, missing, count)
        return count

    def _copy(self, data: bytes) -> int:
        """Write the payload of the frame just begun, whole or not at all."""
        try:
            count = os.pwrite(self._fd, data, self._position + HEADER_BYTES)
        except OSError:
            self.cut()
            raise
        stream, missing = self.owed or (0, 0)
        self._account(stream, missing, count)
        self.cut()
        return count

    def _account(self, stream: int, missing: int, count: int) -> None:
        self._written += count
        if count < missing:
            self.owed = (stream, missing - count)
            return
        self._position += HEADER_BYTES + self._written
        self.end += self._written
        self._written = 0
        self.owed = None

    # ---- files ----

    def _rotate(self) -> None:
        # Room for the new one first: on a full disk it is the oldest that makes way.
        self._delete_beyond(self._max_files - 1)
        if not self._starts:
            os.makedirs(self._directory, 0o700, exist_ok=True)
        self._open(self.end, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._starts.append(self.end)
        self._position = 0

    def _open(self, start: int, flags: int) -> None:
        path = f"{self._directory}/{segment_name(start)}"
        # Not O_APPEND: splice(2) refuses it.
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.close()
        self._fd = fd

    def _delete_beyond(self, count: int) -> None:
        while len(self._starts) > max(count, 0):
            oldest = self._starts[0]
            ends = self._starts[1] if len(self._starts) > 1 else self.end
            if self.keep_from is not None and ends > self.keep_from:
                return
            try:
                os.unlink(f"{self._directory}/{segment_name(oldest)}")
            except OSError as error:
                # Somebody who tidied up was faster: gone is what was wanted.
                if error.errno != errno.ENOENT:
                    raise
            del self._starts[0]

    def _reopen(self, start: int) -> None:
        self._open(start, os.O_RDWR)
        size = os.fstat(self._fd).st_size
        end = self._walk(start, size)
        while end is not None and end < size:
            # A kill in the middle of a header. If it was the first of its block, the offset is in the block before.
            os.ftruncate(self._fd, end)
            size = end
            end = self._walk(start, size)
        if end is None:
            # Go on in a new file, whose name must be new. How much payload the damage hides can't be known; the size
            # of the file is the upper bound.
            self.close()
            self.end = max(self.end, start) + max(size, 1)
        elif self.owed is not None and self._flags & COPIED:
            self.cut()

    def _walk(self, start: int, size: int) -> "int | None":
        """Find the end of a file by its last block. Returns up to where its headers are whole, None if damaged."""
        block = max(size - 1, 0) // BLOCK * BLOCK
        data = _read_all(self._fd, block, size - block)
        self.end = start
        self._position = position = block
        while position - block < len(data):
            if len(data) - (position - block) < HEADER_BYTES:
                return position
            header = unpack_header(data, position - block, position)
            if header is None or header[3] < self.end:
                return None
            stream, flags, length, offset, time = header
            present = len(data) - (position - block) - HEADER_BYTES
            if present < length:
                self.end = offset
                self._position = position
                self._written = present
                self._flags = flags
                self._time = time
                self.owed = (stream, length - present)
                return size
            self.end = offset + length
            self._position = position + HEADER_BYTES + length
            position = frame_position(self._position)
        return size


def _read_all(fd: int, position: int, count: int) -> bytes:
    pieces = []
    while count > 0:
        piece = os.pread(fd, count, position)
        if not piece:
            break
        pieces.append(piece)
        position += len(piece)
        count -= len(piece)
    return b"".join(pieces)


def _tty_to_pipe(tty_fd: int, pipe_w: int, max_bytes: int) -> int:
    """Returns 0 when no process has the terminal open. Raises BlockingIOError when it has nothing to say."""
    try:
        try:
            return os.splice(tty_fd, pipe_w, max_bytes, flags=_NONBLOCK)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Linux 5.10 to 5.15 can't splice from a terminal. A kill between the two calls would lose these bytes.
        data = os.read(tty_fd, min(max_bytes, _ATOMIC))
        return os.write(pipe_w, data) if data else 0
    except OSError as error:
        if error.errno == errno.EIO:
            return 0
        raise
