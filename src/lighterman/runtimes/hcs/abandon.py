"""What is done with a compute system that nobody wants any more: end it, wait a little, close it."""

from __future__ import annotations

import asyncio
import logging

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import AlreadyClosed, AlreadyStopped, LightermanError
from lighterman.runtimes.hcs.binding import SystemHandle

__all__ = ["abandoned"]

log = logging.getLogger(__name__)

_working: set[asyncio.Task[None]] = set()


async def abandoned(system: SystemHandle, clock: Clock) -> None:
    """End it and close it; goes on in the background if this is cancelled. Failures are logged."""
    task = asyncio.create_task(_abandon(system, clock), name=f"abandon {system.id}")
    _working.add(task)
    task.add_done_callback(_working.discard)
    await asyncio.shield(task)


async def _abandon(system: SystemHandle, clock: Clock) -> None:
    try:
        async with clock.timeout(limits.KILL_WAIT_S):
            await system.terminate()
            await system.wait_exit()
    except AlreadyStopped:
        pass
    except (LightermanError, TimeoutError) as failed:
        log.warning("container %s: ending it failed: %r", system.id, failed)
    try:
        async with clock.timeout(limits.RUNTIME_CALL_S):
            await system.close()
    except AlreadyClosed:
        return
    except (LightermanError, TimeoutError) as failed:
        log.warning("container %s: closing it failed: %r", system.id, failed)
