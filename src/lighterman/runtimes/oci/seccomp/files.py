"""Reading a file of the host that may turn out to be anything."""

from __future__ import annotations

import os
import stat

__all__ = ["read_regular"]


def read_regular(path: str | os.PathLike[str], max_bytes: int, flags: int = 0) -> tuple[bytes, os.stat_result] | None:
    """Up to `max_bytes` of a regular file, and its status; None for what is not one. Opening waits for nobody.

    Raises: OSError, ValueError (a NUL in the path).
    """
    # Without O_NONBLOCK, opening a fifo would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes), status
    finally:
        os.close(descriptor)
