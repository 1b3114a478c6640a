"""What is told of a container, as values."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["State", "StateInfo"]


class State(StrEnum):
    """What happened to a container."""

    CREATE = "create"
    START = "start"
    RESTORE = "restore"
    PAUSE = "pause"
    RESUME = "resume"
    OOM = "oom"
    START_PROCESS = "start-process"
    EXIT_PROCESS = "exit-process"
    EXIT = "exit"
    RESTART = "restart"


class StateInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One state change. Fields that do not apply to `state` keep their defaults.

    Attributes:
        seq: counts the events of one container within an engine's life, from 1.
        generation: the run, from 1. process_id: `"init"` or the exec's name.
        exit_code: 128+n when `signal` is n; unsigned 32 bits on Windows; -1 only with `exit_code_known` False.
        reason: for an end, why it is not known or the program never started (`not_started`), or why it is started
            again; for people.
        drained: what ended each stream's drain: `eof`, `buffered` (all that was there at the exit, while somebody
            else holds the pipe open), `stuck` (the consumer made no progress).
        oom_kills, memory_peak_bytes, cpu_ns: of the whole cgroup, read before it was removed; `oom` has the kills of
            the run so far.
        started_at, finished_at: Unix time in seconds; started_mono, finished_mono: for durations.
        restart_delay_s: for a restart: how long after it the next run begins, at the earliest.
        restarts: for a start and a restart: what the next decisions about restarts rest on (`RestartManager.saved`).
        error: the clean-up's failure, if it failed; changes nothing else.
    """

    state: State
    container_id: str
    generation: int
    seq: int
    process_id: str = "init"
    pid: int = 0
    exit_code: int = 0
    exit_code_known: bool = True
    signal: int | None = None
    reason: str | None = None
    not_started: bool = False
    update_pending: bool = False
    oom_killed: bool = False
    oom_kills: int | None = None
    memory_peak_bytes: int | None = None
    cpu_ns: int | None = None
    drained: tuple[str, ...] = ()
    started_at: float | None = None
    finished_at: float | None = None
    started_mono: float | None = None
    finished_mono: float | None = None
    restart_delay_s: float | None = None
    restarts: bytes = b""
    error: BaseException | None = None
