"""Blocking calls of the DLL on threads of our own: as many as there are calls, none of which may hang the rest.

A call that hangs can't be given up: its buffers must live. So the threads are daemons, and never waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from lighterman import limits

__all__ = ["CallThreads"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_Work = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class CallThreads:
    """Threads that are used again; they leave when this is closed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: deque[SimpleQueue[_Work | None]] = deque()
        self._closed = False

    def run(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Begin `call` on a thread. Cancelling the future changes nothing for the call."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name=self._name, daemon=True).start()
        inbox.put((call, loop, done))
        slow = loop.call_later(limits.HCS_CALL_WARN_S, _warn, call)
        done.add_done_callback(lambda _: slow.cancel())
        return done

    def close(self) -> None:
        """Let the idle threads leave, and the others when their call is done."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _serve(self, inbox: SimpleQueue[_Work | None]) -> None:
        while (work := inbox.get()) is not None:
            call, loop, done = work
            result: Any = None
            failed: BaseException | None = None
            try:
                result = call()
            except BaseException as raised:  # noqa: BLE001  belongs to who asked
                failed = raised
            if not self._closed:
                self._idle.append(inbox)
            # A loop that was closed meanwhile: nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, done, result, failed)
            del work, call, loop, done, result, failed
            if self._closed:
                return


def _warn(call: Callable[[], Any]) -> None:
    log.warning("hcs: %s has not returned after %g s", call.__qualname__, limits.HCS_CALL_WARN_S)


def _settle(done: asyncio.Future[Any], result: Any, failed: BaseException | None) -> None:
    if done.cancelled():
        return
    if failed is not None:
        done.set_exception(failed)
    else:
        done.set_result(result)
