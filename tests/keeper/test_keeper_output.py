"""The keeper's mover of output, by itself: what epoll does not tell, and a disk that is full."""

from __future__ import annotations

import os
import pty
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lighterman.keeper.output import Mover
from lighterman.keeper.segments import SegmentWriter
from lighterman.keeper.table import Row
from lighterman.logs.reader import read_frames


class Watched:
    """Stands for the keeper's loop: nothing becomes readable unless the test says so."""

    def __init__(self) -> None:
        self.callbacks: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, _events: int, act: Callable[[int], None]) -> None:
        self.callbacks[fd] = act

    def unwatch(self, fd: int) -> None:
        del self.callbacks[fd]


@contextmanager
def terminal_row() -> Iterator[tuple[Row, int]]:
    """A job with a terminal, and the container's end of it."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    reads, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    held = {"console": master, "console_pipe_r": reads, "console_pipe_w": writes}
    try:
        yield Row(1, "a", 0, held, None, b"", b""), slave
    finally:
        for fd in (master, slave, reads, writes):
            os.close(fd)


def text_in(directory: Path) -> bytes:
    return b"".join(frame.data for frame in read_frames(str(directory)))


def test_what_an_engine_left_behind_a_quiet_terminal_is_moved_at_once(tmp_path: Path) -> None:
    loop = Watched()
    with terminal_row() as (row, _):
        os.write(row.held["console_pipe_w"], b"left between the two splices")
        mover = Mover(row, (str(tmp_path / "log"), 10_000, 2, "block"), loop.watch, loop.unwatch)
        try:
            assert text_in(tmp_path / "log") == b"left between the two splices"
        finally:
            mover.stop()


def test_a_quiet_terminal_after_a_full_disk_is_moved_by_the_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Watched()
    full = True
    begin = SegmentWriter._begin

    def refuse(writer: SegmentWriter, stream: int, flags: int, length: int) -> int:
        if full:
            raise OSError(28, "no space left on device")
        return begin(writer, stream, flags, length)

    monkeypatch.setattr(SegmentWriter, "_begin", refuse)
    with terminal_row() as (row, slave):
        mover = Mover(row, (str(tmp_path / "log"), 10_000, 2, "block"), loop.watch, loop.unwatch)
        try:
            os.write(slave, b"then silence")
            loop.callbacks[row.held["console"]](1)
            assert mover.retry_at is not None
            assert loop.callbacks == {}
            full = False
            mover.resume()
            assert text_in(tmp_path / "log") == b"then silence"
            assert mover.retry_at is None
        finally:
            mover.stop()
