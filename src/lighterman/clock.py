"""Time as an argument: the monotonic clock for durations, the wall clock for what people read."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What the supervisor asks of time; `lighterman.testing.FakeClock` is the other implementation."""

    def mono(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""

    def wall(self) -> float:
        """Seconds since the Unix epoch, for showing."""

    async def sleep(self, delay_s: float) -> None:
        """Wait for `delay_s` seconds; 0 or less gives other tasks one turn."""

    def timeout(self, limit_s: float | None) -> AbstractAsyncContextManager[object]:
        """A block that raises TimeoutError when it takes longer than `limit_s` seconds; None has no bound."""


class SystemClock:
    """The host's clocks."""

    def mono(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(max(delay_s, 0.0))

    def timeout(self, limit_s: float | None) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(limit_s)
