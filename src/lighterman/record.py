"""What the engine knows of one container: the row of the store."""

from __future__ import annotations

from typing import Literal

import msgspec

from lighterman.lifecycle.status import Status
from lighterman.spec import ContainerSpec, ExitRecord

__all__ = ["Record"]


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One container.

    Attributes:
        generation: of the last run, 0 before the first. starting: of the run that is being started, 0 if none is; an
            engine that finds it set after a crash ends what there is of that run.
        restart_at: while it is restarting: when its next run is due, seconds on the engine's monotonic clock.
        checkpoint: of its own: from which its first run goes on.
        manually_stopped: whether the last run was asked to end; then no policy starts it again.
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
    checkpoint: str | None = None
    manually_stopped: bool = False
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
