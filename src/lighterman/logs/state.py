"""How a container's log is doing, as `Container.log_state` shows it."""

from __future__ import annotations

from typing import Literal

import msgspec

from lighterman.logs.reader import Cursor
from lighterman.spec import LogPolicy

__all__ = ["LogState", "SinkState"]


class SinkState(msgspec.Struct, frozen=True, kw_only=True):
    """One sink.

    Attributes:
        kind: `callable`, `journald` or `syslog`. sent: records that it took. cursor: the place after the last of them.
        error: why it takes nothing at the moment, or None. failures: how often in a row; it is tried again.
        refused: records among those that were left out, since they are too long for it.
    """

    kind: str
    sent: int
    cursor: Cursor
    error: str | None = None
    failures: int = 0
    refused: int = 0


class LogState(msgspec.Struct, frozen=True, kw_only=True):
    """One container's, of the run that is under way or was last.

    Attributes:
        policy: what happens when the disk refuses, or when a reader that may lose nothing falls behind.
        blocked: why output waits in its pipe, and with it the program: `disk`, `reader` or None.
        dropping: why output is dropped at the moment, likewise.
        error: what the disk said last, while it refuses.
        dropped_bytes: dropped before they were kept. evicted_bytes: deleted before their time, to make room.
    """

    policy: LogPolicy
    blocked: Literal["disk", "reader"] | None = None
    dropping: Literal["disk", "reader"] | None = None
    error: str | None = None
    dropped_bytes: int = 0
    evicted_bytes: int = 0
    sinks: tuple[SinkState, ...] = ()
