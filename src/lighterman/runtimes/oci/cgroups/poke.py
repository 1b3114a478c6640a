"""Waking the kernel before a start, so that the runtime need not wait for it.

A process is moved into a cgroup under a lock whose first writer after some 20 ms waits for an RCU grace period: the
runtime's write to `cgroup.procs` then takes 8 to 16 ms (measured on Linux 6.18 with 2 CPUs: a start 0.1 s after the
last one took 28.6 ms, and 17.0 with this). Moving ourselves to where we already are takes the same lock, early and in
a thread, so that the wait goes by while the start is being prepared. Nothing changes by it.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from lighterman.runtimes.oci.cgroups.host import CgroupHost

__all__ = ["Poke"]

_STILL_AWAKE_S = 0.003  # for this long after the last one another would find nothing to wait for


class Poke:
    """Of one engine; its thread exists from the first use on."""

    def __init__(self, host: CgroupHost) -> None:
        self._path = _own_procs(host)
        self._thread: ThreadPoolExecutor | None = None
        self._last = 0.0

    def __call__(self) -> None:
        """Returns at once."""
        now = monotonic()
        if self._path is None or now - self._last < _STILL_AWAKE_S:
            return
        self._last = now
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="lighterman-poke")
        self._thread.submit(self._move_to_where_we_are, self._path)

    @staticmethod
    def _move_to_where_we_are(path: str) -> None:
        # Where it is not allowed, a start takes as long as without.
        with contextlib.suppress(OSError), open(path, "wb", buffering=0) as procs:
            procs.write(b"0")

    def close(self) -> None:
        """Give the thread back."""
        self._path = None
        if self._thread is not None:
            self._thread.shutdown(wait=False)


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
