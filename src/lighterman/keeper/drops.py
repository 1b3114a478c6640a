"""How many bytes of a run were dropped and are not told yet: a slot of fixed size beside the segments.

It is made while there is room and overwritten in place, since it is needed when the disk is full:

    offset  size  field
    0       4     magic     b"LMD1"
    4       4     checksum  CRC-32 of the rest
    8       8     base      the log's end when they were dropped; nothing was written after it but markers
    16      8     stdout    bytes dropped
    24      8     stderr    likewise
    32      8     total     of this run, both streams, told or not

What the log's end is beyond `base` has been told, stdout's part first: no step in between has to be written down.
"""

import os
from struct import Struct
from zlib import crc32

from .files import OURS, pread, pwrite

_NAME = "dropped"
_MAGIC = b"LMD1"
_FIELDS = Struct("<QQQQ")
_HEAD_BYTES = 8
_SLOT_BYTES = _HEAD_BYTES + _FIELDS.size


class DropSlot:
    """One directory's. Every method may raise OSError.

    Attributes:
        untold: bytes of stdout and of stderr that no marker in the log tells of.
        total: all that were dropped in this run.
    """

    __slots__ = ("_base", "_fd", "total", "untold")

    def __init__(self, directory: str, end: int) -> None:
        """Open or make it; `end` is the log's."""
        os.makedirs(directory, 0o700, exist_ok=True)
        self._fd = os.open(f"{directory}/{_NAME}", os.O_RDWR | os.O_CREAT | OURS, 0o600)
        try:
            self._base, self.untold, self.total = _decode(pread(self._fd, _SLOT_BYTES, 0), end)
            if os.fstat(self._fd).st_size < _SLOT_BYTES:
                self._save((0, 0), 0, end)
        except BaseException:
            self.close()
            raise

    def add(self, stream: int, count: int, end: int) -> None:
        """Count `count` bytes of a stream that are about to be dropped, the log being at `end`."""
        out, err = self.untold
        self._save((out + count, err) if stream == 1 else (out, err + count), self.total + count, end)

    def told(self, stream: int, count: int) -> None:
        """A marker in the log tells of them; the log's end says so already."""
        out, err = self.untold
        self.untold = (out - count, err) if stream == 1 else (out, err - count)

    def close(self) -> None:
        """Again is nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _save(self, untold: "tuple[int, int]", total: int, base: int) -> None:
        fields = _FIELDS.pack(base, *untold, total)
        data = _MAGIC + crc32(fields).to_bytes(4, "little") + fields
        if pwrite(self._fd, data, 0) != len(data):
            raise OSError(28, os.strerror(28))
        self._base, self.untold, self.total = base, untold, total


def read_untold(directory: str, end: int) -> int:
    """How many bytes of a run were dropped after `end`, where its log ends. Raises: OSError."""
    try:
        fd = os.open(f"{directory}/{_NAME}", os.O_RDONLY | OURS)
    except FileNotFoundError:
        return 0
    try:
        return sum(_decode(pread(fd, _SLOT_BYTES, 0), end)[1])
    finally:
        os.close(fd)


def _decode(data: bytes, end: int) -> "tuple[int, tuple[int, int], int]":
    """(base, untold, total); nothing of what never was written whole."""
    fields = data[_HEAD_BYTES:]
    if len(data) != _SLOT_BYTES or data[:4] != _MAGIC or crc32(fields) != int.from_bytes(data[4:_HEAD_BYTES], "little"):
        return end, (0, 0), 0
    base, out, err, total = _FIELDS.unpack(fields)
    told = min(max(end - base, 0), out + err)
    told_out = min(told, out)
    return base, (out - told_out, err - (told - told_out)), total
