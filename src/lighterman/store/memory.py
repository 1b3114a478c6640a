"""The store of a private root: it ends with its engine, and so does everything in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from lighterman.store.base import Change, Loaded, StoredEvent

__all__ = ["MemoryStore"]


class MemoryStore:
    """The face of `Store` over a list of events; records need no keeping, since the engine has them in memory."""

    never_waits = True

    def __init__(self) -> None:
        self._events: deque[StoredEvent] = deque()
        self._last = 0

    @property
    def newest(self) -> int:
        return self._last

    async def load(self, boot_id: str, now: float) -> Loaded:
        return Loaded()

    async def keep_boot_id(self, boot_id: str) -> None:
        return

    async def commit(self, change: Change) -> int:
        if change.event is None:
            return 0
        for at, body in (*change.earlier, change.event):
            self._last += 1
            self._events.append(StoredEvent(self._last, at, body))
        return self._last

    async def events(self, after: int, limit: int) -> tuple[Sequence[StoredEvent], int]:
        oldest = self._events[0].seq if self._events else self._last + 1
        begin = max(0, after + 1 - oldest)
        return [self._events[index] for index in range(begin, min(begin + limit, len(self._events)))], oldest

    async def last_event(self) -> int:
        return self._last

    async def trim(self, now: float, keep_s: float, keep: int) -> bool:
        while self._events and (len(self._events) > keep or self._events[0].at < now - keep_s):
            self._events.popleft()
        return False

    async def close(self) -> None:
        return
