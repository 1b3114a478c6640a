"""Why a disk refuses, by what the kernel says and never by a text. Blocking."""

from __future__ import annotations

import errno
import os
import sys

from lighterman.errors import StoreError

__all__ = ["check_writable", "is_read_only", "refusal"]

_READ_ONLY = "its file system is read-only: `dmesg` says since when, mend it and mount it read-write again"


def is_read_only(path: str) -> bool:
    """Whether nothing can be written where `path` is, or would be: it is mounted so, or became so by an error."""
    if sys.platform == "win32":
        return False
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return True
        if sys.platform == "linux":
            # ext4 does not say so after an error (`emergency_ro`): what is asked for leaves nothing where it is given.
            os.close(os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as failed:
        return failed.errno == errno.EROFS
    return False


def check_writable(path: str) -> None:
    """Raises: StoreError where `is_read_only`."""
    if is_read_only(path):
        raise StoreError(f"{path}: {_READ_ONLY}: the change did not happen")


def refusal(path: str, failed: BaseException) -> str:
    """One line for a write to `path` that failed, with what to do where that is known."""
    if is_read_only(path):
        return f"{path}: {_READ_ONLY}"
    return f"{path}: {failed.strerror if isinstance(failed, OSError) and failed.strerror else failed}"
