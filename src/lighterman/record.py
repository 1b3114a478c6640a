"""What the engine knows of one container, and of each of its exec processes: the rows of the store."""

from __future__ import annotations

from typing import Literal

import msgspec

from lighterman.lifecycle.status import Status
from lighterman.spec import ContainerSpec, ExitRecord

__all__ = ["ExecRecord", "Record", "Saving", "decode_exec"]


class Saving(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A checkpoint that is being made: written down before anything is done for it.

    Attributes: manually_stopped: what the record had before, for the case that nothing comes of it.
    """

    name: str
    leave_running: bool = False
    manually_stopped: bool = False


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One container.

    Attributes:
        generation: of the last run, 0 before the first. starting: of the run that is being started, 0 if none is; an
            engine that finds it set after a crash ends what there is of that run.
        restart_at: while it is restarting: when its next run is due, seconds on the engine's monotonic clock;
            None: now.
        at_boot: while it is restarting: it is so since its host has come back, and its last end was told as an exit.
        checkpoint: of its own: from which its first run goes on.
        saving: the checkpoint that is being made of it; an engine that finds it set after a crash undoes what is half.
        manually_stopped: whether the last run was asked to end; then no policy starts it again. end_reason: who or what
            has asked for that, until it has ended. kill_at: when it is killed, if it is a stop that waits; seconds on
            the engine's monotonic clock.
        lease: what ends it: `scope`, `process`, `owner`, `connection`, or None: it lives on when the engine has gone.
        owner, owner_started: of the lease `owner`: its pid and start time (clock ticks after boot).
        ttl_s: how long a run may last. until: when the present one is over, seconds on CLOCK_BOOTTIME.
        runtime: which one its last run used.
        oom_kills: of the last run, as many as were told while it lasted. oom_told_at: when the last of them was, in
            seconds on the engine's monotonic clock.
        health, ready: of the last run, once it was found to be so: `healthy`, `unhealthy`.
        startup_over: whether the probe of its startup has succeeded in the last run.
        remedy: what its being unhealthy asks for, until the run has ended by it: `restart`, `stop`, `kill`.
        exit: how the last run ended; None while one is running, and before the first.
    """

    id: str
    name: str
    spec: ContainerSpec
    created_at: float
    lease: str | None = None
    owner: int = 0
    owner_started: int = 0
    ttl_s: float | None = None
    until: float | None = None
    status: Status = Status.CREATED
    generation: int = 0
    starting: int = 0
    restart_at: float | None = None
    at_boot: bool = False
    checkpoint: str | None = None
    saving: Saving | None = None
    manually_stopped: bool = False
    end_reason: str | None = None
    kill_at: float | None = None
    pid: int = 0
    runtime: str = ""
    started_at: float | None = None
    exit: ExitRecord | None = None
    oom_kills: int = 0
    oom_told_at: float | None = None
    health: str | None = None
    ready: bool = False
    startup_over: bool = False
    remedy: Literal["restart", "stop", "kill"] | None = None

    def begin_run(self, started_at: float | None) -> None:
        """What was found of the run before is not of this one."""
        self.started_at, self.exit, self.starting, self.at_boot = started_at, None, 0, False
        self.health, self.ready, self.startup_over, self.remedy = None, False, False, None
        self.oom_kills, self.oom_told_at = 0, None


class ExecRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One exec process of a container.

    Attributes:
        argv: empty where nobody knows it any more: its engine was killed before it had told of the start.
        started_at: Unix time in seconds; None until its start is told.
        pid, start_time: the host's number of it, and clock ticks after boot, where the platform has them: together they
            are this process for ever. generation: the container's run that it belongs to.
        due: when its time is over, seconds on CLOCK_MONOTONIC; None without a bound.
        exit: how it ended; None until that is told. is_kept: whether it can be asked for after that; else the row only
            says that it is told.
    """

    id: str
    argv: tuple[str, ...] = ()
    started_at: float | None = None
    pid: int = 0
    start_time: int | None = None
    generation: int = 0
    due: float | None = None
    exit: ExitRecord | None = None
    is_kept: bool = True


# Made at import: msgspec 0.22 crashes where two threads, each with an engine, meet a new type at once.
_EXEC = msgspec.json.Decoder(ExecRecord)


def decode_exec(encoded: bytes) -> ExecRecord:
    """A row of the store. Raises: msgspec.DecodeError, msgspec.ValidationError."""
    return _EXEC.decode(encoded)
