"""Removing a directory with all that a container has made in it: however deep, however wide. Blocking."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from typing import NamedTuple

__all__ = ["remove_tree"]

# On Windows for as long somebody may have a file of it open, which keeps it from being removed.
_IN_USE_S = 5.0
_LOOK_S = 0.02
# How often another remover may be met in a tree: each time something of it has gone.
_TRIES = 1000


if sys.platform == "win32":
    _DIRECTORY = 0  # not used there
else:
    _DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Identity(NamedTuple):
    device: int
    inode: int


class _Level(NamedTuple):
    """A directory on the way down, and those below it that are still there; the last one is being emptied."""

    identity: _Identity
    below: list[str]


def remove_tree(path: str) -> None:
    """Remove `path` and everything below it. No link is followed, and no other file system entered.

    One descriptor and no recursion: a workload chooses the depth, and `shutil.rmtree` takes a frame and a descriptor
    for each level. Raises: FileNotFoundError if it is not there; OSError.
    """
    if sys.platform == "win32":
        _remove_when_unused(path)
    else:
        _remove_by_descriptors(path)


def _remove_when_unused(path: str) -> None:
    """There nothing of a workload's is in it, only files of ours."""
    give_up = time.monotonic() + _IN_USE_S
    while True:
        try:
            shutil.rmtree(path)
        except PermissionError:
            if time.monotonic() > give_up:
                raise
            time.sleep(_LOOK_S)
        else:
            return


def _remove_by_descriptors(path: str) -> None:
    for _ in range(_TRIES):
        try:
            _remove_once(path)
        except FileNotFoundError:
            # Or somebody else removes it at the same time, as a keeper does with a private root.
            if not os.path.lexists(path):
                raise
        else:
            return
    raise OSError(errno.EBUSY, "it changes while it is being removed", path)


def _remove_once(path: str) -> None:
    here = os.open(path, _DIRECTORY)
    try:
        identity = _identity(here)
        way: list[_Level] = []
        below = _unlink_files(here)
        while below or way:
            if below:
                down = os.open(below[-1], _DIRECTORY, dir_fd=here)
                os.close(here)
                here = down
                way.append(_Level(identity, below))
                identity = _entered(here, identity.device, path)
                below = _unlink_files(here)
                continue
            up = os.open("..", _DIRECTORY, dir_fd=here)
            os.close(here)
            here = up
            identity, below = way.pop()
            if _identity(here) != identity:
                raise OSError(errno.ESTALE, "it was moved while it was being removed", path)
            os.rmdir(below.pop(), dir_fd=here)
    finally:
        os.close(here)
    os.rmdir(path)


def _entered(directory: int, device: int, path: str) -> _Identity:
    identity = _identity(directory)
    if identity.device != device:
        raise OSError(errno.EXDEV, "something is mounted in it", path)
    return identity


def _identity(directory: int) -> _Identity:
    status = os.fstat(directory)
    return _Identity(status.st_dev, status.st_ino)


def _unlink_files(directory: int) -> list[str]:
    """Unlink all that is no directory; returns the names of those."""
    below = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=directory)
    return below
