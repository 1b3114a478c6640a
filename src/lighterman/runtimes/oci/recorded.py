"""What keepers have written down of a process's end, for who can't ask them any more. Blocking."""

from __future__ import annotations

import contextlib
import os

from lighterman.keeper.client import JobExit
from lighterman.keeper.slots import read_exit_slots
from lighterman.runtimes.oci.processes import PidRef

__all__ = ["recorded_exit"]


def recorded_exit(exits_dir: str, container: str, process: PidRef) -> JobExit | None:
    """How a process of a container ended; None where no keeper has written that down, or it was acknowledged."""
    for name in _listed(exits_dir):
        with contextlib.suppress(OSError):
            for slot in read_exit_slots(f"{exits_dir}/{name}"):
                is_it = (slot.pid, slot.start_time) == (process.pid, process.start_time)
                if is_it and slot.job.startswith(f"{container}:"):
                    return JobExit(
                        job=slot.job,
                        status=slot.status,
                        mono=slot.mono_ns / 1e9,
                        wall=slot.wall_ns / 1e9,
                        lease_ended=slot.lease_ended,
                    )
    return None


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
