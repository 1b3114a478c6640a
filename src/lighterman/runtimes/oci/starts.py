"""How many starts run at a time: beyond a few a core only latency grows (see limits.CONCURRENT_STARTS)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lighterman import limits

__all__ = ["StartSlots"]


class StartSlots:
    """A start takes a slot for its time; one slower than START_SLOW_S gives it back, so that a hung one blocks none."""

    def __init__(self, count: int = limits.CONCURRENT_STARTS) -> None:
        self._free = asyncio.Semaphore(count)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
        await self._free.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._free.release()

        timer = asyncio.get_running_loop().call_later(limits.START_SLOW_S, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()
