"""The only door: every change that anybody hears of one container is made here, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lighterman.clock import Clock
from lighterman.lifecycle.events import State, StateInfo
from lighterman.spec import ExitCode
from lighterman.supervisor.delivery import Then
from lighterman.supervisor.process import Process, ProcessEnd

__all__ = ["Teller", "how_it_ended", "how_it_was_found"]


class Teller:
    """Numbers the changes of one container and hands them over; never waits."""

    def __init__(self, container_id: str, deliver: Callable[[StateInfo, Then | None], None]) -> None:
        self._container_id = container_id
        self._deliver = deliver
        self._seq = 0

    def __call__(
        self, generation: int, state: State, process: Process | None, *, then: Then | None = None, **fields: Any
    ) -> StateInfo:
        """Tell one change. Args: then: what may happen once the backend has heard of it without an error."""
        self._seq += 1
        info = StateInfo(
            state=state,
            container_id=self._container_id,
            generation=generation,
            seq=self._seq,
            process_id=process.name if process else "init",
            pid=process.pid if process else 0,
            **fields,
        )
        self._deliver(info, then)
        return info


def how_it_ended(process: Process, end: ProcessEnd) -> dict[str, Any]:
    """The fields of StateInfo that tell of an end."""
    code = end.code or ExitCode(code=-1)
    return {
        "exit_code": code.code,
        "exit_code_known": end.code is not None,
        "signal": code.signal,
        "reason": code.reason if end.code is not None else process.unknown,
        "drained": end.drained,
        # A program can have ended before the runtime that started it has returned.
        "started_at": min(process.started_at, end.finished_at),
        "finished_at": end.finished_at,
        "started_mono": min(process.started_mono, end.finished_mono),
        "finished_mono": end.finished_mono,
    }


def how_it_was_found(process: Process, code: ExitCode, clock: Clock) -> dict[str, Any]:
    """As `how_it_ended`, for an end that nobody has watched; where its time is not known, it is now."""
    finished = (code.finished_mono or clock.mono(), code.finished_at or clock.wall())
    return how_it_ended(process, ProcessEnd(code, *finished, ()))
