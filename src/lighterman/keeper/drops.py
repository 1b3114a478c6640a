"""How many bytes of a run were dropped and are not told yet: a slot of fixed size beside the segments.

It is made while there is room and overwritten in place, since it is needed when the disk is full:

    offset  size  field
    0       4     magic     b"LMD1"
    4       4     checksum  CRC-32 of the rest
    8       8     base      the log's end when they were dropped; nothing was written after it but markers
    16      8     stdout    bytes dropped
    24      8     stderr    likewise
    32      8     total     of this run, both streams, told or not
    40      8     drains    which pair of drains the next two are of (an inode number), 0 for none
    48      8     stdout    size of its drain when it was counted last
    56      8     stderr    likewise
    64      4     checksum  CRC-32 of the next; what is shorter, or damaged, says 0
    68      8     evicted   bytes that this run has deleted to make room

What the log's end is beyond `base` has been told, stdout's part first: no step in between has to be written down.

A *drain* is a file in memory, one for each stream, that the keeper holds for as long as the job: dropped bytes are
spliced to its end, and then the memory is freed, but not the size. So its size is how much was dropped, whoever was
killed before that was written down here.
"""

import errno
import os
from struct import Struct
from zlib import crc32

from .files import OURS, pread, pwrite

_NAME = "dropped"
# No memory for a drain, or a limit on file sizes: then bytes are dropped all the same.
_NO_DRAIN = (errno.ENOMEM, errno.ENOSPC, errno.EFBIG)
_MAGIC = b"LMD1"
_FIELDS = Struct("<QQQQQQQ")
_HEAD_BYTES = 8
_SLOT_BYTES = _HEAD_BYTES + _FIELDS.size
_EVICTED_BYTES = 12


class DropSlot:
    """One directory's. Every method may raise OSError.

    Attributes:
        untold: bytes of stdout and of stderr that no marker in the log tells of.
        total: all that were dropped in this run.
        evicted: bytes of this run and of earlier ones that were deleted to make room.
    """

    __slots__ = ("_counted", "_directory", "_drains", "_fd", "_null", "_seen", "_stale", "evicted", "total", "untold")

    def __init__(self, directory: str, end: int) -> None:
        """Open or make it; `end` is the log's. One that the disk refuses is made when something has to be counted."""
        self._directory = directory
        self._null = -1
        self._fd = -1
        self._drains: tuple[int, int] | None = None
        self._stale = False  # what is written there is not the latest
        data = evicted = b""
        try:
            self._fd = _open(directory)
        except OSError:
            if os.path.exists(f"{directory}/{_NAME}"):
                raise
        else:
            try:
                data, evicted = pread(self._fd, _SLOT_BYTES, 0), pread(self._fd, _EVICTED_BYTES, _SLOT_BYTES)
            except BaseException:
                self.close()
                raise
        self.untold, self.total, self._counted, self._seen = _decode(data, end)
        self.evicted = _decode_evicted(evicted)
        if len(data) < _SLOT_BYTES:
            try:
                self._save((0, 0), 0, end)
            except OSError:
                self._stale = True

    def drop(self, stream: int, fd: int, count: int, end: int) -> int:
        """Take up to `count` bytes that are in a pipe out of it, the log being at `end`. Returns how many."""
        if self._drains is not None:
            try:
                dropped = _drain(fd, self._drains[stream - 1], count)
            except OSError as error:
                if error.errno not in _NO_DRAIN:
                    raise
            else:
                self._count_drained(end)
                return dropped
        # Counted first: killed in between, they are counted and still delivered, and never the other way round.
        out, err = self.untold
        self._save((out + count, err) if stream == 1 else (out, err + count), self.total + count, end)
        if self._null < 0:
            self._null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        dropped = 0
        while dropped < count:
            dropped += os.splice(fd, self._null, count - dropped)
        return dropped

    def drain_into(self, drains: "tuple[int, int]", end: int) -> None:
        """Drop into these, of stdout and stderr, from now on; what was dropped there before is counted.

        They are ours to close.
        """
        older, self._drains = self._drains, drains
        for fd in older or ():
            os.close(fd)
        self._count_drained(end)

    def _count_drained(self, end: int) -> None:
        assert self._drains is not None
        first, second = os.fstat(self._drains[0]), os.fstat(self._drains[1])
        same = first.st_ino == self._counted
        seen = self._seen if same else (0, 0)
        more = first.st_size - seen[0], second.st_size - seen[1]
        if same and more == (0, 0):
            return
        self._counted, self._seen = first.st_ino, (first.st_size, second.st_size)
        untold, total = (self.untold[0] + more[0], self.untold[1] + more[1]), self.total + sum(more)
        try:
            self._save(untold, total, end)
        except OSError:
            # They are dropped all the same; until it can be written, the drains' sizes have the number.
            self.untold, self.total, self._stale = untold, total, True

    def bring_up(self, end: int) -> None:
        """Write down what could not be before; without it no marker may be written, which would be counted twice."""
        if self._stale:
            self._save(self.untold, self.total, end)

    def count_evicted(self, count: int) -> None:
        """So many more were deleted."""
        self.evicted += count
        value = self.evicted.to_bytes(8, "little")
        # It is in the block that the slot has already, so a full disk takes it; if not, this process knows it still.
        try:
            pwrite(self._fd, crc32(value).to_bytes(4, "little") + value, _SLOT_BYTES)
        except OSError:
            return

    def told(self, stream: int, count: int) -> None:
        """A marker in the log tells of them; the log's end says so already."""
        out, err = self.untold
        self.untold = (out - count, err) if stream == 1 else (out, err - count)

    def close(self) -> None:
        """Again is nothing."""
        drains, self._drains = self._drains, None
        for drain in drains or ():
            os.close(drain)
        if self._null >= 0:
            null, self._null = self._null, -1
            os.close(null)
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _save(self, untold: "tuple[int, int]", total: int, base: int) -> None:
        if self._fd < 0:
            self._fd = _open(self._directory)
        fields = _FIELDS.pack(base, *untold, total, self._counted, *self._seen)
        data = _MAGIC + crc32(fields).to_bytes(4, "little") + fields
        if pwrite(self._fd, data, 0) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.untold, self.total = untold, total
        self._stale = False


def read_untold(directory: str, end: int) -> "tuple[int, int]":
    """How many bytes of stdout and of stderr were dropped after `end`, where the log ends. Raises: OSError."""
    try:
        fd = os.open(f"{directory}/{_NAME}", os.O_RDONLY | OURS)
    except FileNotFoundError:
        return 0, 0
    try:
        return _decode(pread(fd, _SLOT_BYTES, 0), end)[0]
    finally:
        os.close(fd)


def _open(directory: str) -> int:
    os.makedirs(directory, 0o700, exist_ok=True)
    return os.open(f"{directory}/{_NAME}", os.O_RDWR | os.O_CREAT | OURS, 0o600)


def make_drain() -> int:
    """One that is empty. Linux. Raises: OSError."""
    return os.memfd_create("lighterman-drain", os.MFD_CLOEXEC)


def _drain(fd: int, target: int, count: int) -> int:
    """Move bytes that are in a pipe into a drain. Returns how many; raises OSError only if none went."""
    import mmap  # nobody else needs it

    start = os.fstat(target).st_size
    moved = 0
    try:
        while moved < count:
            moved += os.splice(fd, target, count - moved, offset_dst=start + moved)
    except OSError:
        if moved == 0:
            raise
    first = start - start % mmap.ALLOCATIONGRANULARITY
    try:
        with mmap.mmap(target, start + moved - first, offset=first) as mapped:
            mapped.madvise(mmap.MADV_REMOVE)
    except OSError:
        return moved  # they are dropped all the same; this memory is freed with the job then
    return moved


def _decode(data: bytes, end: int) -> "tuple[tuple[int, int], int, int, tuple[int, int]]":
    """(untold, total, drains, seen); nothing of what never was written whole."""
    fields = data[_HEAD_BYTES:]
    if len(data) != _SLOT_BYTES or data[:4] != _MAGIC or crc32(fields) != int.from_bytes(data[4:_HEAD_BYTES], "little"):
        return (0, 0), 0, 0, (0, 0)
    base, out, err, total, drains, *seen = _FIELDS.unpack(fields)
    told = min(max(end - base, 0), out + err)
    told_out = min(told, out)
    return (out - told_out, err - (told - told_out)), total, drains, (seen[0], seen[1])


def _decode_evicted(data: bytes) -> int:
    if len(data) != _EVICTED_BYTES or crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        return 0
    return int.from_bytes(data[4:], "little")
