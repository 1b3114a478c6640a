"""A process's streams on Windows: overlapped handles, waited for by the Proactor loop.

A read that was begun goes on when its reader is cancelled: what it brings is kept for the next one, so no byte is
lost, and `buffered` knows of it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from lighterman.errors import AlreadyClosed, BrokenPipe, NotSupported

assert sys.platform == "win32"

import _winapi  # noqa: E402  there only

__all__ = ["WindowsReadPipe", "WindowsStdPipes", "WindowsWritePipe"]

CHUNK_BYTES = 65536
ERROR_BROKEN_PIPE = 109
ERROR_IO_INCOMPLETE = 996
ERROR_IO_PENDING = 997
ERROR_OPERATION_ABORTED = 995
_ENDS = (ERROR_BROKEN_PIPE, 232, 233)  # no data, pipe not connected


class WindowsStdPipes:
    """See `std.StdPipes`."""

    def reader(self, handle: int) -> WindowsReadPipe:
        """The reading end of stdout or stderr."""
        return WindowsReadPipe(handle)

    def writer(self, handle: int) -> WindowsWritePipe:
        """The writing end of stdin."""
        return WindowsWritePipe(handle)

    def close(self, handle: int) -> None:
        """One that nobody uses."""
        _winapi.CloseHandle(handle)


async def _done(overlapped: Any) -> None:
    """Return when an overlapped operation has ended; cancelled, it goes on."""
    loop = asyncio.get_running_loop()
    try:
        wait_for_handle = loop._proactor.wait_for_handle  # type: ignore[attr-defined]
    except AttributeError as other:
        raise NotSupported("hcs: a process's streams need asyncio's Proactor loop, the default on Windows") from other
    await wait_for_handle(overlapped.event)


class _Handle:
    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._pending: Any = None  # an overlapped operation that Windows still works on

    def fileno(self) -> int:
        """There are no descriptors here."""
        raise NotSupported("hcs: a stream on Windows has no descriptor")

    def detach(self) -> int:
        """As `fileno`."""
        raise NotSupported("hcs: a stream on Windows can't be detached: read and write it")

    def detach_through(self) -> tuple[int, int]:
        """As `fileno`."""
        raise NotSupported("hcs: a stream on Windows can't be detached: read and write it")

    async def close(self) -> None:
        """Cancel what is under way and close. Again is nothing."""
        if not self._handle:
            return
        handle, self._handle = self._handle, 0
        if self._pending is not None:
            self._pending.cancel()
            try:
                # The buffer is Windows' until then; a cancelled operation ends at once.
                self._pending.GetOverlappedResult(True)
            except OSError as ended:
                if ended.winerror not in (*_ENDS, ERROR_OPERATION_ABORTED):
                    raise
            self._pending = None
        _winapi.CloseHandle(handle)


class WindowsReadPipe(_Handle):
    """See `ReadPipe`."""

    def __init__(self, handle: int) -> None:
        super().__init__(handle)
        self._ready = bytearray()
        self._at_end = False

    async def read(self, max_bytes: int) -> bytes:
        """As the port says."""
        while self._handle:
            self._collect()
            if self._ready:
                data = bytes(self._ready[:max_bytes])
                del self._ready[:max_bytes]
                return data
            if self._at_end:
                return b""
            if self._pending is None:
                self._begin()
                continue
            await _done(self._pending)
        return b""

    def buffered(self) -> int:
        """What has been read already, and what waits in the pipe."""
        if not self._handle:
            return 0
        self._collect()
        try:
            waiting = int(_winapi.PeekNamedPipe(self._handle)[0])
        except OSError as ended:
            if ended.winerror not in _ENDS:
                raise
            waiting = 0
        self._collect()
        return len(self._ready) + waiting

    def _begin(self) -> None:
        try:
            self._pending, _ = _winapi.ReadFile(self._handle, CHUNK_BYTES, True)
        except OSError as ended:
            self._ended(ended)

    def _collect(self) -> None:
        """Take what a read that was begun has brought."""
        if self._pending is None:
            return
        try:
            _, error = self._pending.GetOverlappedResult(False)
        except OSError as ended:
            self._pending = None
            self._ended(ended)
            return
        if error == ERROR_IO_INCOMPLETE:
            return
        data = self._pending.getbuffer()
        self._pending = None
        if data:
            self._ready += data
        else:
            self._at_end = True

    def _ended(self, failed: OSError) -> None:
        if failed.winerror not in (*_ENDS, ERROR_OPERATION_ABORTED):
            raise BrokenPipe(f"reading the output failed: {failed}") from failed
        self._at_end = True


class WindowsWritePipe(_Handle):
    """See `WritePipe`."""

    async def write(self, data: bytes) -> None:
        """As the port says; if cancelled, a part may have been written."""
        rest = memoryview(data)
        while rest:
            if not self._handle:
                raise AlreadyClosed("stdin is closed")
            if self._pending is not None:
                await self._finished()
                continue
            try:
                self._pending, _ = _winapi.WriteFile(self._handle, bytes(rest[:CHUNK_BYTES]), True)
            except OSError as gone:
                raise BrokenPipe(f"nobody reads the process's stdin: {gone}") from gone
            rest = rest[await self._finished() :]

    async def _finished(self) -> int:
        while self._pending is not None:
            try:
                written, error = self._pending.GetOverlappedResult(False)
            except OSError as gone:
                self._pending = None
                raise BrokenPipe(f"nobody reads the process's stdin: {gone}") from gone
            if error != ERROR_IO_INCOMPLETE:
                self._pending = None
                if error:
                    raise BrokenPipe(f"writing to the process's stdin ended with {error}")
                return int(written)
            await _done(self._pending)
        raise AlreadyClosed("stdin was closed meanwhile")
