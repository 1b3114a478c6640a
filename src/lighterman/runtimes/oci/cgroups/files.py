"""Reading, writing and walking a cgroup's directory through descriptors; nothing here follows a symbolic link.

A cgroup can vanish between any two calls. Then a file reads as None, a write returns False, and a walk leaves it out.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from lighterman.errors import InvalidSpec

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# ENODEV: the file was opened, and its cgroup removed before the read.
GONE = frozenset({errno.ENOENT, errno.ENODEV})
_READ_BYTES = 65536
# PID_MAX_LIMIT of 64-bit Linux, the most that pids.max takes as a number: as good as `max`, and what stands for no
# limit here, because crun 1.8 writes OCI's -1 as it is, which the kernel refuses, and takes 0 for not set.
NO_PIDS_LIMIT = 4 * 1024 * 1024


def split_path(path: str) -> tuple[str, ...]:
    """The components of a cgroup path as `/lighterman/ID`.

    Raises: InvalidSpec unless it is absolute, without `.`, `..`, empty components, NUL and line breaks.
    """
    components = tuple(path.split("/")[1:])
    if not path.startswith("/") or not components:
        raise InvalidSpec(f"cgroup path {path!r}: must be absolute")
    for component in components:
        if component in ("", ".", "..") or "\0" in component or "\n" in component:
            raise InvalidSpec(f"cgroup path {path!r}: {component!r} can't be part of it")
        if len(os.fsencode(component)) > 255:
            raise InvalidSpec(f"cgroup path {path[:64]!r}...: a part is longer than 255 bytes")
    return components


def open_directory(mount_point: str, components: tuple[str, ...]) -> int | None:
    """A descriptor of the directory, or None if it does not exist. Only the mount point itself may be a link."""
    try:
        current = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    for component in components:
        try:
            following = open_child(current, component)
        finally:
            os.close(current)
        if following is None:
            return None
        current = following
    return current


def open_child(directory: int, name: str) -> int | None:
    """A descriptor of the cgroup directly below, or None if there is none of that name."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        # ELOOP, ENOTDIR: a symbolic link, or a control file.
        if error.errno in GONE or error.errno in (errno.ELOOP, errno.ENOTDIR):
            return None
        raise


def read(directory: int, name: str) -> str | None:
    """The text of a control file; None if it, or its cgroup, is not there or gives nothing in this kind of cgroup."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            pieces = []
            while piece := os.read(file, _READ_BYTES):
                pieces.append(piece)
        finally:
            os.close(file)
    except OSError as error:
        # EOPNOTSUPP: cgroup.procs of a threaded cgroup; the processes are listed by the domain above it. Also a
        # pressure file where the kernel was started without.
        if error.errno in GONE or error.errno == errno.EOPNOTSUPP:
            return None
        raise
    return b"".join(pieces).decode("utf-8", "replace")


def write(directory: int, name: str, text: str) -> bool:
    """Write a control file in one piece; False if it, or its cgroup, is not there."""
    try:
        file = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in GONE:
            return False
        raise
    return True


def read_number(directory: int, name: str) -> int | None:
    """The number in a control file; None for `max`, for anything else that is no number, and where there is none."""
    return number(read(directory, name))


def number(text: str | None) -> int | None:
    """A decimal number of the kernel's, or None."""
    text = text.strip() if text is not None else ""
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() else None


def read_table(directory: int, name: str) -> dict[str, int]:
    """A control file of lines `key number`; empty where there is none."""
    table = {}
    for line in (read(directory, name) or "").splitlines():
        key, _, value = line.partition(" ")
        count = number(value)
        if count is not None:
            table[key] = count
    return table


def read_pids_limit(directory: int) -> int | None:
    """`pids.max`, which both versions have; None for no limit."""
    limit = read_number(directory, "pids.max")
    return None if limit is None or limit >= NO_PIDS_LIMIT else limit


def subdirectories(directory: int) -> list[str]:
    """Names of the cgroups directly below."""
    try:
        # A directory of the kernel's own file systems has two links, and one more for each below it.
        if os.fstat(directory).st_nlink == 2:
            return []
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in GONE:
            return []
        raise


def walk(top: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each cgroup from `top` (not closed) down, children before parents: an open descriptor, and the names to it.

    Two descriptors are open at a time, however deep a workload has nested them: the way up is `..`, which is safe
    because cgroups can't be moved to another parent.
    """
    pending = [subdirectories(top)]
    names: list[str] = []
    current = os.dup(top)
    try:
        while True:
            if pending[-1]:
                name = pending[-1].pop()
                below = open_child(current, name)
                if below is None:
                    continue
                os.close(current)
                current = below
                names.append(name)
                pending.append(subdirectories(current))
                continue
            yield current, tuple(names)
            if not names:
                return
            # This works from a removed directory too.
            above = os.open("..", _DIRECTORY, dir_fd=current)
            os.close(current)
            current = above
            names.pop()
            pending.pop()
    finally:
        os.close(current)
