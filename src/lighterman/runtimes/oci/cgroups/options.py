"""The options that the version 2 tree is mounted with, which are one set for the whole host.

Whoever mounts the tree somewhere without them takes them away everywhere. CRIU 3.17 does, and `nsdelegate` is what
keeps a container that has its own part of the tree from leaving it. Blocking; errors are OSErrors.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from lighterman.runtimes.oci.cgroups.host import CgroupHost
from lighterman.runtimes.oci.syscalls import remount

__all__ = ["MountOptions"]

log = logging.getLogger(__name__)

_RECORD = "cgroup-options"  # what they were: those of the mount, a line break, those of the tree
_CALLS = "cgroup-options.calls"  # locked by each call
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

# sys/mount.h, for the options of one mount that mountinfo shows in words.
_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}


class MountOptions:
    """For one call that may take them away.

    What they were before the first of the calls that overlap, on the whole host, is written down; the last one sets
    them back. A call is a shared lock, which goes with its engine: what is written down and not locked was left by one
    that was killed, and `recover` sets it back.

    Args: directory: one for all engines of the host, gone after a reboot.
    """

    def __init__(self, host: CgroupHost, directory: str) -> None:
        self._path = host.unified.mount_point if host.unified is not None else None
        self._directory = directory
        self._record = f"{directory}/{_RECORD}"
        self._call: int | None = None

    def begin(self) -> None:
        """Before it."""
        if self._path is None:
            return
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        with self._alone():
            self._recover()
            self._call = os.open(f"{self._directory}/{_CALLS}", _OPEN, 0o600)
            fcntl.flock(self._call, fcntl.LOCK_SH)
            now = self._read()
            if now is not None and not os.path.exists(self._record):
                self._write(now)

    def end(self) -> None:
        """After it, however it went; harmless where none was begun."""
        if self._call is None:
            return
        with self._alone():
            os.close(self._call)
            self._call = None
            self._recover()

    def recover(self) -> None:
        """Set back what a killed engine could not. Cheap where there is nothing."""
        if self._path is not None and os.path.exists(self._record):
            with self._alone():
                self._recover()

    def _recover(self) -> None:
        if not os.path.exists(self._record):
            return
        calls = os.open(f"{self._directory}/{_CALLS}", _OPEN, 0o600)
        try:
            try:
                fcntl.flock(calls, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another call is under way, and its end comes here
            with open(self._record, encoding="utf-8", errors="surrogateescape") as file:
                before = file.read().split("\n")
            # Written in one piece, so a record of another form is none of ours.
            if len(before) == 2:
                self._set_back(before[0], before[1])
            os.unlink(self._record)
            os.unlink(f"{self._directory}/{_CALLS}")  # nobody waits for it: all of this is done alone
        finally:
            os.close(calls)

    def _set_back(self, words: str, options: str) -> None:
        """What can't be set back is logged."""
        now = self._read()
        if self._path is None or now is None or now == (words, options):
            return
        flags = 0
        for word in words.split(","):
            flags |= _FLAGS.get(word, 0)
        try:
            remount(self._path, flags, ",".join(option for option in options.split(",") if option not in ("rw", "ro")))
        except OSError as failed:
            log.error(
                "%s has lost mount options (%s, now %s), and they can't be set back: %s",
                self._path,
                options,
                now[1],
                os.strerror(failed.errno or 0),
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Among all engines: these are short, but for a call of mount(2)."""
        lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, now: tuple[str, str]) -> None:
        temporary = f"{self._record}.new"
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write("\n".join(now))
        os.replace(temporary, self._record)

    def _read(self) -> tuple[str, str] | None:
        """The options of the mount and those of the tree (proc(5), mountinfo); None where it is not mounted."""
        found = None
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                mount, _, source = line.rstrip("\n").partition(" - ")
                fields, details = mount.split(" "), source.split(" ")
                if details[0] == "cgroup2" and fields[4] == self._path:
                    found = fields[5], details[-1]
        return found
