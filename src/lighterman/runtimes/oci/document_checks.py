"""Whether a text can be what it is meant to be, before a runtime or the kernel says no in worse words."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping

from lighterman import limits
from lighterman.errors import InvalidSpec

__all__ = [
    "check_annotations",
    "check_arguments",
    "check_environment",
    "check_hostname",
    "check_id",
    "check_target",
    "check_workdir",
    "shown",
    "text_bytes",
]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*")
HOSTNAME_BYTES = 64  # __NEW_UTS_LEN of Linux
_POINTER_AND_NUL = 8 + 1  # execve counts both for each string
PATH_BYTES = 4095  # PATH_MAX of Linux less the NUL

# Each makes a runtime, or systemd, or criu do something that was not checked here.
_REFUSED_ANNOTATIONS = ("run.oci.", "org.systemd.property.", "org.criu.")


def shown(text: str) -> str:
    """`text` for an error: one line, and short."""
    return repr(text) if len(text) <= 80 else f"{text[:77]!r}..."


def check_id(id: str) -> None:
    """It becomes part of paths and of cgroup names. Raises: InvalidSpec."""
    if len(id) > limits.NAME_CHARS or not _ID.fullmatch(id):
        raise InvalidSpec(
            f"container id {shown(id)}: must be letters, digits, '_', '.', '-', the first a letter or digit, "
            f"at most {limits.NAME_CHARS}"
        )


def check_arguments(args: tuple[str, ...]) -> int:
    """An argument vector: not empty, no NUL, as small as execve wants it.

    Returns: what it takes of execve's limit, in bytes. Raises: InvalidSpec.
    """
    if not args:
        raise InvalidSpec("no command given and the image has none")
    if not args[0]:
        raise InvalidSpec("the command is an empty string")
    total = 0
    for text in args:
        size = text_bytes(text, "argument")
        if size > limits.ARGUMENT_BYTES:
            raise InvalidSpec(f"argument {shown(text)} is {size} bytes, more than the kernel's {limits.ARGUMENT_BYTES}")
        total += size + _POINTER_AND_NUL
    if total > limits.ARGV_BYTES:
        raise InvalidSpec(f"the arguments are {total} bytes, more than {limits.ARGV_BYTES}")
    return total


def check_environment(env: Mapping[str, str], *, beside: int) -> None:
    """Names and values, and the size of all. `beside` is what `check_arguments` gave. Raises: InvalidSpec."""
    total, room = 0, 0
    longest, longest_name = 0, ""
    for name, value in env.items():
        if not name or "=" in name or "\n" in name:
            raise InvalidSpec(f"environment name {shown(name)}: must not be empty, nor hold '=' or a newline")
        size = text_bytes(name, "environment name") + 1 + text_bytes(value, f"environment variable {shown(name)}")
        if size > longest:
            longest, longest_name = size, name
        total += size
        room += size + _POINTER_AND_NUL
    if room > limits.ARGV_BYTES:
        raise InvalidSpec(f"environment is {total} bytes, more than {limits.ARGV_BYTES}: pass large data in a file")
    if longest > limits.ARGUMENT_BYTES:
        raise InvalidSpec(
            f"environment variable {shown(longest_name)} is {longest} bytes, more than the kernel's "
            f"{limits.ARGUMENT_BYTES}: pass large data in a file"
        )
    if room + beside > limits.ARGV_BYTES:
        raise InvalidSpec(
            f"arguments and environment are {room + beside} bytes together, more than {limits.ARGV_BYTES}: "
            "pass large data in a file"
        )


def check_workdir(path: str) -> None:
    """Absolute, no NUL. Raises: InvalidSpec."""
    if not path.startswith("/"):
        raise InvalidSpec(f"working directory {shown(path)}: must be absolute")
    if text_bytes(path, "working directory") > PATH_BYTES:
        raise InvalidSpec(f"working directory {shown(path)}: longer than {PATH_BYTES} bytes")


def check_hostname(name: str) -> None:
    """Labels joined by dots, at most 64 characters in all. Raises: InvalidSpec."""
    if len(name) > HOSTNAME_BYTES or not _HOSTNAME.fullmatch(name):
        raise InvalidSpec(
            f"hostname {shown(name)}: must be letters, digits, '_', '-' and dots between, at most {HOSTNAME_BYTES}"
        )


def check_target(path: str, what: str = "mount target") -> str:
    """A path in the container that something is put at, without `//`, `.` and a last slash.

    Raises: InvalidSpec for one that is not absolute, has `..`, is the root or lies in /proc.
    """
    if not path.startswith("/"):
        raise InvalidSpec(f"{what} {shown(path)}: must be absolute")
    if ".." in path.split("/"):
        raise InvalidSpec(f"{what} {shown(path)}: must not hold '..'")
    if text_bytes(path, what) > PATH_BYTES:
        raise InvalidSpec(f"{what} {shown(path)}: longer than {PATH_BYTES} bytes")
    if not path.isprintable():
        raise InvalidSpec(f"{what} {shown(path)}: must not hold control characters")
    normal = "/" + posixpath.normpath(path).lstrip("/")
    if normal == "/":
        raise InvalidSpec(f"{what} {shown(path)}: must not be the root itself; use rootfs for that")
    if normal == "/proc" or normal.startswith("/proc/"):
        raise InvalidSpec(f"{what} {shown(path)}: /proc is the kernel's")
    return normal


def check_annotations(names: Iterable[str]) -> None:
    """Refuse what would steer the runtime behind our back. Raises: InvalidSpec."""
    for name in names:
        if name.startswith(_REFUSED_ANNOTATIONS):
            raise InvalidSpec(f"annotation {shown(name)}: only the engine may set it")


def text_bytes(text: str, what: str) -> int:
    """Its size in UTF-8. Raises: InvalidSpec for a NUL, or what is not Unicode text."""
    if "\0" in text:
        raise InvalidSpec(f"{what} {shown(text)}: must not hold a NUL")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as wrong:
        raise InvalidSpec(f"{what} {shown(text)}: is not valid UTF-8, which OCI's JSON needs") from wrong
