"""The options that the version 2 tree is mounted with, which are one set for the whole host.

Whoever mounts the tree somewhere without them takes them away everywhere. CRIU 3.17 does, and `nsdelegate` is what
keeps a container that has its own part of the tree from leaving it. Blocking.
"""

from __future__ import annotations

import logging
import os

from lighterman.runtimes.oci.cgroups.host import CgroupHost
from lighterman.runtimes.oci.syscalls import remount

__all__ = ["MountOptions"]

log = logging.getLogger(__name__)

# sys/mount.h, for the options of one mount that mountinfo shows in words.
_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}


class MountOptions:
    """What they were when this was made; `set_back` makes them so again, where somebody has changed them since."""

    def __init__(self, host: CgroupHost) -> None:
        self._path = host.unified.mount_point if host.unified is not None else None
        self._before = self._read()

    def set_back(self) -> None:
        """What can't be set back is logged."""
        now = self._read()
        if self._path is None or self._before is None or now is None or now == self._before:
            return
        words, options = self._before
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
