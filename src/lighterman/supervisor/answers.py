"""Answering a future whose asker may have been cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from lighterman.errors import InvalidState
from lighterman.supervisor.delivery import Spawn

__all__ = ["fail", "in_own_task", "succeed"]


def succeed(done: asyncio.Future[Any], value: Any = None) -> None:
    """Set the result, unless it has one."""
    if not done.done():
        done.set_result(value)


def fail(done: asyncio.Future[Any], failed: BaseException) -> None:
    """Set the error, unless it has an answer; nobody need ask for it."""
    if not done.done():
        done.set_exception(failed)
        done.exception()


async def in_own_task(act: Coroutine[Any, Any, None], finish: Spawn, name: str, container_id: str) -> None:
    """What was asked for goes on when who asked is cancelled. Raises: as it; InvalidState if its task is cancelled."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def carry_out() -> None:
        try:
            await act
        except asyncio.CancelledError:
            fail(done, InvalidState(f"container {container_id} is no longer watched", container=container_id))
            raise
        except Exception as failed:  # noqa: BLE001  belongs to who asked
            fail(done, failed)
        else:
            succeed(done)

    finish(carry_out(), name)
    await asyncio.shield(done)
