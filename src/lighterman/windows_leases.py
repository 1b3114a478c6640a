"""What ends a container that nobody ends, on Windows: the service with our last handle, and our own clock.

There is no keeper: a time that is over while no engine is there ends nothing, but the next engine does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable

from lighterman.books import Books
from lighterman.entry import Entry
from lighterman.errors import InvalidSpec, InvalidState, LightermanError, NotFound, NotSupported, StoreError
from lighterman.lease import ConnectionLease, Lease, check_ttl
from lighterman.record import Record
from lighterman.supervisor.tasks import OwnedTasks

__all__ = ["WindowsLeases"]

log = logging.getLogger(__name__)

WITH_ENGINE = "engine"
_LOOK_S = 5.0  # the loop's clock may stand still while the host is suspended


class WindowsLeases:
    """See `engine.platform.HostLeases`. Args: end: ends what runs, as the lease's doing."""

    def __init__(self, tasks: OwnedTasks, books: Callable[[], Books], end: Callable[[Entry], Awaitable[None]]) -> None:
        self._tasks = tasks
        self._books = books
        self._end = end
        self._timers: dict[str, asyncio.Task[None]] = {}

    def of(self, record: Record) -> Lease:
        """See `Container.lease`."""
        return Lease(
            kind=record.lease,
            owner=os.getpid() if record.lease is not None else None,
            ttl_s=record.ttl_s,
            left_s=max(0.0, record.until - time.monotonic()) if record.until is not None else None,
        )

    def job_lease(self, record: Record) -> str | None:
        """Whether it ends with us: also what has a time, for nobody else would see that it is over."""
        return WITH_ENGINE if record.lease is not None or record.ttl_s is not None else None

    async def renew(self, entry: Entry, ttl_s: float | None, lease: ConnectionLease | None) -> None:
        """See `Container.renew`."""
        record = entry.record
        if lease is not None:
            raise NotSupported("a lease of a connection: on Windows nobody else can watch it")
        if ttl_s is None:
            raise InvalidSpec(f"container {record.name}: nothing to renew: give ttl_s")
        ttl_s = check_ttl(ttl_s)
        if record.ttl_s is None:
            raise InvalidState(f"container {record.name} has no ttl_s to renew", container=record.id)
        if entry not in self._books():
            raise NotFound(f"container {record.name} was removed", container=record.id)
        before = record.ttl_s, record.until
        if record.until is not None and record.until <= time.monotonic():
            raise InvalidState(f"the lease of container {record.name} is over", container=record.id)
        record.ttl_s = ttl_s
        record.until = time.monotonic() + ttl_s if record.until is not None else None
        try:
            await self._books().save(entry)
        except StoreError:
            record.ttl_s, record.until = before
            raise
        self._begin_timer(entry)

    # ---- a container's life ----

    def take(self, entry: Entry, lease: str | int | ConnectionLease | None) -> None:
        """Raises: NotSupported for an owner that is not this process."""
        if entry.record.lease in ("owner", "connection"):
            raise NotSupported(
                f"lease {lease!r:.80}: on Windows a container ends with its engine ('process', 'scope'), or not (None)"
            )

    async def made(self, entry: Entry) -> None:
        """Nothing has to be told to anybody."""

    async def begin(self, entry: Entry) -> None:
        """It is about to be started: its time begins, or goes on if a policy starts it."""
        record = entry.record
        if record.ttl_s is not None and record.until is None:
            record.until = time.monotonic() + record.ttl_s
        self._begin_timer(entry)

    async def take_up(self, entry: Entry) -> None:
        """Nothing runs since an earlier engine."""
        entry.record.until = None

    def ended(self, entry: Entry) -> None:
        """Nothing of it runs any more, and no policy starts it again."""
        entry.record.until = None
        self._end_timer(entry)

    def removed(self, entry: Entry) -> None:
        """It is no longer there; again is nothing."""
        self._end_timer(entry)

    def close(self) -> None:
        """The tasks are ended by who owns them."""
        self._timers.clear()

    # ---- inside ----

    def _begin_timer(self, entry: Entry) -> None:
        self._end_timer(entry)
        if entry.record.until is not None:
            timer = self._tasks.watch(self._watch_time(entry), f"watch the time of {entry.record.name}")
            self._timers[entry.record.id] = timer

    def _end_timer(self, entry: Entry) -> None:
        timer = self._timers.pop(entry.record.id, None)
        if timer is not None:
            timer.cancel()

    async def _watch_time(self, entry: Entry) -> None:
        record = entry.record
        while record.until is not None and (left_s := record.until - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(left_s, _LOOK_S))  # no event tells that the host was suspended
        if record.until is not None:
            self._timers.pop(record.id, None)
            self._tasks.finish(self._end_quietly(entry), f"end {record.name}")

    async def _end_quietly(self, entry: Entry) -> None:
        try:
            await self._end(entry)
        except LightermanError as failed:
            log.error("container %s: its lease is over, and it can't be ended: %s", entry.record.name, failed)
