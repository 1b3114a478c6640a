"""The directory that is handed to the runtime: config.json, the mount point of the root, pid file and log."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Sequence

import msgspec

from lighterman import limits
from lighterman.disks import refusal
from lighterman.errors import InvalidSpec, StoreError
from lighterman.runtimes.oci import syscalls
from lighterman.spec import HostFile

__all__ = ["Bundle", "check_id", "read_last_words", "unlink_all", "write_file", "write_host_files"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# `.pid` is runc's, which writes the pid file under that name first, and leaves it there if it is killed meanwhile.
_KNOWN = ("config.json", "pid", ".pid", "log.json", "console", "criu.conf")


def check_id(id: str) -> None:
    """An id is a part of paths and of cgroup names. Raises: InvalidSpec."""
    if not _ID.fullmatch(id) or len(id) > limits.NAME_CHARS:
        raise InvalidSpec(
            f"container id {id[:140]!r}: must be letters, digits, '_', '.' and '-', begin with a letter or a digit, "
            f"and have at most {limits.NAME_CHARS} characters"
        )


class Bundle(msgspec.Struct, frozen=True):
    """Paths below one directory of ours. All methods do blocking input and output."""

    path: str

    @property
    def rootfs(self) -> str:
        """The mount point."""
        return f"{self.path}/rootfs"

    @property
    def config(self) -> str:
        return f"{self.path}/config.json"

    @property
    def pid_file(self) -> str:
        return f"{self.path}/pid"

    @property
    def log(self) -> str:
        """What the runtime says, one JSON object a line; for people."""
        return f"{self.path}/log.json"

    @property
    def console(self) -> str:
        """The socket on which the runtime sends the terminal."""
        return f"{self.path}/console"

    @property
    def criu_config(self) -> str:
        """What CRIU is told beside what the runtime tells it."""
        return f"{self.path}/criu.conf"

    @property
    def runtime_environment(self) -> dict[str, str]:
        """For every call of the runtime: what it makes outside of its state is made here, and goes with the bundle.

        `_LIBCONTAINER_STATEDIR`: where crun and runc put the file over which they mount their own binary, to execute it
        read-only (CVE-2019-5736); in /tmp otherwise, where a killed one leaves it.
        """
        return {"PATH": os.defpath, "XDG_RUNTIME_DIR": self.path, "_LIBCONTAINER_STATEDIR": self.path}

    def make(self) -> None:
        """Raises: StoreError."""
        try:
            os.makedirs(self.rootfs, mode=0o700)
            # The mount point is seen by a container's user that is not root.
            os.chmod(self.rootfs, 0o755)
        except OSError as failed:
            raise StoreError(refusal(self.path, failed)) from failed

    def write_config(self, encoded: bytes) -> None:
        """Raises: StoreError."""
        write_file(self.config, encoded)

    def last_words(self) -> str:
        """The messages of the runtime's log, the last ones, as one line; empty where there are none."""
        return read_last_words(self.log)

    def remove(self) -> list[str]:
        """Unlink what we know of; returns what is left (nothing, when all is well)."""
        unlink_all(*(f"{self.path}/{name}" for name in _KNOWN))
        try:
            for entry in list(os.scandir(self.path)):
                if entry.name.startswith(("exec-", ".exec-")):
                    unlink_all(entry.path)
                elif entry.name.startswith(("crun.", "runc.")):
                    _unlink_binary(entry.path)
        except FileNotFoundError:
            return []
        for directory in (self.rootfs, self.path):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                return [entry.path for entry in os.scandir(directory)]
        return []


def write_file(path: str, content: bytes, mode: int = 0o600) -> None:
    """Write a whole file, whatever the umask. Raises: StoreError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            if mode != 0o600:
                os.fchmod(fd, mode)
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)
    except OSError as failed:
        raise StoreError(refusal(path, failed)) from failed


def write_host_files(files: Sequence[HostFile]) -> None:
    """Write them, readable by everybody; their directory is ours alone. Raises: StoreError."""
    for directory in {os.path.dirname(file.path) for file in files}:
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as failed:
            raise StoreError(refusal(directory, failed)) from failed
    for file in files:
        write_file(file.path, file.content, 0o644)


def read_last_words(path: str) -> str:
    """The `msg` of each line of a runtime's JSON log, the last ones, within limits.LAST_WORDS_BYTES."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4 * limits.LAST_WORDS_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return ""
    words = []
    for line in lines:
        try:
            entry = msgspec.json.decode(line)
        except msgspec.DecodeError:
            words.append(line.decode(errors="replace"))  # a cut line, or a runtime that does not write JSON
            continue
        if isinstance(entry, dict) and "msg" in entry:
            words.append(str(entry["msg"]))
    return "; ".join(" ".join(word.split()) for word in words)[-limits.LAST_WORDS_BYTES :]


def _unlink_binary(path: str) -> None:
    """Of a runtime that was killed before it unlinked it, or even before it unmounted its binary from there."""
    try:
        unlink_all(path)
    except OSError as failed:
        if failed.errno != errno.EBUSY:
            raise
        syscalls.detach_mount(path)
        unlink_all(path)


def unlink_all(*paths: str) -> None:
    """Unlink each that exists."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
