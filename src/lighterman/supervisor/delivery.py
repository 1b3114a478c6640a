"""Tells the backend of one container id's changes: in order, one at a time, never awaited by the owner [L27]."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from lighterman.errors import LightermanError
from lighterman.lifecycle.events import StateInfo
from lighterman.supervisor.backend import Backend

__all__ = ["Delivery", "Spawn", "Then"]

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]
Then = Callable[[], Awaitable[None]]


class Delivery:
    """Belongs to the id, not to one container under it: a backend may create the id anew while it hears of its EXIT."""

    def __init__(self, backend: Backend, finish: Spawn, watch: Spawn, when_idle: Callable[[], None]) -> None:
        self._backend = backend
        self._finish = finish
        self._watch = watch
        self._when_idle = when_idle
        self._queue: deque[tuple[StateInfo, Then | None]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether everything has been told."""
        return self._task is None

    def tell(self, info: StateInfo, then: Then | None = None) -> None:
        """Queue one change, and what may happen once the backend has heard of it without an error; returns at once."""
        self._queue.append((info, then))
        if self._task is None:
            self._task = self._finish(self._deliver(), f"deliver {info.container_id}")

    async def _deliver(self) -> None:
        try:
            while self._queue:
                info, then = self._queue.popleft()
                has_heard, later = await self._tell_backend(info)
                if not has_heard or then is None:
                    continue
                if later is not None:
                    self._watch(self._do_later(later, info, then), f"after {info.state} of {info.container_id}")
                    continue
                # Whoever waits for what was told goes first.
                await asyncio.sleep(0)
                await self._do_then(info, then)
        finally:
            self._task = None
            self._when_idle()

    async def _tell_backend(self, info: StateInfo) -> tuple[bool, asyncio.Future[None] | None]:
        """Whether it has heard of it, and what is to come first before it is safe with it."""
        try:
            return True, await self._backend.state_changed(info)
        except BaseException as failed:  # a backend may raise anything; the container's life goes on [L26]
            current = asyncio.current_task()
            ours = isinstance(failed, asyncio.CancelledError) and current is not None and not current.cancelling()
            if not isinstance(failed, Exception) and not ours:
                raise
            log.exception("the backend failed on %s of container %s", info.state, info.container_id)
            return False, None

    async def _do_later(self, later: asyncio.Future[None], info: StateInfo, then: Then) -> None:
        await asyncio.shield(later)
        await self._do_then(info, then)

    async def _do_then(self, info: StateInfo, then: Then) -> None:
        try:
            await then()
        except LightermanError as failed:
            log.warning("container %s: after its %s was told: %s", info.container_id, info.state, failed)
