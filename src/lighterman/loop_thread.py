"""An event loop in a thread of its own, for who has none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

from lighterman.errors import InvalidState

__all__ = ["LoopThread"]

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own, and the way for other threads to have something done there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: set[asyncio.Task[None]] = set()  # iterators that were left; a loop alone keeps no task alive

    def start(self) -> None:
        """Return when it runs. Raises: InvalidState if it does already."""
        with self._lock:
            if self._thread is not None:
                raise InvalidState("the engine is running already")
            running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
            self._thread = threading.Thread(
                target=lambda: asyncio.run(_until_stopped(running)), name="lighterman-engine", daemon=True
            )
            self._thread.start()
            self._loop, self._stopped = running.result()

    def stop(self) -> None:
        """Cancel what is still waited for, and return when the thread has ended. Again is nothing."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            if loop is not None:
                loop.call_soon_threadsafe(self._stopped.set)
        if thread is not None:
            thread.join()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises. Raises: InvalidState if the engine is not running, or is closed meanwhile."""
        done: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = asyncio.get_running_loop().create_task(work)
            tasks.append(task)
            task.add_done_callback(lambda ended: _hand_over(ended, done))

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        with self._lock:
            loop = self._loop
            if loop is not None:
                loop.call_soon_threadsafe(begin)
        if loop is None:
            work.close()
            raise InvalidState("the engine is not running: use `with Engine() as engine`")
        try:
            return done.result()
        except CancelledError:
            raise InvalidState("the engine was closed while this call waited") from None
        except BaseException:
            # Not the work's own: an exception of this thread, as KeyboardInterrupt is.
            if not done.done():
                loop.call_soon_threadsafe(cancel)
                done.exception()
            raise

    def iterate(self, make: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        """What the iterator made by `make` gives; left early, it is ended."""
        items = self.call(_made(make))
        return self._items(items)

    def _items(self, items: AsyncIterator[T]) -> Iterator[T]:
        try:
            while (item := self.call(_next(items))) is not None:
                yield item
        finally:
            self._end_soon(items)

    def _end_soon(self, items: AsyncIterator[T]) -> None:
        # Left early, it may be collected in any thread, the loop's own too, and in the middle of anything: this must
        # neither wait nor take the lock.
        loop = self._loop

        def begin() -> None:
            ending = asyncio.get_running_loop().create_task(_end(items))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

        if loop is not None:
            with suppress(RuntimeError):  # closed meanwhile: it has ended all of its iterators
                loop.call_soon_threadsafe(begin)


async def _made(make: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
    return make()


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)


async def _end(items: AsyncIterator[T]) -> None:
    if isinstance(items, AsyncGenerator):
        await items.aclose()


async def _until_stopped(running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    stopped = asyncio.Event()
    running.set_result((asyncio.get_running_loop(), stopped))
    await stopped.wait()


def _hand_over(ended: asyncio.Task[T], done: Future[T]) -> None:
    if ended.cancelled():
        done.set_exception(CancelledError())
        return
    failed = ended.exception()
    if failed is not None:
        done.set_exception(failed)
    else:
        done.set_result(ended.result())
