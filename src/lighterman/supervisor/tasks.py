"""The tasks that a client owns: none is forgotten, none is left behind when it closes.

Not a TaskGroup: that one cancels every sibling when one task fails, and has to be left by the task that entered it.
Here one container must never end because of another, and a web framework's start-up and shut-down are different tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

__all__ = ["OwnedTasks"]

from lighterman.errors import InternalError, LightermanError

log = logging.getLogger(__name__)


class OwnedTasks:
    """`watch` is for what close() cancels, `finish` for what it waits for: clean-up, events, what was asked to end."""

    def __init__(self) -> None:
        self._watching: set[asyncio.Task[None]] = set()
        self._finishing: set[asyncio.Task[None]] = set()

    def watch(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task that ends early when the client closes."""
        return self._start(work, name, self._watching)

    def finish(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task that the closing client waits for."""
        return self._start(work, name, self._finishing)

    async def finish_and_wait(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """As `finish`, and wait for it; its error belongs to who waits. Cancelled: only the waiting ends."""
        task = self._start(work, name, self._finishing, reported=False)
        await asyncio.shield(task)

    def _start(
        self, work: Coroutine[Any, Any, None], name: str, among: set[asyncio.Task[None]], *, reported: bool = True
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        among.add(task)
        task.add_done_callback(among.discard)
        if reported:
            task.add_done_callback(_report)
        return task

    async def settle(self, within_s: float) -> None:
        """Wait for what is to be finished, at most so many seconds; nothing is cancelled."""
        deadline = asyncio.get_running_loop().time() + within_s
        while self._finishing and (left_s := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._finishing, timeout=left_s)

    async def close(self, finish_s: float) -> None:
        """Cancel what only watches; give the rest `finish_s` seconds of real time, then cancel that too."""
        while self._watching:
            for task in self._watching:
                task.cancel()
            # Bounded, and asked again: a cancellation that meets an answer in the same moment can be lost.
            await asyncio.wait(self._watching, timeout=finish_s)
        if self._finishing:
            await asyncio.wait(self._finishing, timeout=finish_s)
        while self._finishing:
            log.error("not finished after %g s: %s", finish_s, ", ".join(task.get_name() for task in self._finishing))
            for task in self._finishing:
                task.cancel()
            await asyncio.wait(self._finishing)


def _report(task: asyncio.Task[None]) -> None:
    if task.cancelled() or (failed := task.exception()) is None:
        return
    if isinstance(failed, LightermanError) and not isinstance(failed, InternalError):
        log.error("task %s failed: %s", task.get_name(), failed)
    else:
        log.error("task %s failed: please report", task.get_name(), exc_info=failed)
