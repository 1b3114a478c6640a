"""Files of ours, on every platform: what the `os` module has for Linux alone. Standard library only."""

import os
import sys

if sys.platform == "win32":
    # Not inherited; no translation of line ends.
    OURS = os.O_NOINHERIT | os.O_BINARY
else:
    # Not inherited; never through a link that somebody has put there.
    OURS = os.O_CLOEXEC | os.O_NOFOLLOW


def pread(fd: int, count: int, position: int) -> bytes:
    """As os.pread. On Windows the place in the file moves: one user of a descriptor at a time."""
    if sys.platform == "win32":
        os.lseek(fd, position, os.SEEK_SET)
        return os.read(fd, count)
    return os.pread(fd, count, position)


def pwrite(fd: int, data: bytes, position: int) -> int:
    """As os.pwrite; see `pread`."""
    if sys.platform == "win32":
        os.lseek(fd, position, os.SEEK_SET)
        return os.write(fd, data)
    return os.pwrite(fd, data, position)


def read_all(fd: int, position: int, count: int) -> bytes:
    """So many bytes from there on, or up to the end of the file."""
    pieces = []
    while count > 0:
        piece = pread(fd, count, position)
        if not piece:
            break
        pieces.append(piece)
        position += len(piece)
        count -= len(piece)
    return b"".join(pieces)


def is_in_use(failed: OSError) -> bool:
    """Whether a file can't be deleted because somebody has it open, as is the way of Windows: later it can."""
    return sys.platform == "win32" and isinstance(failed, PermissionError)
