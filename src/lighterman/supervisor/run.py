"""What belongs to one run of a container, and to no other: a restart begins with a new one [L37]."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from lighterman.errors import InvalidState, NotFound
from lighterman.runtimes.base import ComputeSystem
from lighterman.supervisor.ending import Ending
from lighterman.supervisor.process import Process

__all__ = ["ExecLife", "Run"]


@dataclass(slots=True)
class ExecLife:
    """One exec process from the request to its told end; `process` is None until the runtime has started it."""

    name: str
    process: Process | None = None
    task: asyncio.Task[None] | None = None
    told_start: bool = False


@dataclass(slots=True)
class Run:
    """One life of the compute system."""

    generation: int
    system: ComputeSystem
    ending: Ending
    init: Process | None = None
    execs: dict[str, ExecLife] = field(default_factory=dict)
    paused: bool = False
    pause_unknown: bool = False  # restored, or a pause that was not answered: the runtime knows better
    restored: bool = False  # until it is known not to be paused: its PAUSE may have been told by an earlier engine
    thaw_wanted: bool = False  # somebody wants it to die or to stop: a pause under way must not freeze it for ever
    saving: str | None = None  # the checkpoint that is being made: all of it is frozen meanwhile
    ends_by_checkpoint: bool = False  # nothing follows it, as after a stop; one that fails takes back no stop
    stopping: bool = False
    stop_signals: int = 0  # delivered, or being delivered
    marked_before: bool = False  # as stopped by request, when the first of them was asked for
    killed_at: float | None = None  # when its end by SIGKILL was asked for first, Unix time
    restart_reason: str | None = None  # why another run is to follow whatever the policy
    cleanup_error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether the exit of the init process has been observed."""
        return self.init is not None and self.init.exited.is_set()

    def process(self, name: str) -> Process:
        """The init process or an exec that runs. Raises: NotFound, InvalidState while it is being started."""
        if name == "init":
            if self.init is None:
                raise InvalidState(f"container {self.system.id} is being started")
            return self.init
        life = self.execs.get(name)
        if life is None:
            raise NotFound(f"container {self.system.id} has no process {name!r}")
        if life.process is None:
            raise InvalidState(f"process {name!r} of container {self.system.id} is being started")
        return life.process
