"""After a failed start: was the program missing (127), or there and not to be executed (126)?

Found by looking inside the root ourselves, never from what a runtime said.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Mapping
from typing import Literal

from lighterman.runtimes.oci.rooted import Root, open_inside, open_root
from lighterman.spec import User

__all__ = ["Finding", "find_command"]

Finding = Literal["ok", "not-found", "not-executable"]

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG})


def find_command(
    argv0: str, path: str | None, cwd: str, root: Root, user: User, binds: Mapping[str, str] | None = None
) -> Finding:
    """How `execvp` of `argv0` would fare inside `root` for `user`.

    Args:
        path: the PATH of the process's environment; None or empty means none. cwd: absolute, inside the root.
        binds: what `root` does not show: target in it to source on the host, of a container that was never made.
    Returns: `"ok"` where it is a regular file that `user` may execute: what failed then is something else (its
        interpreter, its format). A program that only exists where it may not be executed is `"not-executable"`.
    Raises: InvalidSpec if `root` can't be opened.
    """
    if not argv0 or "\0" in argv0:
        return "not-found"
    if "/" in argv0:
        candidates = [argv0]
    else:
        # An empty entry means the working directory, as in every shell.
        candidates = [posixpath.join(directory or ".", argv0) for directory in (path or "").split(":")] if path else []
    finding: Finding = "not-found"
    with open_root(root) as root_fd:
        for candidate in candidates:
            found = _look_where_it_lies(root_fd, posixpath.join(cwd, candidate), user, binds or {})
            if found == "ok":
                return found
            # As execvp does it: one that may not be executed is remembered, and the search goes on.
            finding = found if found == "not-executable" else finding
    return finding


def _look_where_it_lies(root_fd: int, path: str, user: User, binds: Mapping[str, str]) -> Finding:
    plain = posixpath.normpath(path)
    for target in sorted(binds, key=len, reverse=True):
        if plain == target:
            # A file of the host: its directory shows it, as it is called there.
            directory, name = posixpath.split(binds[target])
            with open_root(directory) as source_fd:
                return _look(source_fd, name, user)
        if plain.startswith(f"{target}/"):
            with open_root(binds[target]) as source_fd:
                return _look(source_fd, plain[len(target) :], user)
    return _look(root_fd, path, user)


def _look(root_fd: int, path: str, user: User) -> Finding:
    try:
        descriptor = open_inside(root_fd, path)
    except OSError as failed:
        return "not-found" if failed.errno in _ABSENT else "not-executable"
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return "ok" if stat.S_ISREG(status.st_mode) and _may_execute(status, user) else "not-executable"


def _may_execute(status: os.stat_result, user: User) -> bool:
    if user.uid == 0:
        return bool(status.st_mode & 0o111)
    if user.uid == status.st_uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid in (user.gid, *user.additional_gids):
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
