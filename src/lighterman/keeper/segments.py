"""Log segments, the writing side: output goes from a pipe into files, exactly, whoever is killed in between.

Standard library only, and none of its expensive parts: the keeper loads this file without the package.

A directory holds the output of one run of one process, in files `segment-OFFSET.log` (20 digits), each a row of frames:

    offset  size  field     why
    0       4     magic     b"LMS1"; the digit is the version of this layout
    4       1     stream    1 stdout, 2 stderr
    5       1     flags     COPIED: the payload never was in a pipe, so a short one can't be completed;
                            DROPPED: there is no payload, its bytes were dropped (see "Policies")
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

Policies say what happens when the file system refuses output (no room, a quota, an error), or when a reader that may
lose nothing is further behind than the files may grow:

    block        output waits in its pipe, and with it the program, once the pipe is full
    drop-newest  output is taken from the pipe and dropped; a DROPPED frame tells how much, as soon as it can be written
    drop-oldest  the oldest files go, those of earlier runs first; when none are left, as drop-newest

A disk that is only slow makes the writer wait in the kernel, and refuses nothing.
"""

import errno
import os
import sys
from _collections_abc import Callable
from struct import Struct
from time import time_ns
from zlib import crc32

from .drops import DropSlot
from .drops import read_untold as read_untold
from .files import OURS, is_in_use, pwrite, read_all

if sys.platform != "win32":
    # There nothing comes out of a pipe: of the writer only `write` is used.
    from .pipes import NONBLOCK, tty_to_pipe
    from .pipes import at_end as at_end
    from .pipes import buffered as buffered

STDOUT = 1
STDERR = 2

COPIED = 1
DROPPED = 2

BLOCK_WRITER = "block"
DROP_NEWEST = "drop-newest"
DROP_OLDEST = "drop-oldest"
POLICIES = (BLOCK_WRITER, DROP_OLDEST, DROP_NEWEST)

MAGIC = b"LMS1"
_FIELDS = Struct("<4sBBHIIQQ")
_BEFORE_CHECKSUM = Struct("<4sBBHI")
_AFTER_CHECKSUM = Struct("<QQ")
HEADER_BYTES = _FIELDS.size

# 2,000 frames of 100 bytes, walked in a millisecond; large enough that a header per block costs nothing.
BLOCK = 256 * 1024
# A smaller file would be mostly names and inodes.
MIN_FILE_BYTES = 4096

_PREFIX = "segment-"
_SUFFIX = ".log"
_DIGITS = 20

_MAX_MARKED = 2**32 - 1


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
    if magic != MAGIC or length == 0 or stream not in (STDOUT, STDERR):
        return None
    if length > room_at(position) and not flags & DROPPED:
        return None
    before = _BEFORE_CHECKSUM.pack(magic, stream, flags, _, length)
    if crc32(_AFTER_CHECKSUM.pack(offset, time), crc32(before)) != checksum:
        return None
    return stream, flags, length, offset, time


def payload_bytes(flags: int, length: int) -> int:
    """How much of a frame of that length is in the file."""
    return 0 if flags & DROPPED else length


def room_at(position: int) -> int:
    """How much payload a frame that begins at this place of a file can have; below 1 it begins at the next block."""
    return BLOCK - position % BLOCK - HEADER_BYTES


def frame_position(position: int) -> int:
    """Where the frame after one that ends at `position` begins."""
    return position if room_at(position) > 0 else position + BLOCK - position % BLOCK


class SegmentWriter:
    """Writes the frames of one directory. One at a time, in one thread at a time.

    Opening repairs what a kill left: a short header is cut off, a short payload is `owed`, damage is left behind by
    going on in a new file. Nothing is created before the first byte. Every method may raise OSError (a full disk, for
    one): nothing is lost then, the pipe keeps what was not moved, and the same call can be made again.

    Attributes:
        end: payload bytes of all complete frames so far; the offset of the next frame. Survives rotation and reopening.
        owed: (stream, bytes) that the last frame lacks, or None. They are the next bytes of that stream's pipe.
        keep_from: the lowest offset that a reader still needs, or None. Files from there on are not deleted.
        policy: one of POLICIES. Under all but `block` the directory and a slot in it are made at once, if they can be.
        is_needed: whether somebody who may lose nothing still reads an earlier run, or None. Its files are not deleted.
    """

    __slots__ = (
        "_directory",
        "_earlier_bytes",
        "_fd",
        "_flags",
        "_max_bytes",
        "_max_files",
        "_position",
        "_slot",
        "_starts",
        "_time",
        "_written",
        "end",
        "is_needed",
        "keep_from",
        "owed",
        "policy",
    )

    def __init__(self, directory: str, max_bytes: int, max_files: int, policy: str = BLOCK_WRITER) -> None:
        """Open. `max_bytes` bounds one file, `max_files` their number (one more while `keep_from` holds the oldest)."""
        self._directory = directory
        self.policy = policy
        self.is_needed: Callable[[int], bool] | None = None
        self._earlier_bytes: int | None = None  # of earlier runs, once they have been looked at
        self._slot: DropSlot | None = None
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
        try:
            if self._starts:
                self._reopen(self._starts[-1])
            if policy != BLOCK_WRITER:
                self._open_slot()
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
                    ended = tty_to_pipe(tty_fd, pipe_w, max_bytes - moved) == 0
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

    def give_way(self, stream: int, fd: int, max_bytes: int, through: "tuple[int, int] | None" = None) -> "int | None":
        """Do what the policy says, when output could not be written.

        Args: through: `fd` is a terminal, and these are the ends of the pipe behind it (see `splice_through`).
        Returns: None if room was made, and writing is worth another try; else how many bytes were dropped, 0 at the
            end of file.
        Raises: BlockingIOError if there is nothing to drop; OSError, as the policy `block` always does.
        """
        if self.policy == BLOCK_WRITER:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.policy == DROP_OLDEST and self._could_make_room():
            return None
        return (
            self.drop(stream, fd, max_bytes) if through is None else self.drop_through(stream, fd, *through, max_bytes)
        )

    def drop(self, stream: int, fd: int, max_bytes: int) -> int:
        """Take up to `max_bytes` out of a pipe and drop them, counted. As `splice`, whichever stream is owed."""
        # Loses nothing: the rest of that frame is still in its pipe.
        self.cut()
        count = min(buffered(fd), max_bytes)
        if count <= 0:
            if max_bytes <= 0 or not at_end(fd):
                raise BlockingIOError(errno.EAGAIN, "the pipe is empty")
            return 0
        return self._open_slot().drop(stream, fd, count, self.end)

    def drop_into(self, drains: "tuple[int, int]") -> None:
        """Drop into a job's drains, of stdout and stderr, which are ours to close from now on (see `drops.py`).

        Only so the count is exact where we are killed in the moment of dropping. What whoever was before us has dropped
        and not counted is counted now.
        """
        self._open_slot().drain_into(drains, self.end)

    def drop_through(self, stream: int, tty_fd: int, pipe_r: int, pipe_w: int, max_bytes: int) -> int:
        """As `drop`, for a terminal (see `splice_through`)."""
        if not buffered(pipe_r) and tty_to_pipe(tty_fd, pipe_w, max_bytes) == 0:
            return 0
        return self.drop(stream, pipe_r, max_bytes)

    def tell_dropped(self) -> None:
        """Put markers into the log for what was dropped; whatever is written next does it by itself."""
        slot = self._slot
        if slot is None or not any(slot.untold):
            return
        slot.bring_up(self.end)
        for stream, count in zip((STDOUT, STDERR), slot.untold, strict=True):
            while count > 0:
                marked = min(count, _MAX_MARKED)
                self._mark(stream, marked)
                slot.told(stream, marked)
                count -= marked

    @property
    def untold(self) -> int:
        """Bytes that were dropped, and of which the log does not tell yet."""
        return sum(self._slot.untold) if self._slot is not None else 0

    @property
    def untold_each(self) -> "tuple[int, int]":
        """Of `untold`, what is of stdout and what of stderr."""
        return self._slot.untold if self._slot is not None else (0, 0)

    @property
    def dropped(self) -> int:
        """All bytes that were dropped in this run."""
        return self._slot.total if self._slot is not None else 0

    @property
    def evicted(self) -> int:
        """Payload bytes, of this run and of earlier ones, that this run has deleted before their time, to make room."""
        return self._slot.evicted if self._slot is not None else 0

    def cut(self) -> None:
        """End the owed frame where it is: its pipe is gone. What the file has of it stays."""
        if self.owed is None:
            return
        stream, _ = self.owed
        if self._written == 0:
            os.ftruncate(self._fd, self._position)
        else:
            header = pack_header(stream, self._flags, self._written, self.end, self._time)
            if pwrite(self._fd, header, self._position) != HEADER_BYTES:
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
        """Close the files. An owed frame stays owed, for the next writer of this directory."""
        self._close_file()
        if self._slot is not None:
            self._slot.close()

    def _close_file(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    # ---- one frame ----

    def _settle(self, stream: int) -> None:
        """Make way for a frame of this stream, or let it complete its own."""
        if self.owed is None:
            self.tell_dropped()
            return
        if self._flags & COPIED:
            self.cut()
        elif self.owed[0] != stream:
            raise BlockingIOError(errno.EAGAIN, "the other stream has to complete its frame first")

    def _begin(self, stream: int, flags: int, length: int) -> int:
        """Write the header of a frame of up to `length` bytes; from here on they are owed. Returns how many."""
        position = self._place()
        length = min(length, room_at(position), self._max_bytes - position - HEADER_BYTES)
        self._time = self._put_header(stream, flags, length, position)
        self._position = position
        self._written = 0
        self._flags = flags
        self.owed = (stream, length)
        return length

    def _mark(self, stream: int, count: int) -> None:
        """One frame that tells of dropped bytes, which count in the offsets as all others do."""
        position = self._place()
        self._put_header(stream, DROPPED, count, position)
        self._position = position + HEADER_BYTES
        self.end += count

    def _place(self) -> int:
        """Where the next frame begins, in a new file if this one is full."""
        position = frame_position(self._position)
        if self._fd < 0 or position + HEADER_BYTES >= self._max_bytes:
            self._rotate()
            return 0
        return position

    def _put_header(self, stream: int, flags: int, length: int, position: int) -> int:
        time = time_ns()
        if pwrite(self._fd, pack_header(stream, flags, length, self.end, time), position) != HEADER_BYTES:
            os.ftruncate(self._fd, position)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return time

    def _fill(self, fd: int, limit: int) -> int:
        """Move payload into the owed frame. Returns 0 if the pipe turned out to be empty."""
        if self.owed is None:
            return 0
        stream, missing = self.owed
        where = self._position + HEADER_BYTES + self._written
        try:
            count = os.splice(fd, self._fd, min(missing, limit), offset_dst=where, flags=NONBLOCK)
        except BlockingIOError:
            return 0
        self._account(stream, missing, count)
        return count

    def _copy(self, data: bytes) -> int:
        """Write the payload of the frame just begun, whole or not at all."""
        try:
            count = pwrite(self._fd, data, self._position + HEADER_BYTES)
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
        # Room for the new one first: on a full disk it is the oldest that makes way. Never the only one: without a file
        # nobody would know where the log ends.
        self._delete_beyond(max(self._max_files - 1, 1))
        self._trim_earlier()
        if not self._starts:
            os.makedirs(self._directory, 0o700, exist_ok=True)
        self._open(self.end, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._starts.append(self.end)
        self._position = 0
        if self._max_files == 1:
            self._delete_beyond(1)

    def _trim_earlier(self) -> None:
        """All runs together keep no more than one may: the files of the earlier ones make way."""
        parent, _, name = self._directory.rpartition("/")
        # Whoever opened the run has made room for its first file.
        if not self._starts or self._earlier_bytes == 0 or not (name.isascii() and name.isdigit()):
            return
        room = self._max_bytes * (self._max_files - len(self._starts) - 1)
        if self._earlier_bytes is None or self._earlier_bytes > room:
            try:
                self._earlier_bytes = trim_runs(parent, max(room, 0), int(name), self.is_needed)
            except OSError:
                # They stay for now, and are tried again with the next file: no reason to refuse output.
                self._earlier_bytes = None

    def _open(self, start: int, flags: int) -> None:
        path = f"{self._directory}/{segment_name(start)}"
        # Not O_APPEND: splice(2) refuses it.
        fd = os.open(path, flags | OURS, 0o600)
        self._close_file()
        self._fd = fd

    def _open_slot(self) -> DropSlot:
        if self._slot is None:
            self._slot = DropSlot(self._directory, self.end)
        return self._slot

    def _could_make_room(self) -> bool:
        """False as well if the disk refuses that too: to delete, or a new file beside the only one."""
        try:
            return self._make_room()
        except OSError:
            return False

    def _make_room(self) -> bool:
        """Delete the oldest output of this container there is. Returns False if there is none."""
        parent, _, name = self._directory.rpartition("/")
        if name.isascii() and name.isdigit():
            for run in _earlier_runs(parent, int(name)):
                if evicted := delete_oldest(f"{parent}/{run}"):
                    self._open_slot().count_evicted(evicted)
                    return True
        if not self._starts or self._starts[0] == self.end:
            return False
        self.cut()
        if len(self._starts) == 1:
            # The file that is being written: who reads it keeps it open, and goes on in the new one.
            self._open(self.end, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            self._starts.append(self.end)
            self._position = 0
        evicted = self._starts[1] - self._starts[0]
        if not self._delete_first():
            return False
        self._open_slot().count_evicted(evicted)
        return True

    def _delete_first(self) -> bool:
        """Returns False if a reader keeps it for now, as is the way of Windows."""
        # From the list first: a reader in another thread looks for what is there.
        oldest = self._starts.pop(0)
        try:
            os.unlink(f"{self._directory}/{segment_name(oldest)}")
        except OSError as error:
            # Somebody who tidied up was faster: gone is what was wanted.
            if error.errno != errno.ENOENT:
                self._starts.insert(0, oldest)
                if not is_in_use(error):
                    raise
                return False
        return True

    def _delete_beyond(self, count: int) -> None:
        while len(self._starts) > max(count, 0):
            ends = self._starts[1] if len(self._starts) > 1 else self.end
            if self.keep_from is not None and ends > self.keep_from:
                return
            if not self._delete_first():
                return

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
            self._close_file()
            self.end = max(self.end, start) + max(size, 1)
        elif self.owed is not None and self._flags & COPIED:
            self.cut()

    def _walk(self, start: int, size: int) -> "int | None":
        """Find the end of a file by its last block. Returns up to where its headers are whole, None if damaged."""
        block = max(size - 1, 0) // BLOCK * BLOCK
        data = read_all(self._fd, block, size - block)
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
            payload = payload_bytes(flags, length)
            if present < payload:
                self.end = offset
                self._position = position
                self._written = present
                self._flags = flags
                self._time = time
                self.owed = (stream, length - present)
                return size
            self.end = offset + length
            self._position = position + HEADER_BYTES + payload
            position = frame_position(self._position)
        return size


def delete_oldest(directory: str) -> int:
    """Delete the oldest file of a run that has ended; an empty one stays, named after the offset at its end.

    Returns: how much output it had; 0 if there is nothing to delete. Raises: OSError.
    """
    starts = list_segments(directory)
    if len(starts) == 1:
        writer = SegmentWriter(directory, MIN_FILE_BYTES, 1)
        try:
            writer.cut()
        finally:
            writer.close()
        if writer.end != starts[0]:
            fd = os.open(f"{directory}/{segment_name(writer.end)}", os.O_WRONLY | os.O_CREAT | OURS, 0o600)
            os.close(fd)
            starts.append(writer.end)
    if len(starts) < 2:
        return 0
    os.unlink(f"{directory}/{segment_name(starts[0])}")
    return starts[1] - starts[0]


def trim_runs(directory: str, max_bytes: int, before: int, is_needed: "Callable[[int], bool] | None" = None) -> int:
    """Delete the oldest files of the runs before one until they have `max_bytes` or less.

    Args: is_needed: whether a run has to stay all the same. Returns: how much they have now. Raises: OSError.
    """
    files = []
    for run in _earlier_runs(directory, before):
        for start in list_segments(f"{directory}/{run}"):
            files.append((run, os.stat(f"{directory}/{run}/{segment_name(start)}").st_size))
    total = sum(size for _, size in files)
    for run, size in files:
        if total <= max_bytes:
            break
        if size and (is_needed is None or not is_needed(run)) and delete_oldest(f"{directory}/{run}"):
            total -= size
    return total


def _earlier_runs(directory: str, before: int) -> "list[int]":
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        # None of them has said anything.
        return []
    return sorted(run for run in (int(name) for name in names if name.isascii() and name.isdigit()) if run < before)
