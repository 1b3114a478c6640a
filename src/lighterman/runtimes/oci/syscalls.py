"""System calls that the standard library does not have. ctypes is imported when the first is made."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctypes import CDLL

# From 424 on, a system call has one number on every architecture (but alpha, where Lighterman does not run).
OPEN_TREE, FSOPEN, FSCONFIG, FSMOUNT, MOUNT_SETATTR = 428, 430, 431, 432, 442

# linux/mount.h, linux/fcntl.h, linux/sched.h
OPEN_TREE_CLONE = 1
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
CLONE_FS = 0x200
CLONE_NEWNET = 0x40000000
MS_REMOUNT = 32  # sys/mount.h
MNT_DETACH = 2


@cache
def libc() -> CDLL:
    """The C library of this process; calls release the interpreter lock and keep errno."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """A system call by number; numbers are passed as longs. Raises: OSError."""
    import ctypes

    converted = [ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
    result: int = libc().syscall(ctypes.c_long(number), *converted)
    if result == -1:
        _raise()
    return result


def unshare_fs() -> None:
    """Give the calling thread a working directory of its own. Raises: OSError."""
    if libc().unshare(CLONE_FS) == -1:
        _raise()


def remount(path: str, flags: int, options: str) -> None:
    """mount(2) of what is mounted at `path` with other options. Raises: OSError."""
    if libc().mount(b"none", os.fsencode(path), None, MS_REMOUNT | flags, options.encode()) == -1:
        _raise()


def detach_mount(path: str) -> None:
    """umount2(2) of what is mounted at `path`, also where it is in use. Raises: OSError."""
    if libc().umount2(os.fsencode(path), MNT_DETACH) == -1:
        _raise()


def set_network_namespace(descriptor: int) -> None:
    """Bring the calling thread into another network namespace. Raises: OSError."""
    if libc().setns(descriptor, CLONE_NEWNET) == -1:
        _raise()


def inotify_init() -> int:
    """A descriptor, non-blocking and close-on-exec. Raises: OSError."""
    descriptor: int = libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor == -1:
        _raise()
    return descriptor


def inotify_add_watch(descriptor: int, path: str, mask: int) -> int:
    """The watch's own number. Raises: OSError."""
    watch: int = libc().inotify_add_watch(descriptor, os.fsencode(path), mask)
    if watch == -1:
        _raise()
    return watch


def inotify_rm_watch(descriptor: int, watch: int) -> None:
    """Raises: OSError."""
    if libc().inotify_rm_watch(descriptor, watch) == -1:
        _raise()


def filesystem_magic(descriptor: int) -> int:
    """`f_type` of fstatfs(2), for any descriptor, O_PATH ones included. Raises: OSError."""
    import ctypes

    # Larger than struct statfs of any architecture; its first member is a long on all but s390x, where it is an int.
    buffer = ctypes.create_string_buffer(512)
    if libc().fstatfs(descriptor, buffer) == -1:
        _raise()
    width = 4 if os.uname().machine == "s390x" else ctypes.sizeof(ctypes.c_long)
    return int.from_bytes(buffer.raw[:width], sys.byteorder) & 0xFFFFFFFF


def _raise() -> None:
    import ctypes

    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
