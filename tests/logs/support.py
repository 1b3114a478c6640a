"""Pipes with known content, and waiting for a condition."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lighterman.keeper.segments import SegmentWriter
from lighterman.logs.reader import read_frames
from support import PATIENCE

DEADLINE_S = 30.0 * PATIENCE


async def eventually(condition: Callable[[], bool]) -> None:
    """Poll until true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.002)


async def write_all(fd: int, data: bytes) -> None:
    """Write it in a thread, however long the pipe is full."""

    def write() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    await asyncio.to_thread(write)


@contextmanager
def pipe(content: bytes = b"", *, closed: bool = False) -> Iterator[tuple[int, int]]:
    """A pipe with a non-blocking read end."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    try:
        if content:
            os.write(write, content)
        if closed:
            os.close(write)
            write = -1
        yield read, write
    finally:
        for fd in (read, write):
            if fd >= 0:
                os.close(fd)


def put(writer: SegmentWriter, stream: int, data: bytes) -> None:
    """Write through a pipe, piece by piece."""
    with pipe() as (read, write):
        while data:
            piece, data = data[:65536], data[65536:]
            os.write(write, piece)
            left = len(piece)
            while left:
                left -= writer.splice(stream, read, left)


def content(directory: Path, stream: int | None = None) -> bytes:
    """All there is, of one stream or of both."""
    frames = read_frames(str(directory))
    return b"".join(frame.data for frame in frames if stream is None or frame.stream == stream)


def open_descriptors() -> set[str]:
    """This process's, with what they lead to."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            # The one that the listing itself used.
            continue
    return found
