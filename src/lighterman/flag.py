"""asyncio.Event without its deque: each costs 760 bytes, and a container that only runs would have eleven of them."""

from __future__ import annotations

import asyncio

__all__ = ["Flag"]


class Flag:
    """A fact that tasks of one event loop wait for."""

    __slots__ = ("_set", "_waiting")

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        """Whether it is so now."""
        return self._set

    def set(self) -> None:
        """From now on it is so; who waits goes on. Again is nothing."""
        if self._set:
            return
        self._set = True
        waiting, self._waiting = self._waiting, None
        for one in waiting or ():
            if not one.done():
                one.set_result(None)

    def clear(self) -> None:
        """It is not so any more."""
        self._set = False

    async def wait(self) -> None:
        """Return once it is so; at once if it is."""
        if self._set:
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waiting is None:
            self._waiting = []
        self._waiting.append(mine)
        try:
            await mine
        finally:
            if self._waiting is not None and mine in self._waiting:
                self._waiting.remove(mine)
