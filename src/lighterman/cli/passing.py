"""Bytes between the program's own descriptors and the container's streams: unbuffered, each once, never on the loop.

The descriptors are others' too: their flags stay as they are, so a read or write of one may block for any time. It
does so in a daemon thread, which no exit waits for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from queue import SimpleQueue

from lighterman.cli.failures import say
from lighterman.errors import AlreadyClosed, BrokenPipe
from lighterman.logs.reader import LogRecord
from lighterman.logs.streams import LogStream
from lighterman.stdin import StdinWriter

__all__ = ["ConsumerGone", "Output", "feed", "pass_on", "pass_records"]

_CHUNK_BYTES = 256 * 1024
_READ_BYTES = 64 * 1024  # what a pipe holds by default


class ConsumerGone(Exception):
    """Nobody reads our output any more (EPIPE), or its terminal is gone (EIO)."""


class Output:
    """Our stdout or stderr. One writer at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        mode = os.fstat(fd).st_mode
        # A pipe that poll(2) calls writable takes PIPE_BUF bytes at once; a terminal may be stopped in between.
        self._direct_bytes = select.PIPE_BUF if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) else 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._jobs: SimpleQueue[tuple[bytes, asyncio.Future[None]]] | None = None

    async def write(self, data: bytes) -> None:
        """Write all of it; waits while the consumer does. Raises: ConsumerGone, OSError."""
        if len(data) <= self._direct_bytes and self._poll.poll(0):
            data = data[self._write_now(data) :]
        if data:
            await self._write_in_thread(data)

    def _write_now(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError as gone:
            raise ConsumerGone from gone

    async def _write_in_thread(self, data: bytes) -> None:
        if self._jobs is None:
            self._jobs = SimpleQueue()
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._serve, args=(self._jobs, loop), name="output", daemon=True).start()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.put((data, done))
        await done

    def _serve(self, jobs: SimpleQueue[tuple[bytes, asyncio.Future[None]]], loop: asyncio.AbstractEventLoop) -> None:
        while True:
            data, done = jobs.get()
            failed: Exception | None = None
            try:
                self._write_all(memoryview(data))
            except OSError as error:
                failed = ConsumerGone() if error.errno in (errno.EPIPE, errno.EIO) else error
            try:
                loop.call_soon_threadsafe(_tell, done, failed)
            except RuntimeError:
                return  # the loop has ended: nobody wants to know

    def _write_all(self, view: memoryview) -> None:
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                # Somebody who shares the descriptor has made it non-blocking.
                self._poll.poll()


def _tell(done: asyncio.Future[None], failed: Exception | None) -> None:
    if done.done():
        return
    if failed is None:
        done.set_result(None)
    else:
        done.set_exception(failed)


async def pass_on(stream: LogStream, output: Output) -> None:
    """All of a stream, as it comes. The program waits for a slow consumer."""
    while data := await stream.read(_CHUNK_BYTES):
        await output.write(data)


async def pass_records(records: AsyncIterator[LogRecord], out: Output, err: Output) -> None:
    """The output of all runs. The programs do not wait: what a slow consumer misses is counted on stderr."""
    lost = 0
    async for record in records:
        lost += record.lost
        await (out if record.stream == "stdout" else err).write(record.data)
    if lost:
        say(f"{lost} bytes of output were lost: they were rotated away before they could be passed on")


def feed(fd: int, writer: StdinWriter, loop: asyncio.AbstractEventLoop) -> None:
    """Pass `fd` on until its end of file, which the container's program then reads too."""
    threading.Thread(target=_feed, args=(fd, writer, loop), name="stdin", daemon=True).start()


def _feed(fd: int, writer: StdinWriter, loop: asyncio.AbstractEventLoop) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        while True:
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                poll.poll()
                continue
            except OSError:
                data = b""  # a terminal that was hung up
            if not data:
                break
            asyncio.run_coroutine_threadsafe(_put(writer, data), loop).result()
        loop.call_soon_threadsafe(writer.write_eof)
    except (BrokenPipe, AlreadyClosed):
        return  # the program needs no more of it
    except (RuntimeError, CancelledError):
        return  # the loop has ended


async def _put(writer: StdinWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
