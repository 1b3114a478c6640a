"""Waiting for something that must not be left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["to_its_end"]

_Result = TypeVar("_Result")


async def to_its_end(work: Coroutine[Any, Any, _Result] | asyncio.Task[_Result]) -> _Result:
    """Wait for `work` however often we are cancelled; a cancellation is raised at the end, in place of its outcome.

    Who has to undo what came of it gives a task, and asks that.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()  # seen: the cancellation is raised instead
        raise asyncio.CancelledError
    return task.result()
