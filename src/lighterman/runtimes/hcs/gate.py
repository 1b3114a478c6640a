"""Operations on one handle share it; closing waits for them, and after it none begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from lighterman.errors import AlreadyClosed
from lighterman.runtimes.hcs.threads import CallThreads

__all__ = ["Gate", "undoable"]

T = TypeVar("T")


class Gate:
    """Guards one handle. A call counts until its thread is back, also when nobody waits for it any more."""

    def __init__(self, threads: CallThreads, what: str) -> None:
        self._threads = threads
        self._what = what
        self._users = 0
        self._free = asyncio.Event()
        self._free.set()
        self._closing: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether closing has begun."""
        return self._closing is not None

    async def call(self, call: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """Do `call` on a thread. If cancelled it goes on, and `undo` then takes back what it made.

        Raises: AlreadyClosed.
        """
        if self._closing is not None:
            raise AlreadyClosed(f"{self._what} is closed")
        self._users += 1
        self._free.clear()
        work = self._threads.run(call)
        work.add_done_callback(self._left)
        return await undoable(self._threads, work, undo)

    async def close(self, first: Callable[[], None], call: Callable[[], None]) -> None:
        """`first` at once, so that waiters leave; `call` on a thread when nobody uses the handle.

        Goes on if cancelled. Raises: AlreadyClosed the second time.
        """
        if self._closing is not None:
            raise AlreadyClosed(f"{self._what} was closed already")
        self._closing = asyncio.create_task(self._close(call), name=f"close {self._what}")
        first()
        await asyncio.shield(self._closing)

    async def _close(self, call: Callable[[], None]) -> None:
        await self._free.wait()
        await self._threads.run(call)

    def _left(self, work: asyncio.Future[Any]) -> None:
        self._users -= 1
        if not self._users:
            self._free.set()
        if not work.cancelled():
            work.exception()  # who asked may have been cancelled meanwhile


async def undoable(threads: CallThreads, work: asyncio.Future[T], undo: Callable[[T], object] | None) -> T:
    """The result of `work`; if cancelled it goes on, and `undo` takes back what it made."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if undo is not None:
            work.add_done_callback(lambda done: _undo(threads, done, undo))
        raise


def _undo(threads: CallThreads, work: asyncio.Future[T], undo: Callable[[T], object]) -> None:
    if work.cancelled() or work.exception() is not None:
        return
    result = work.result()
    threads.run(lambda: undo(result)).add_done_callback(lambda done: done.cancelled() or done.exception())
