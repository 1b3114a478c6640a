"""Tells the backend of one container id's changes: in order, one at a time, never awaited by the owner [L27]."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from lighterman.lifecycle.events import StateInfo
from lighterman.supervisor.backend import Backend

__all__ = ["Delivery", "Spawn"]

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class Delivery:
    """Belongs to the id, not to one container under it: a backend may create the id anew while it hears of its EXIT."""

    def __init__(self, backend: Backend, spawn: Spawn, when_idle: Callable[[], None]) -> None:
        self._backend = backend
        self._spawn = spawn
        self._when_idle = when_idle
        self._queue: deque[StateInfo] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether everything has been told."""
        return self._task is None

    def tell(self, info: StateInfo) -> None:
        """Queue one change; returns at once."""
        self._queue.append(info)
        if self._task is None:
            self._task = self._spawn(self._deliver(), f"deliver {info.container_id}")

    async def _deliver(self) -> None:
        try:
            while self._queue:
                await self._tell_backend(self._queue.popleft())
        finally:
            self._task = None
            self._when_idle()

    async def _tell_backend(self, info: StateInfo) -> None:
        try:
            await self._backend.state_changed(info)
        except Exception:  # a backend may raise anything; the container's life goes on [L26]
            log.exception("the backend failed on %s of container %s", info.state, info.container_id)
