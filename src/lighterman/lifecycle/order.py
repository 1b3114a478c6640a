"""Which state change may follow which, as a table; a checker that holds a stream of events to it [L39].

[create] ( exit | run ( restart run )* ( exit | restart exit ) )
run = (start | restore) { pause | resume | oom | start-process | exit-process }
"""

from __future__ import annotations

from enum import Enum, auto

from lighterman.errors import InternalError
from lighterman.lifecycle.events import State, StateInfo

__all__ = ["ORDER", "OrderChecker", "Phase"]


class Phase(Enum):
    """What is known of a container from the events told so far."""

    NEW = auto()
    CREATED = auto()
    RUNNING = auto()
    RESTORED = auto()  # running, and whether it is paused was told to an earlier engine
    PAUSED = auto()
    RESTARTING = auto()
    ENDED = auto()


_BEGINNINGS = {State.START: Phase.RUNNING, State.RESTORE: Phase.RESTORED, State.EXIT: Phase.ENDED}
_ENDS = {State.EXIT: Phase.ENDED, State.RESTART: Phase.RESTARTING}


def _stays(phase: Phase) -> dict[State, Phase]:
    return {State.OOM: phase, State.START_PROCESS: phase, State.EXIT_PROCESS: phase}


# An absent key is an illegal order.
ORDER: dict[Phase, dict[State, Phase]] = {
    Phase.NEW: {State.CREATE: Phase.CREATED, **_BEGINNINGS},
    Phase.CREATED: {**_BEGINNINGS},
    Phase.RUNNING: {State.PAUSE: Phase.PAUSED, **_stays(Phase.RUNNING), **_ENDS},
    Phase.RESTORED: {
        State.PAUSE: Phase.PAUSED,
        State.RESUME: Phase.RUNNING,
        **_stays(Phase.RESTORED),
        **_ENDS,
    },
    Phase.PAUSED: {State.RESUME: Phase.RUNNING, **_stays(Phase.PAUSED), **_ENDS},
    Phase.RESTARTING: {**_BEGINNINGS},
    Phase.ENDED: {},
}


class OrderChecker:
    """Accepts the events of one container one by one.

    Beyond the table: `seq` counts without a gap, `generation` never goes back and grows with every new run, each
    exec that was told to start is told to end, once, before its run ends, and an end bears the pid of its start.
    """

    def __init__(self, container_id: str) -> None:
        self.container_id = container_id
        self.phase = Phase.NEW
        self._last: StateInfo | None = None
        self._init_pid: int | None = None
        self._ended_generation = 0
        self._execs: dict[str, int] = {}
        self._restored = False

    def accept(self, info: StateInfo) -> Phase:
        """Take the next event and return the phase after it.

        Raises: InternalError if it is not legal there; then nothing has changed.
        """
        following = ORDER[self.phase].get(info.state)
        if following is None:
            raise self._illegal(info, f"is not legal when {self.phase.name.lower()}")
        self._check_numbers(info)
        if info.state in (State.START_PROCESS, State.EXIT_PROCESS):
            self._check_exec(info)
        elif info.state in (State.START, State.RESTORE):
            self._begin_run(info)
        elif info.state in (State.EXIT, State.RESTART):
            self._end_run(info)
        self._last = info
        self.phase = following
        return following

    @property
    def is_ended(self) -> bool:
        """Whether EXIT was told: what follows under this id is another container."""
        return self.phase is Phase.ENDED

    def _check_numbers(self, info: StateInfo) -> None:
        if info.container_id != self.container_id:
            raise self._illegal(info, f"belongs to {info.container_id!r}")
        expected = 1 if self._last is None else self._last.seq + 1
        if info.seq != expected:
            raise self._illegal(info, f"has seq {info.seq} instead of {expected}")
        if self._last is not None and info.generation < self._last.generation:
            raise self._illegal(info, f"goes back from generation {self._last.generation} to {info.generation}")

    def _check_exec(self, info: StateInfo) -> None:
        running = self._execs.get(info.process_id)
        if info.process_id == "init":
            raise self._illegal(info, "names the init process")
        if info.state is State.START_PROCESS:
            if running is not None:
                raise self._illegal(info, f"names {info.process_id!r}, which runs")
            self._execs[info.process_id] = info.pid
            return
        # What an earlier engine started is told to end by this one.
        if running is None and not self._restored:
            raise self._illegal(info, f"names {info.process_id!r}, which does not run")
        if running is not None and running != info.pid:
            raise self._illegal(info, f"has pid {info.pid} instead of {running}")
        self._execs.pop(info.process_id, None)

    def _begin_run(self, info: StateInfo) -> None:
        if info.generation <= self._ended_generation:
            raise self._illegal(info, f"begins generation {info.generation}, which has ended")
        self._init_pid = info.pid
        self._restored = info.state is State.RESTORE

    def _end_run(self, info: StateInfo) -> None:
        if self._execs:
            raise self._illegal(info, f"leaves {sorted(self._execs)} without an end")
        if self.phase not in (Phase.NEW, Phase.CREATED, Phase.RESTARTING) and info.pid != self._init_pid:
            raise self._illegal(info, f"has pid {info.pid} instead of {self._init_pid}")
        if not info.exit_code_known and info.exit_code != -1:
            raise self._illegal(info, f"has exit code {info.exit_code} though it is not known")
        if info.exit_code_known and info.exit_code < 0:
            raise self._illegal(info, f"has exit code {info.exit_code} as a known one")
        self._ended_generation = info.generation

    def _illegal(self, info: StateInfo, why: str) -> InternalError:
        return InternalError(
            f"event {info.state} (seq {info.seq}) of {self.container_id!r} {why}", container=self.container_id
        )
