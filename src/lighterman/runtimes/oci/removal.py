"""Taking away what a run has left: the runtime's state, the cgroups, the bundle, the root's mount. Blocking.

Natively, because `RUNTIME delete` costs as much as half a start; only what is known is removed, and only after the
init has been reaped and nothing is left in the cgroup. Anything unexpected is left to the runtime's own command.
"""

from __future__ import annotations

import contextlib
import os

from lighterman.runtimes.oci.bundle import Bundle
from lighterman.runtimes.oci.cgroups import Cgroup

__all__ = ["remove_natively"]

# What crun 1.8 and runc 1.1 keep of a container: found by looking, asserted by a test.
_STATE_FILES = frozenset({"config.json", "status", "seccomp.bpf", "exec.fifo", "state.json", "checkpoint"})


def remove_natively(runtime_state: str, cgroup: Cgroup, bundle: Bundle) -> list[str]:
    """Remove all of it; returns the paths that are left, for which the runtime has to be asked."""
    left: list[str] = []
    if not cgroup.remove() and not (cgroup.kill() and cgroup.remove()):
        left += cgroup.remaining()
    left += _remove_state(runtime_state)
    if not left:
        left += bundle.remove()
    return left


def _remove_state(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    unknown = [f"{directory}/{name}" for name in names if name not in _STATE_FILES]
    if unknown:
        return unknown
    # A runtime that was killed half-way may have left a process that takes the same away.
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{directory}/{name}")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)
    return []
