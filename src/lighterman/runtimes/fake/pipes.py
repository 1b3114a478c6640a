"""Pipes in memory, with the kernel's rules for their ends."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from lighterman.errors import AlreadyClosed, BrokenPipe, NotSupported

__all__ = ["FakePipe", "FakeReadPipe", "FakeWritePipe"]

CAPACITY_BYTES = 65536  # a Linux pipe's default

_descriptors = itertools.count(1_000_000)  # far from any real descriptor, so that a misuse fails


class FakePipe:
    """Bytes on their way, and how many hold each end."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self.writers = 0
        self.readers = 0
        self.broken = False
        self._bytes = bytearray()
        self._waiting: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._bytes)

    async def read(self, max_bytes: int, is_open: Callable[[], bool]) -> bytes:
        """Up to `max_bytes`; `b""` when nothing is left and nobody can write, or `is_open` has become false."""
        while is_open():
            if self._bytes:
                data = bytes(self._bytes[:max_bytes])
                del self._bytes[:max_bytes]
                self.changed()
                return data
            if self.broken:
                raise BrokenPipe("the runtime's side of the pipe is gone")
            if self.writers <= 0:
                return b""
            await self._wait()
        return b""

    async def write(self, data: bytes, is_open: Callable[[], bool]) -> None:
        """All of `data`, waiting while the pipe is full. Raises: BrokenPipe when nobody can read."""
        rest = memoryview(data)
        while True:
            if self.broken or self.readers <= 0:
                raise BrokenPipe("nobody reads this pipe")
            if not is_open():
                raise AlreadyClosed("this end is closed")
            room = self.capacity_bytes - len(self._bytes)
            if room > 0 and rest:
                self._bytes += rest[:room]
                rest = rest[room:]
                self.changed()
            if not rest:
                return
            await self._wait()

    def changed(self) -> None:
        """Wake everybody who waits at either end."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def _wait(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)


class _End:
    """One end of a pipe, with its own closedness."""

    def __init__(self, pipe: FakePipe, *, detachable: bool) -> None:
        self.pipe = pipe
        self.is_open = True
        self.descriptor: int | None = next(_descriptors) if detachable else None
        self.detached = False

    def fileno(self) -> int:
        """A made-up number, if this fake has descriptors. Raises: NotSupported, AlreadyClosed."""
        if not self.is_open:
            raise AlreadyClosed("this end is closed")
        if self.descriptor is None:
            raise NotSupported("a fake pipe has no descriptor (FakeRuntime(detachable=True) makes some up)")
        return self.descriptor

    def detach(self) -> int:
        """Give it away; the test reads and closes it through `FakeRuntime.descriptors`."""
        number = self.fileno()
        self.detached = True
        return number

    def detach_through(self) -> tuple[int, int]:
        """There is no terminal device here, and no keeper."""
        raise NotSupported("fake: no pipe goes with a stream")


class FakeReadPipe(_End):
    """The reading end."""

    def __init__(self, pipe: FakePipe, *, detachable: bool = False) -> None:
        super().__init__(pipe, detachable=detachable)
        pipe.readers += 1

    async def read(self, max_bytes: int) -> bytes:
        """See `ReadPipe`."""
        return await self.pipe.read(max_bytes, lambda: self.is_open)

    def buffered(self) -> int:
        """See `ReadPipe`."""
        return len(self.pipe)

    async def close(self) -> None:
        """See `ReadPipe`."""
        if self.is_open:
            self.is_open = False
            self.pipe.readers -= 1
            self.pipe.changed()


class FakeWritePipe(_End):
    """The writing end."""

    def __init__(self, pipe: FakePipe, *, detachable: bool = False) -> None:
        super().__init__(pipe, detachable=detachable)
        pipe.writers += 1

    async def write(self, data: bytes) -> None:
        """See `WritePipe`."""
        if not self.is_open:
            raise AlreadyClosed("stdin is closed")
        await self.pipe.write(data, lambda: self.is_open)

    async def close(self) -> None:
        """See `WritePipe`."""
        if self.is_open:
            self.is_open = False
            self.pipe.writers -= 1
            self.pipe.changed()
