"""A function of the host program as a sink."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence

from lighterman.logs.reader import LogRecord
from lighterman.logs.sinks.base import SinkFailed

__all__ = ["CallableOutlet"]


class CallableOutlet:
    """See `lighterman.spec.CallableSink`."""

    kind = "callable"

    def __init__(self, function: Callable[[LogRecord], object]) -> None:
        self._function = function
        self.refused = 0
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004
        )
        self._thread: _CallThread | None = None

    async def send(self, records: Sequence[LogRecord]) -> int:
        """As `Outlet.send`."""
        if not self._is_async:
            if self._thread is None:
                self._thread = _CallThread(self._function)
            return await self._thread.call(records)
        task = asyncio.current_task()
        for count, record in enumerate(records):
            try:
                done = self._function(record)
                if isinstance(done, Awaitable):
                    await done
                    if task is not None and task.cancelling():
                        # It has swallowed what was meant for the feed.
                        raise asyncio.CancelledError
            except (Exception, asyncio.CancelledError) as failed:
                # A cancellation of its own making is a failure as any other.
                if isinstance(failed, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                if count:
                    return count
                raise SinkFailed(f"{type(failed).__name__}: {failed}") from failed
        return len(records)

    async def close(self) -> None:
        """As `Outlet.close`; a call that hangs is left alone."""
        if self._thread is not None:
            self._thread.end()
            self._thread = None


class _CallThread:
    """One daemon thread: a function that never returns must keep neither the engine's threads nor the program."""

    def __init__(self, function: Callable[[LogRecord], object]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[tuple[Sequence[LogRecord], asyncio.Future[int]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="lighterman-sink", daemon=True).start()

    async def call(self, records: Sequence[LogRecord]) -> int:
        done: asyncio.Future[int] = self._loop.create_future()
        self._work.put((records, done))
        return await done

    def end(self) -> None:
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            records, done = work
            count, failed = self._call_each(records, done)
            # The loop may be closed by the time a slow function returns: then nobody waits for it.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_settle, done, count, failed)

    def _call_each(self, records: Sequence[LogRecord], done: asyncio.Future[int]) -> tuple[int, SinkFailed | None]:
        for count, record in enumerate(records):
            if done.cancelled():
                return count, None
            try:
                self._function(record)
            except BaseException as failed:  # noqa: BLE001
                # The host program's own, SystemExit too: it would end this thread and tell nobody.
                return count, SinkFailed(f"{type(failed).__name__}: {failed}")
        return len(records), None


def _settle(done: asyncio.Future[int], count: int, failed: SinkFailed | None) -> None:
    if done.done():
        return
    if count == 0 and failed is not None:
        done.set_exception(failed)
    else:
        done.set_result(count)
