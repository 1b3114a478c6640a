"""Exit slots: fixed places in one preallocated file, so that an exit finds its room on a full disk too.

One slot of SLOT_BYTES, little-endian, zeros when free:

    crc32 u32 | magic u16 | job length u8 | flags u8 | pid i32 | wait status i32 | start time u64 | mono u64 |
    wall u64 | job

Bit 0 of the flags says that its lease had ended. The checksum covers what follows it; the times are nanoseconds, the
start time is field 22 of /proc/PID/stat. A slot is written by one pwrite without fsync: it survives the death of the
keeper, and of the host only if that wrote it back in time. The keeper has a lock on its file as long as it lives.
"""

from __future__ import annotations

import os
from _collections_abc import Collection
from binascii import crc32
from struct import Struct

SLOT_BYTES = 256
GROW_SLOTS = 64
_MAGIC = 0x4C45
_SUM = Struct("<I")
_FIELDS = Struct("<HBBiiQQQ")
_LEASE_ENDED = 1
_FREE = bytes(SLOT_BYTES)


class ExitSlot:
    """One recorded exit; `start_time` is 0 where it was not known, `pid` 0 where the runtime itself failed."""

    __slots__ = ("job", "lease_ended", "mono_ns", "pid", "start_time", "status", "wall_ns")

    def __init__(
        self,
        job: str,
        pid: int,
        start_time: int,
        status: int,
        mono_ns: int,
        wall_ns: int,
        lease_ended: bool = False,
    ) -> None:
        self.job = job
        self.pid = pid
        self.start_time = start_time
        self.status = status
        self.mono_ns = mono_ns
        self.wall_ns = wall_ns
        self.lease_ended = lease_ended


class SlotFile:
    """The slots of one keeper."""

    def __init__(self, path: str, fd: int, slots: int = 0, used: Collection[int] = ()) -> None:
        """Of an open file with so many slots, of which some are in use."""
        self.path = path
        self.fd = fd
        self.slots = slots
        self._free = [slot for slot in range(slots - 1, -1, -1) if slot not in used]
        # Goes with the process, and stays over an exec; that of a keeper of an earlier build is taken there.
        os.lockf(fd, os.F_LOCK, 0)

    @classmethod
    def make(cls, path: str) -> SlotFile:
        """A new one. Raises: OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        return cls(path, fd)

    def reserve(self) -> int:
        """A slot whose room on the disk is certain. Raises: OSError (ENOSPC, EDQUOT) if there is none."""
        if not self._free:
            os.posix_fallocate(self.fd, self.slots * SLOT_BYTES, GROW_SLOTS * SLOT_BYTES)
            # Popped from the end: the lowest first keeps the used part of the file short.
            self._free = list(range(self.slots + GROW_SLOTS - 1, self.slots - 1, -1))
            self.slots += GROW_SLOTS
        return self._free.pop()

    def fill(self, slot: int, record: ExitSlot) -> None:
        """Write one exit into its reserved slot. Raises: OSError."""
        os.pwrite(self.fd, encode_slot(record), slot * SLOT_BYTES)

    def free(self, slot: int, *, filled: bool) -> None:
        """Give a slot back."""
        if filled:
            os.pwrite(self.fd, _FREE, slot * SLOT_BYTES)
        self._free.append(slot)

    def close(self, *, remove: bool) -> None:
        """Close the file; `remove` it when nothing in it is needed any more."""
        os.close(self.fd)
        if remove:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                # A private root goes as a whole.
                return


def is_free_to_remove(path: str) -> bool:
    """Whether the keeper of a slot file is dead. Never of one's own: to close it gives the lock up. Raises: OSError."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.lockf(fd, os.F_TEST, 0)
    except PermissionError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def encode_slot(record: ExitSlot) -> bytes:
    """SLOT_BYTES of one exit."""
    job = record.job.encode("ascii")
    flags = _LEASE_ENDED if record.lease_ended else 0
    body = _FIELDS.pack(
        _MAGIC, len(job), flags, record.pid, record.status, record.start_time, record.mono_ns, record.wall_ns
    ) + job.ljust(SLOT_BYTES - _SUM.size - _FIELDS.size, b"\0")
    return _SUM.pack(crc32(body)) + body


def read_exit_slots(path: str) -> list[ExitSlot]:
    """The exits in a slot file, also of a keeper that is dead or still writing; torn and free slots are left out.

    Raises: OSError if the file can't be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    found = []
    for at in range(0, len(data) - SLOT_BYTES + 1, SLOT_BYTES):
        (checksum,) = _SUM.unpack_from(data, at)
        body = data[at + _SUM.size : at + SLOT_BYTES]
        magic, length, flags, pid, status, start_time, mono_ns, wall_ns = _FIELDS.unpack_from(body)
        if magic != _MAGIC or crc32(body) != checksum:
            continue
        job = body[_FIELDS.size : _FIELDS.size + length].decode("ascii")
        found.append(ExitSlot(job, pid, start_time, status, mono_ns, wall_ns, bool(flags & _LEASE_ENDED)))
    return found
