"""What a container is, as last observed, and what each told change makes of it. An absent key is the error."""

from __future__ import annotations

from enum import StrEnum

from lighterman.errors import InternalError
from lighterman.lifecycle.events import State

__all__ = ["Status", "next_status"]


class Status(StrEnum):
    """Docker's words, and `removed`; `removing` is told by the engine alone."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    EXITED = "exited"
    REMOVING = "removing"
    REMOVED = "removed"


TRANSITIONS: dict[Status, dict[State, Status]] = {
    Status.CREATED: {State.START: Status.RUNNING, State.RESTORE: Status.RUNNING, State.EXIT: Status.EXITED},
    Status.RUNNING: {
        State.RESTORE: Status.RUNNING,  # by the next engine, likewise below
        State.PAUSE: Status.PAUSED,
        State.OOM: Status.RUNNING,
        State.START_PROCESS: Status.RUNNING,
        State.EXIT_PROCESS: Status.RUNNING,
        State.EXIT: Status.EXITED,
        State.RESTART: Status.RESTARTING,
    },
    Status.PAUSED: {
        State.RESTORE: Status.PAUSED,
        State.RESUME: Status.RUNNING,
        State.OOM: Status.PAUSED,
        State.START_PROCESS: Status.PAUSED,  # begun before the pause, told after it
        State.EXIT_PROCESS: Status.PAUSED,
        State.EXIT: Status.EXITED,
        State.RESTART: Status.RESTARTING,
    },
    Status.RESTARTING: {
        State.START: Status.RUNNING,
        State.RESTORE: Status.RUNNING,
        State.EXIT: Status.EXITED,
    },
    Status.EXITED: {State.START: Status.RUNNING, State.RESTORE: Status.RUNNING, State.EXIT: Status.EXITED},
    Status.REMOVING: {},
    Status.REMOVED: {},
}


def next_status(status: Status, change: State) -> Status:
    """The status after `change` was told. Raises: InternalError for a change that `status` does not allow."""
    after = TRANSITIONS[status].get(change)
    if after is None:
        raise InternalError(f"{change} was told of a container that is {status}")
    return after
