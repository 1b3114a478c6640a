"""A container whose keeper was lost: found again by the runtime's own state, known by pid and start time. Blocking."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import msgspec

from lighterman.errors import NotFound
from lighterman.keeper.client import JobExit
from lighterman.runtimes.base import Stdio
from lighterman.runtimes.oci.process import OciProcess
from lighterman.runtimes.oci.processes import PidRef, open_pidfd_checked
from lighterman.runtimes.oci.recorded import recorded_exit
from lighterman.runtimes.oci.tree import Members
from lighterman.scarcity import Reserve

__all__ = ["Evidence", "adopt", "find_evidence", "of_process"]


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
    return of_process(exits_dir, id, PidRef(pid, start_time))


def of_process(exits_dir: str, id: str, process: PidRef) -> Evidence:
    """Of one process of a container, whose number is known from elsewhere."""
    end = recorded_exit(exits_dir, id, process)
    job = end.job if end is not None else f"{id}:adopted"
    return Evidence(job=job, pid=process.pid, start_time=process.start_time, exit=end)


def adopt(
    evidence: Evidence,
    exits_dir: str,
    *,
    members: Callable[[int], Members] | None = None,
    clean_up: Callable[[], None] | None = None,
    reserve: Reserve | None = None,
) -> OciProcess:
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
        exits_dir=exits_dir,
        members=members,
        clean_up=clean_up,
        reserve=reserve,
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


def _started_mono(start_time: int) -> float:
    since_boot = start_time / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
