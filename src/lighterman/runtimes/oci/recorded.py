"""What keepers have written down of a process's end, for who can't ask them any more. Blocking."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from lighterman.keeper.client import JobExit
from lighterman.keeper.slots import ExitSlot, is_free_to_remove, read_exit_slots
from lighterman.runtimes.oci.processes import PidRef

__all__ = ["RecordedEnd", "forget_recorded", "recorded_ends", "recorded_exit"]


class RecordedEnd(NamedTuple):
    """Which process it was, and how it ended."""

    process: PidRef
    exit: JobExit


def recorded_exit(exits_dir: str, container: str, process: PidRef) -> JobExit | None:
    """How a process of a container ended; None where no keeper has written that down, or it was acknowledged."""
    for slot in _slots(exits_dir):
        is_it = (slot.pid, slot.start_time) == (process.pid, process.start_time)
        if is_it and slot.job.startswith(f"{container}:"):
            return _exit_of(slot)
    return None


def recorded_ends(exits_dir: str) -> dict[str, list[RecordedEnd]]:
    """Every end that was not acknowledged, by the id of its container; after a reboot no keeper tells them any more."""
    ends: dict[str, list[RecordedEnd]] = {}
    for slot in _slots(exits_dir):
        end = RecordedEnd(PidRef(slot.pid, slot.start_time), _exit_of(slot))
        ends.setdefault(slot.job.partition(":")[0], []).append(end)
    return ends


def forget_recorded(exits_dir: str, *, told: bool) -> None:
    """Remove what dead keepers have left there. Args: told: also files with ends in them: those are in the store."""
    for name in _listed(exits_dir):
        path = f"{exits_dir}/{name}"
        with contextlib.suppress(OSError):
            if is_free_to_remove(path) and (told or not read_exit_slots(path)):
                os.unlink(path)


def _slots(exits_dir: str) -> Iterator[ExitSlot]:
    for name in _listed(exits_dir):
        with contextlib.suppress(OSError):
            yield from read_exit_slots(f"{exits_dir}/{name}")


def _exit_of(slot: ExitSlot) -> JobExit:
    return JobExit(
        job=slot.job,
        status=slot.status,
        mono=slot.mono_ns / 1e9,
        wall=slot.wall_ns / 1e9,
        lease_ended=slot.lease_ended,
    )


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
