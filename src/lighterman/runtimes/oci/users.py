"""Whom a process runs as: `name`, `uid`, `name:group`, `uid:gid`, looked up in the root's own /etc/passwd and group.

The rules are docker's: a uid needs no entry; with a group given, there are no supplementary groups. A word of digits
is always a number, even where an entry has it for a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lighterman.errors import InvalidSpec, NotFound
from lighterman.runtimes.oci.rooted import Root, open_root, read_inside
from lighterman.spec import User

__all__ = ["ROOT_USER", "is_root_by_default", "lookup_user"]

DATABASE_BYTES = 1024 * 1024
MAX_ID = 2**32 - 2  # 2**32 - 1 is -1 to the kernel: "leave it as it is"

ROOT_USER = User(uid=0, gid=0, additional_gids=(0,))
_ROOT_HOME = "/root"
_NO_HOME = "/"


class _Passwd(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]


def is_root_by_default(wanted: str | None) -> bool:
    """Whether `wanted` is root without a look into the root's files."""
    return wanted in (None, "", "0", "root", "0:0", "root:root")


def lookup_user(wanted: str | None, root: Root | None) -> tuple[User, str]:
    """The numbers of `wanted`, and the home directory.

    Args: root: where to look; None is enough where `is_root_by_default`. Its files are hostile: bounded, and parsed
        with malformed lines skipped.
    Returns: the user and its HOME: the entry's, `/` without one.
    Raises: NotFound for a name that the root does not have; InvalidSpec for a malformed request, a number outside 0 to
        4294967294, or a database that is no regular file below 1 MiB.
    """
    if is_root_by_default(wanted):
        return ROOT_USER, _ROOT_HOME
    assert wanted is not None
    name, colon, group_name = wanted.partition(":")
    if colon and not group_name:
        raise InvalidSpec(f"user {wanted!r}: a group must follow the colon")
    for part in (name, group_name):
        if any(ord(character) < 32 or character in ":\x7f" for character in part):
            raise InvalidSpec(f"user {wanted!r}: must be name, uid, name:group or uid:gid")
    uid = _number(name or "0", "user", wanted)
    gid = _number(group_name, "group", wanted) if colon else None
    if root is None:
        raise InvalidSpec(f"user {wanted!r}: there is no root to look it up in")

    with open_root(root) as root_fd:
        entry = _find_user(root_fd, name, uid)
        if entry is None and uid is None:
            raise NotFound(f"no user {name!r} in the image's /etc/passwd")
        if colon:
            gid = gid if gid is not None else _find_group(root_fd, group_name)
            additional: tuple[int, ...] = ()
        else:
            gid = entry.gid if entry is not None else 0
            additional = _memberships(root_fd, entry.name) if entry is not None else ()
    user_id = entry.uid if uid is None and entry is not None else uid
    assert user_id is not None
    assert gid is not None
    # Without the primary group in the list a setgid program could drop it (CVE-2022-36109).
    gids = tuple(dict.fromkeys((gid, *additional)))
    home = entry.home if entry is not None and entry.home.startswith("/") else _NO_HOME
    return User(uid=user_id, gid=gid, additional_gids=gids), home


def _number(text: str, what: str, wanted: str) -> int | None:
    """The number; None for a name."""
    if not (text.isascii() and text.isdigit()):
        if text[:1] == "-" and text[1:].isdigit():
            raise InvalidSpec(f"user {wanted!r}: {what} {text} must be 0 to {MAX_ID}")
        return None
    # The length first: int() of a very long text takes very long.
    if len(text) > 10 or int(text) > MAX_ID:
        raise InvalidSpec(f"user {wanted!r}: {what} {text[:32]} must be 0 to {MAX_ID}")
    return int(text)


def _find_user(root_fd: int, name: str, uid: int | None) -> _Passwd | None:
    for entry in _passwd(root_fd):
        if entry.uid == uid if uid is not None else entry.name == name:
            return entry
    return None


def _find_group(root_fd: int, name: str) -> int:
    for group in _groups(root_fd):
        if group.name == name:
            return group.gid
    raise NotFound(f"no group {name!r} in the image's /etc/group")


def _memberships(root_fd: int, name: str) -> tuple[int, ...]:
    return tuple(group.gid for group in _groups(root_fd) if name in group.members)


def _passwd(root_fd: int) -> Iterator[_Passwd]:
    for fields in _records(root_fd, "/etc/passwd"):
        if len(fields) >= 6 and fields[0] and _is_id(fields[2]) and _is_id(fields[3]):
            # A control character in HOME would end up in the environment of every program.
            home = fields[5] if fields[5].isprintable() else ""
            yield _Passwd(fields[0], int(fields[2]), int(fields[3]), home)


def _groups(root_fd: int) -> Iterator[_Group]:
    for fields in _records(root_fd, "/etc/group"):
        if len(fields) >= 4 and fields[0] and _is_id(fields[2]):
            yield _Group(fields[0], int(fields[2]), tuple(filter(None, fields[3].split(","))))


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID


def _records(root_fd: int, path: str) -> Iterator[list[str]]:
    try:
        content = read_inside(root_fd, path, DATABASE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as failed:
        raise InvalidSpec(f"{path} in the image can't be read ({failed.strerror})") from failed
    for line in content.decode("utf-8", "replace").split("\n"):
        if line and line[0] != "#":
            yield line.rstrip("\r").split(":")
