"""Waking the kernel before a start, so that the runtime need not wait for it.

A process is moved into a cgroup under a lock whose first writer after some 20 ms waits for an RCU grace period: the
runtime's write to `cgroup.procs` then takes 8 to 16 ms (measured on Linux 6.18 with 2 CPUs: a start 0.1 s after the
last one took 28.6 ms, and 17.0 with this). Moving ourselves to where we already are takes the same lock, early and in
a thread, so that the wait goes by while the start is being prepared. Nothing changes by it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from threading import Thread
from time import monotonic

from lighterman.runtimes.oci.cgroups.host import CgroupHost

__all__ = ["Poke"]

log = logging.getLogger(__name__)

_END = 1 << 32  # rung once, at the end; so many pokes never wait
_STILL_AWAKE_S = 0.003  # for this long after the last one another would find nothing to wait for


class Poke:
    """Of one engine; its thread exists from the first use on.

    Not a pool: its locks and queue would be taken and given under the very start that is to be fast.
    """

    def __init__(self, host: CgroupHost) -> None:
        self._path = _own_procs(host)
        self._bell: int | None = None  # the thread's to close
        self._last = 0.0

    def __call__(self) -> None:
        """Returns at once."""
        now = monotonic()
        if self._path is None or now - self._last < _STILL_AWAKE_S:
            return
        self._last = now
        if self._bell is None:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC)
            Thread(target=_poke, args=(self._path, self._bell), name="lighterman-poke", daemon=True).start()
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """End the thread."""
        self._path = None
        if self._bell is not None:
            bell, self._bell = self._bell, None
            os.eventfd_write(bell, _END)


def _poke(path: str, bell: int) -> None:
    """At each ring, move ourselves to where we are."""
    try:
        procs = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while os.eventfd_read(bell) < _END:
                # Where it is not allowed, a start takes as long as without.
                with contextlib.suppress(OSError):
                    os.write(procs, b"0")
        finally:
            os.close(procs)
    except OSError as failed:
        log.debug("%s can't be written to: %s", path, failed)
        while os.eventfd_read(bell) < _END:
            continue
    finally:
        os.close(bell)


def _own_procs(host: CgroupHost) -> str | None:
    """The `cgroup.procs` of the cgroup that we are in, in any one hierarchy: the lock is one for all."""
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in lines:
        _, names, path = line.split(":", 2)
        for hierarchy in host.hierarchies:
            is_v2 = hierarchy.version == 2 and names == ""
            if is_v2 or (names and hierarchy.version == 1 and set(names.split(",")) & hierarchy.controllers):
                procs = f"{hierarchy.mount_point}{path.rstrip('/')}/cgroup.procs"
                if os.access(procs, os.W_OK):
                    return procs
    return None
