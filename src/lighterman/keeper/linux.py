"""System calls that Python 3.11 does not offer, by ctypes."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
MS_SLAVE = 1 << 19
AT_FDCWD = -100
MOVE_MOUNT_F_EMPTY_PATH = 0x04
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
# The number is the same on every architecture since Linux 5.2 (asm-generic/unistd.h, and x86-64's own table).
NR_MOVE_MOUNT = 429

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def become_subreaper() -> None:
    """Orphans below us become our children. Raises: OSError."""
    _checked(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def set_name(name: str) -> None:
    """What `ps` shows; the first 15 bytes."""
    _checked(_libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0), "prctl(PR_SET_NAME)")


def unshare_mounts() -> None:
    """Into a mount namespace of our own that receives the host's changes and sends none. Raises: OSError."""
    _checked(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")


def make_everything_slave() -> None:
    """Our mounts receive changes and send none. Raises: OSError."""
    _checked(_libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None), "mount(MS_REC|MS_SLAVE)")


def enter_mounts(namespace_fd: int) -> None:
    """Into the mount namespace of a descriptor. Raises: OSError."""
    _checked(_libc.setns(namespace_fd, CLONE_NEWNS), "setns(CLONE_NEWNS)")


def attach_mount(mount_fd: int, target: str) -> None:
    """Attach a detached mount at `target`. Raises: OSError."""
    _checked(
        _libc.syscall(
            ctypes.c_long(NR_MOVE_MOUNT), mount_fd, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH
        ),
        f"move_mount({target})",
    )
