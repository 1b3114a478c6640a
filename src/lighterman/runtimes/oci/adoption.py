"""A container whose keeper was lost: found again by the runtime's own state, known by pid and start time. Blocking."""

from __future__ import annotations

import contextlib
import os
import time

import msgspec

from lighterman.errors import NotFound
from lighterman.keeper.client import JobExit
from lighterman.keeper.slots import read_exit_slots
from lighterman.runtimes.base import Stdio
from lighterman.runtimes.oci.process import OciProcess
from lighterman.runtimes.oci.processes import open_pidfd_checked

__all__ = ["Evidence", "adopt", "find_evidence"]


class _CrunStatus(msgspec.Struct, rename="kebab"):
    """What crun writes into `status`."""

    pid: int
    process_start_time: int


class _RuncState(msgspec.Struct):
    """What runc writes into `state.json`."""

    init_process_pid: int
    init_process_start: int


# Made here: msgspec crashes where two threads decode a type for the first time at once.
_STATES: dict[str, msgspec.json.Decoder[_CrunStatus] | msgspec.json.Decoder[_RuncState]] = {
    "status": msgspec.json.Decoder(_CrunStatus),
    "state.json": msgspec.json.Decoder(_RuncState),
}


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Which process it was, and what a keeper had written down of its end."""

    job: str
    pid: int
    start_time: int
    exit: JobExit | None


def find_evidence(runtime_state: str, exits_dir: str, id: str) -> Evidence | None:
    """None where the runtime has no state of the container."""
    found = _init_process(runtime_state)
    if found is None:
        return None
    pid, start_time = found
    for name in _listed(exits_dir):
        with contextlib.suppress(OSError):
            for slot in read_exit_slots(f"{exits_dir}/{name}"):
                if slot.job.startswith(f"{id}:") and (slot.pid, slot.start_time) == found:
                    end = JobExit(
                        job=slot.job,
                        status=slot.status,
                        mono=slot.mono_ns / 1e9,
                        wall=slot.wall_ns / 1e9,
                        lease_ended=slot.lease_ended,
                    )
                    return Evidence(job=slot.job, pid=pid, start_time=start_time, exit=end)
    return Evidence(job=f"{id}:adopted", pid=pid, start_time=start_time, exit=None)


def adopt(evidence: Evidence) -> OciProcess:
    """The process without its streams: those went with the keeper and the engine that held them."""
    pidfd = None
    if evidence.exit is None:
        # It may have ended unseen: then its handle says so at once, and that its code is not known.
        with contextlib.suppress(NotFound):
            pidfd = open_pidfd_checked(evidence.pid, evidence.start_time)
    return OciProcess(
        job=evidence.job,
        pid=evidence.pid,
        pidfd=pidfd,
        start_time=evidence.start_time,
        started_mono=_started_mono(evidence.start_time),
        stdio=Stdio(stdin=None, stdout=None, stderr=None),
        terminal=None,
        keeper=None,
        known_exit=evidence.exit,
    )


def _init_process(directory: str) -> tuple[int, int] | None:
    for name, decoder in _STATES.items():
        try:
            with open(f"{directory}/{name}", "rb") as file:
                state = decoder.decode(file.read(1 << 20))
        except (OSError, msgspec.DecodeError, msgspec.ValidationError):
            continue
        if isinstance(state, _CrunStatus):
            return state.pid, state.process_start_time
        assert isinstance(state, _RuncState)
        return state.init_process_pid, state.init_process_start
    return None


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _started_mono(start_time: int) -> float:
    since_boot = start_time / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
