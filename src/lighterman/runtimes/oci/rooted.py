"""Opening a path inside a container's root, as a process in that root would see it, and never outside.

`openat2(2)` with RESOLVE_IN_ROOT does it in the kernel (Linux 5.6), with no gap between looking and opening.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from lighterman.errors import InvalidSpec, NotSupported
from lighterman.runtimes.oci.syscalls import syscall

__all__ = ["Root", "open_inside", "open_root", "read_inside"]

Root = int | str
"""A root file system: a descriptor of its directory (O_PATH and detached mounts too), or its absolute path."""

_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10  # linux/openat2.h
_OPEN_HOW = struct.Struct("QQQ")  # flags, mode, resolve
_RENAME_RETRIES = 32  # a rename during the walk gives EAGAIN; a workload that renames for ever must not hold us


@contextmanager
def open_root(root: Root) -> Iterator[int]:
    """A descriptor of `root`, closed at the end only where it was opened here.

    Raises: InvalidSpec if the path is no directory that can be opened.
    """
    if isinstance(root, int):
        yield root
        return
    try:
        descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as failed:
        raise InvalidSpec(f"root {root!r}: can't be opened as a directory ({failed})") from failed
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_inside(root_fd: int, path: str, flags: int = os.O_PATH) -> int:
    """Open `path`, absolute or relative to the root, with links resolved inside of the root.

    Returns: a descriptor, close-on-exec. Raises: OSError as open(2) has it; NotSupported where the kernel has no
    openat2.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "path with a NUL", path)
    tries = _RENAME_RETRIES
    while True:
        try:
            return syscall(_SYS_OPENAT2, root_fd, encoded, how, len(how))
        except OSError as failed:
            tries -= 1
            if failed.errno == errno.ENOSYS:
                raise NotSupported(
                    "this kernel has no openat2, which keeps lookups inside of the root: use Linux 5.6 or later"
                ) from failed
            if tries and failed.errno in (errno.EAGAIN, errno.EINTR):
                continue
            raise


def read_inside(root_fd: int, path: str, max_bytes: int) -> bytes:
    """The content of a regular file inside of the root.

    Raises: OSError (FileNotFoundError ...); InvalidSpec for anything but a regular file, and for more than `max_bytes`.
    """
    # First without opening it: to open a device node can have effects, and a fifo would wait.
    found = open_inside(root_fd, path)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise InvalidSpec(f"{path} in the image is not a regular file")
        with open(os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
            content = file.read(max_bytes + 1)
    finally:
        os.close(found)
    if len(content) > max_bytes:
        raise InvalidSpec(f"{path} in the image is larger than {max_bytes} bytes")
    return content
