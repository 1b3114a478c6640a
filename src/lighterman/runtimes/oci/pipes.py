"""Our ends of a process's pipes and terminal: non-blocking descriptors on the event loop."""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import termios

from lighterman.errors import AlreadyClosed, BrokenPipe, NotSupported

__all__ = ["FdReadPipe", "FdWritePipe", "close_all"]


class _Descriptor:
    """One descriptor with at most one task that waits for it."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._waiting: asyncio.Future[None] | None = None

    def fileno(self) -> int:
        """The descriptor. Raises: AlreadyClosed."""
        if self._fd < 0:
            raise AlreadyClosed("the pipe is closed")
        return self._fd

    def detach(self) -> int:
        """Give the descriptor away. Raises: AlreadyClosed."""
        fd, self._fd = self.fileno(), -1
        return fd

    async def close(self) -> None:
        """Close it; a task that waits on it is woken. Again is nothing."""
        self.close_now()

    def close_now(self) -> None:
        """As `close`, for who has no time to wait: closing a pipe or a terminal never blocks."""
        if self._fd < 0:
            return
        fd = self.detach()
        if self._waiting is not None and not self._waiting.done():
            self._stop_watching(fd)
            self._waiting.set_result(None)
        os.close(fd)

    def _stop_watching(self, fd: int) -> None:
        raise NotImplementedError

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class FdReadPipe(_Descriptor):
    """The reading end. For a terminal `through` is a pipe that the keeper holds as well (see `logs`)."""

    def __init__(self, fd: int, *, through: tuple[int, int] | None = None) -> None:
        super().__init__(fd)
        self._through = through

    async def read(self, max_bytes: int) -> bytes:
        """As the port says: bytes are taken only at the moment they are given, so a cancelled read loses none."""
        while self._fd >= 0:
            try:
                return os.read(self._fd, max_bytes)
            except BlockingIOError:
                await self._readable()
            except OSError as failed:
                if failed.errno == errno.EIO:  # how a terminal's master reads when the other side is gone
                    return b""
                raise BrokenPipe(f"reading the output failed: {failed.strerror}") from failed
        return b""

    def buffered(self) -> int:
        """FIONREAD."""
        if self._fd < 0:
            return 0
        count = array.array("i", [0])
        try:
            fcntl.ioctl(self._fd, termios.FIONREAD, count)
        except OSError:
            return 0  # a terminal whose other side is gone has nothing more
        return count[0]

    def detach_through(self) -> tuple[int, int]:
        """Give away both ends of the pipe that a terminal's output goes through. Raises: NotSupported without one."""
        if self._through is None:
            raise NotSupported("this is not a terminal's output")
        through, self._through = self._through, None
        return through

    def close_now(self) -> None:
        super().close_now()
        if self._through is not None:
            close_all(self.detach_through())

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        fd = self._fd
        loop.add_reader(fd, self._wake)
        try:
            await self._waiting
        finally:
            self._waiting = None
            if self._fd == fd:
                loop.remove_reader(fd)

    def _stop_watching(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)


class FdWritePipe(_Descriptor):
    """The writing end."""

    async def write(self, data: bytes) -> None:
        """All of it, waiting while the pipe is full. Raises: BrokenPipe, AlreadyClosed."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.fileno(), rest) :]
            except BlockingIOError:
                await self._writable()
            except OSError as failed:
                raise BrokenPipe(f"nobody reads the process's stdin: {failed.strerror}") from failed

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        fd = self._fd
        loop.add_writer(fd, self._wake)
        try:
            await self._waiting
        finally:
            self._waiting = None
            if self._fd == fd:
                loop.remove_writer(fd)

    def _stop_watching(self, fd: int) -> None:
        asyncio.get_running_loop().remove_writer(fd)


def close_all(fds: tuple[int, ...] | list[int]) -> None:
    """Close every one."""
    for fd in fds:
        os.close(fd)
