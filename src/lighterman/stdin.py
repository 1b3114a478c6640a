"""A process's stdin as asyncio people know it: `write`, `drain`, `write_eof`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from lighterman.errors import AlreadyClosed, BrokenPipe, InvalidState, LightermanError
from lighterman.flag import Flag
from lighterman.supervisor.streams import WriteStream

__all__ = ["StdinWriter"]

_HIGH_WATER_BYTES = 1 << 20  # `drain` waits above this; as much as a pipe holds at most without privilege


class StdinWriter:
    """Bytes for a process's stdin, or its terminal. `write` only queues; a task of the engine's writes."""

    def __init__(
        self, stream: WriteStream, spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    ) -> None:
        self._stream = stream
        self._spawn = spawn
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._eof = False
        self._task: asyncio.Task[None] | None = None
        self._room = Flag()
        self._room.set()
        self._broken: LightermanError | None = None
        self._over = Flag()  # all was written and closed, or nothing more will be

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue `data`; follow it by `drain` where there is much. Raises: AlreadyClosed, TypeError for text."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"stdin takes bytes, not {type(data).__name__}: encode a text first")
        if self._eof:
            raise AlreadyClosed("stdin is closed")
        if self._broken is not None or not data:
            return  # `drain` and `wait_closed` tell; a program need not read all of its input
        self._queue.append(bytes(data))
        self._queued += len(data)
        if self._queued > _HIGH_WATER_BYTES:
            self._room.clear()
        self._go()

    async def drain(self) -> None:
        """Wait until little is queued. Raises: BrokenPipe if the process has closed its stdin, or ended."""
        await self._room.wait()
        if self._broken is not None:
            raise self._broken

    def write_eof(self) -> None:
        """After what is queued, the process reads end of file; its output goes on. Again is nothing."""
        if not self._eof:
            self._eof = True
            self._go()

    def close(self) -> None:
        """The same as `write_eof`, for who expects that name."""
        self.write_eof()

    def is_closing(self) -> bool:
        """Whether end of file was asked for."""
        return self._eof

    async def wait_closed(self) -> None:
        """Return when all was written and the process reads end of file. Raises: BrokenPipe if it read less."""
        if not self._eof:
            raise InvalidState("stdin is open: call write_eof first")
        await self._over.wait()
        if self._broken is not None:
            raise self._broken

    def _go(self) -> None:
        if self._task is None:
            self._task = self._spawn(self._write_all(), "write stdin")

    async def _write_all(self) -> None:
        try:
            while self._queue:
                data = self._queue.popleft()
                try:
                    await self._stream.write(data)
                except (BrokenPipe, AlreadyClosed) as broken:
                    # The pipe is closed by us when the process has ended: for who writes that is the same.
                    self._give_up(broken if isinstance(broken, BrokenPipe) else BrokenPipe("the process has ended"))
                    break
                except BaseException as failed:
                    why = "the engine was closed" if isinstance(failed, asyncio.CancelledError) else f"{failed}"
                    self._give_up(BrokenPipe(f"not all was written: {why}"))
                    raise
                finally:
                    self._queued = max(0, self._queued - len(data))
                    if self._queued <= _HIGH_WATER_BYTES:
                        self._room.set()
            if self._eof:
                await self._stream.close()
        finally:
            self._task = None
            self._room.set()
            if self._eof:
                self._over.set()

    def _give_up(self, why: BrokenPipe) -> None:
        """What is queued goes nowhere any more."""
        self._broken = self._broken or why
        self._queue.clear()
        self._queued = 0
