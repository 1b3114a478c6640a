"""The pump: every byte arrives, the end is told once, and one container's trouble is its own."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import subprocess
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lighterman.errors import AlreadyClosed, AlreadyExists, InvalidState
from lighterman.keeper.segments import STDERR, STDOUT, SegmentWriter, list_segments, segment_name
from lighterman.logs.pipes import PIPE_BYTES, make_output_pipe
from lighterman.logs.pump import OutputPump
from lighterman.logs.sink import OutputSink, StreamEnd
from lighterman.logs.streams import LogStream
from support import eventually_sync

from .support import content, eventually, put


def sink_with_pipe(pump: OutputPump, directory: Path, stream: int = STDOUT) -> tuple[OutputSink, int]:
    read, write = make_output_pipe()
    sink = pump.open(str(directory))
    sink.add(stream, read)
    return sink, write


def test_output_pipe_blocks_the_writer_and_not_the_reader() -> None:
    read, write = make_output_pipe()
    try:
        assert (os.get_blocking(read), os.get_blocking(write)) == (False, True)
        assert not os.get_inheritable(read)
        assert not os.get_inheritable(write)
        assert os.geteuid() != 0 or os.write(write, b"x" * PIPE_BYTES) == PIPE_BYTES
    finally:
        os.close(read)
        os.close(write)


async def test_write_both_streams_and_close_arrives_and_ends(pump: OutputPump, tmp_path: Path) -> None:
    sink = pump.open(str(tmp_path / "1"))
    writes = {}
    for stream in (STDOUT, STDERR):
        read, writes[stream] = make_output_pipe()
        sink.add(stream, read)
    os.write(writes[STDOUT], bytes(range(256)) * 100)
    os.write(writes[STDERR], b"err")
    assert sink.stream_end(STDOUT) is None
    for write in writes.values():
        os.close(write)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.EOF
    assert await sink.wait_stream_end(STDERR) is StreamEnd.EOF
    assert sink.ended
    assert sink.progress == 25_603
    assert content(tmp_path / "1", STDOUT) == bytes(range(256)) * 100
    assert content(tmp_path / "1", STDERR) == b"err"
    sink.finish(STDOUT)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.EOF


class SlowEpoll:
    """An epoll whose next `register` begins by doing something else."""

    def __init__(self, epoll: Any, before: Callable[[], None]) -> None:
        self._epoll = epoll
        self._before: Callable[[], None] | None = before

    def register(self, *arguments: int) -> None:
        before, self._before = self._before, None
        if before is not None:
            before()
        self._epoll.register(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


async def test_stream_that_comes_while_a_full_disk_stops_the_other_is_moved(pump: OutputPump, tmp_path: Path) -> None:
    sink, out = sink_with_pipe(pump, tmp_path / "1")

    def disk_is_full() -> None:
        pump.command(pump._fail, sink, OSError(errno.ENOSPC, "full"))
        eventually_sync(lambda: sink.error is not None)

    pump._epoll = SlowEpoll(pump._epoll, disk_is_full)  # type: ignore[assignment]
    read, err = make_output_pipe()
    sink.add(STDERR, read)
    os.write(out, b"out")
    os.write(err, b"err")
    os.close(out)
    os.close(err)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.EOF
    assert await sink.wait_stream_end(STDERR) is StreamEnd.EOF
    assert content(tmp_path / "1", STDERR) == b"err"


async def test_no_output_leaves_no_directory(pump: OutputPump, tmp_path: Path) -> None:
    sink, write = sink_with_pipe(pump, tmp_path / "logs" / "1")
    os.close(write)
    sink.finish(STDOUT)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.EOF
    assert not (tmp_path / "logs").exists()


async def test_finish_with_a_grandchild_holding_the_pipe_ends_after_what_was_buffered(
    pump: OutputPump, tmp_path: Path
) -> None:
    sink, write = sink_with_pipe(pump, tmp_path)
    try:
        for number in range(100):
            os.write(write, b"%03d\n" % number)
        sink.finish(STDOUT)
        sink.finish(STDOUT)
        assert await sink.wait_stream_end(STDOUT) is StreamEnd.BUFFERED
        with pytest.raises(BrokenPipeError):
            os.write(write, b"too late")
        assert content(tmp_path) == b"".join(b"%03d\n" % number for number in range(100))
    finally:
        os.close(write)


async def test_finish_while_others_write_without_end_ends(pump: OutputPump, tmp_path: Path) -> None:
    sink, write = sink_with_pipe(pump, tmp_path)
    with writing_for_ever(write):
        os.close(write)
        await sink.wait_beyond(1_000_000)
        sink.finish(STDOUT)
        assert await sink.wait_stream_end(STDOUT) is StreamEnd.BUFFERED


@contextmanager
def writing_for_ever(fd: int) -> Iterator[None]:
    program = "import os\nwhile True: os.write(1, b'x' * 9999)"
    command = [sys.executable, "-I", "-S", "-c", program]
    with subprocess.Popen(command, stdout=fd, stderr=subprocess.DEVNULL) as writer:
        try:
            yield
        finally:
            writer.kill()


async def test_bad_use_raises(pump: OutputPump, tmp_path: Path) -> None:
    sink, write = sink_with_pipe(pump, tmp_path)
    os.close(write)
    read, write = make_output_pipe()
    with pytest.raises(AlreadyExists):
        sink.add(STDOUT, read)
    os.close(read)
    os.close(write)
    with pytest.raises(InvalidState):
        sink.finish(STDERR)
    with (tmp_path / "file").open("wb") as file, pytest.raises(PermissionError):
        sink.add(STDERR, file.fileno())
    with pytest.raises(InvalidState):
        sink.stream_end(STDERR)
    await pump.close()
    await pump.close()
    with pytest.raises(AlreadyClosed):
        pump.open(str(tmp_path))


async def test_close_of_a_sink_leaves_the_rest_in_the_pipe(pump: OutputPump, tmp_path: Path) -> None:
    sink, write = sink_with_pipe(pump, tmp_path)
    read = os.dup(sink.sources[STDOUT].fd)
    try:
        os.write(write, b"first")
        await sink.wait_beyond(0)
        await sink.close()
        await sink.close()
        os.write(write, b"second")
        assert sink.stream_end(STDOUT) is StreamEnd.CLOSED
        again = SegmentWriter(str(tmp_path), 10_000, 3)
        assert (again.end, again.owed) == (5, None)
        assert again.splice(STDOUT, read, 100) == 6
        again.close()
    finally:
        os.close(read)
        os.close(write)
    assert content(tmp_path) == b"firstsecond"


async def test_close_of_the_pump_ends_every_wait(pump: OutputPump, tmp_path: Path) -> None:
    sink, write = sink_with_pipe(pump, tmp_path)
    waiting = asyncio.ensure_future(sink.wait_stream_end(STDOUT))
    reading = asyncio.ensure_future(LogStream(sink, STDOUT).read())
    await asyncio.sleep(0)
    os.write(write, b"some")
    await sink.wait_beyond(3)
    await pump.close()
    assert await waiting is StreamEnd.CLOSED
    assert await reading == b"some"
    sink.finish(STDOUT)
    await sink.close()
    os.close(write)


async def test_takeover_completes_the_frame_and_goes_on(pump: OutputPump, tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000_000, 3)
    put(writer, STDERR, b"0123456789")
    writer.close()
    path = tmp_path / segment_name(0)
    os.truncate(path, path.stat().st_size - 4)
    sink = pump.open(str(tmp_path))
    out_r, out_w = make_output_pipe()
    err_r, err_w = make_output_pipe()
    os.write(out_w, b"out")
    os.write(err_w, b"6789err")
    # The other stream comes first, and has to wait.
    sink.add(STDOUT, out_r)
    sink.add(STDERR, err_r)
    os.close(out_w)
    os.close(err_w)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.EOF
    assert await sink.wait_stream_end(STDERR) is StreamEnd.EOF
    assert content(tmp_path, STDERR) == b"0123456789err"
    assert content(tmp_path, STDOUT) == b"out"


async def test_takeover_without_the_owed_pipe_cuts_the_frame_at_the_finish(pump: OutputPump, tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000_000, 3)
    put(writer, STDERR, b"0123456789")
    writer.close()
    path = tmp_path / segment_name(0)
    os.truncate(path, path.stat().st_size - 4)
    sink, write = sink_with_pipe(pump, tmp_path)
    os.write(write, b"out")
    sink.finish(STDOUT)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.BUFFERED
    os.close(write)
    assert content(tmp_path) == b"012345out"


async def test_200_sinks_at_once(pump: OutputPump, tmp_path: Path) -> None:
    sinks = [sink_with_pipe(pump, tmp_path / str(number)) for number in range(200)]
    for turn in range(5):
        for number, (_, write) in enumerate(sinks):
            os.write(write, b"%d.%d;" % (number, turn))
    for _, write in sinks:
        os.close(write)
    ends = await asyncio.gather(*(sink.wait_stream_end(STDOUT) for sink, _ in sinks))
    assert set(ends) == {StreamEnd.EOF}
    for number in range(200):
        assert content(tmp_path / str(number)) == b"".join(b"%d.%d;" % (number, turn) for turn in range(5))


async def test_nobody_reads_the_container_never_waits(pump: OutputPump, tmp_path: Path) -> None:
    read, write = make_output_pipe()
    sink = pump.open(str(tmp_path), 4096, 2)
    sink.add(STDOUT, read)
    LogStream(sink, STDOUT)  # never read: it holds nobody up
    await asyncio.to_thread(write_all, write, b"x" * 3_000_000)
    os.close(write)
    await sink.wait_stream_end(STDOUT)
    assert sink.progress == 3_000_000
    assert not sink.blocked
    assert len(list_segments(str(tmp_path))) == 2


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


async def test_slow_lossless_reader_blocks_the_container_visibly_and_loses_nothing(
    pump: OutputPump, tmp_path: Path
) -> None:
    read, write = make_output_pipe()
    sink = pump.open(str(tmp_path), 100_000, 3)
    sink.add(STDOUT, read)
    stream = LogStream(sink, STDOUT)
    reading = asyncio.ensure_future(stream.read(1))
    await asyncio.sleep(0)
    data = os.urandom(8_000_000)
    writing = asyncio.ensure_future(asyncio.to_thread(write_all, write, data))
    await eventually(lambda: sink.blocked)
    assert not writing.done()
    # One piece more than it may be is moved before it is noticed.
    assert sink.progress < 100_000 * 3 + 1024 * 1024 + 100_000
    got = bytearray(await reading)
    while len(got) < len(data):
        got += await stream.read(100_000)
    await writing
    os.close(write)
    await sink.wait_stream_end(STDOUT)
    assert await stream.read() == b""
    assert bytes(got) == data
    assert not sink.blocked
    assert stream.lost == 0
    assert len(list_segments(str(tmp_path))) <= 4


async def test_reader_of_stdout_is_not_held_responsible_for_stderr(pump: OutputPump, tmp_path: Path) -> None:
    sink = pump.open(str(tmp_path), 4096, 2)
    out_r, out_w = make_output_pipe()
    err_r, err_w = make_output_pipe()
    sink.add(STDOUT, out_r)
    sink.add(STDERR, err_r)
    stream = LogStream(sink, STDOUT)
    os.write(out_w, b"first")
    assert await stream.read(5) == b"first"
    reading = asyncio.ensure_future(stream.read())
    await asyncio.to_thread(write_all, err_w, b"e" * 3_000_000)
    os.close(err_w)
    await sink.wait_stream_end(STDERR)
    await asyncio.sleep(0)
    os.write(out_w, b"second")
    os.close(out_w)
    assert await reading == b"second"
    assert stream.lost == 0


async def test_dropped_reader_frees_the_container(pump: OutputPump, tmp_path: Path) -> None:
    read, write = make_output_pipe()
    sink = pump.open(str(tmp_path), 4096, 2)
    sink.add(STDOUT, read)
    stream: LogStream | None = LogStream(sink, STDOUT)
    os.write(write, b"x")
    assert stream is not None
    assert await stream.read(1) == b"x"
    writing = asyncio.ensure_future(asyncio.to_thread(write_all, write, b"x" * 6_000_000))
    await eventually(lambda: sink.blocked)
    stream = None
    await writing
    os.close(write)
    await sink.wait_stream_end(STDOUT)


async def test_subscribers_hear_of_changes(pump: OutputPump, tmp_path: Path) -> None:
    sink, write = sink_with_pipe(pump, tmp_path)
    heard: list[int] = []
    unsubscribe = sink.subscribe(lambda: heard.append(sink.progress))
    os.write(write, b"x")
    await eventually(lambda: 1 in heard)
    unsubscribe()
    unsubscribe()
    os.close(write)
    await sink.wait_stream_end(STDOUT)
    assert sink.watched == 0


async def test_broken_sink_disturbs_no_other(
    pump: OutputPump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, broken_write = sink_with_pipe(pump, tmp_path / "broken")
    sound, sound_write = sink_with_pipe(pump, tmp_path / "sound")

    class Broken:
        end, owed, overfull, untold, keep_from, starts = 0, None, False, 0, None, ()

        def splice(self, *_: object) -> int:
            raise ZeroDivisionError("a defect")

        def close(self) -> None:
            """Nothing is open."""

    good = broken.writer
    broken.writer = Broken()  # type: ignore[assignment]
    os.write(broken_write, b"kept")
    await eventually(lambda: broken.error is not None)
    os.write(sound_write, b"moves")
    await sound.wait_beyond(4)
    assert content(tmp_path / "sound") == b"moves"
    assert "a defect" in caplog.text
    broken.writer = good
    await broken.wait_beyond(3)
    assert broken.error is None
    assert content(tmp_path / "broken") == b"kept"
    os.close(broken_write)
    os.close(sound_write)


async def test_directory_that_can_not_be_made_is_tried_again(pump: OutputPump, tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    sink, write = sink_with_pipe(pump, tmp_path / "other")
    sink.writer = SegmentWriter(str(tmp_path / "other"), 10_000, 3)
    (tmp_path / "other").touch()
    os.write(write, b"kept")
    await eventually(lambda: sink.error is not None)
    assert isinstance(sink.error, OSError)
    (tmp_path / "other").unlink()
    await sink.wait_beyond(3)
    assert sink.error is None
    os.close(write)
    assert content(tmp_path / "other") == b"kept"


async def test_full_disk_holds_the_container_and_loses_nothing(pump: OutputPump, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"b" * 200_000)
    sink = pump.open(str(small_disk / "1"), 10_000_000, 3)
    out_r, out_w = make_output_pipe()
    err_r, err_w = make_output_pipe()
    sink.add(STDOUT, out_r)
    sink.add(STDERR, err_r)
    out, err = os.urandom(250_000), os.urandom(40_000)
    write_all(out_w, out)
    await eventually(lambda: sink.error is not None)
    write_all(err_w, err)
    os.close(out_w)
    sink.finish(STDOUT)
    sink.finish(STDERR)
    assert sink.stream_end(STDOUT) is None
    assert sink.stream_end(STDERR) is None
    ballast.unlink()
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.EOF
    assert await sink.wait_stream_end(STDERR) is StreamEnd.BUFFERED
    os.close(err_w)
    assert sink.error is None
    assert content(small_disk / "1", STDOUT) == out
    assert content(small_disk / "1", STDERR) == err


async def test_full_disk_bytes_that_are_in_no_pipe(small_disk: Path) -> None:
    writer = SegmentWriter(str(small_disk / "1"), 10_000_000, 3)
    data = os.urandom(600_000)
    done = writer.write(STDOUT, data)
    assert 300_000 < done < 400 * 1024
    with pytest.raises(OSError, match="No space"):
        writer.write(STDOUT, data[done:])
    assert content(small_disk / "1") == data[:done]
    writer.close()


# ---- terminals ----


def terminal() -> tuple[int, int, int, int]:
    master, slave = pty.openpty()
    tty.setraw(slave, termios.TCSANOW)
    read, write = make_output_pipe()
    return master, slave, read, write


async def test_terminal_output_goes_through_its_pipe(pump: OutputPump, tmp_path: Path) -> None:
    master, slave, read, write = terminal()
    sink = pump.open(str(tmp_path))
    sink.add_terminal(master, read, write)
    data = os.urandom(500_000)
    await asyncio.to_thread(write_all, slave, data)
    os.close(slave)
    sink.finish(STDOUT)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.EOF
    assert content(tmp_path) == data


async def test_terminal_that_somebody_else_holds_ends_after_what_was_buffered(pump: OutputPump, tmp_path: Path) -> None:
    master, slave, read, write = terminal()
    sink = pump.open(str(tmp_path))
    sink.add_terminal(master, read, write)
    os.write(slave, b"last words")
    sink.finish(STDOUT)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.BUFFERED
    os.close(slave)
    assert content(tmp_path) == b"last words"


async def test_terminal_that_nobody_has_open_may_be_opened_again(pump: OutputPump, tmp_path: Path) -> None:
    master, slave, read, write = terminal()
    name = os.ttyname(slave)
    sink = pump.open(str(tmp_path))
    sink.add_terminal(master, read, write)
    os.write(slave, b"one")
    os.close(slave)
    await sink.wait_beyond(2)
    slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
    os.write(slave, b"two")
    await sink.wait_beyond(5)
    assert sink.stream_end(STDOUT) is None
    os.close(slave)
    sink.finish(STDOUT)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.EOF
    assert content(tmp_path) == b"onetwo"


async def test_terminal_on_a_full_disk_loses_nothing(pump: OutputPump, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"b" * 400 * 1024)
    master, slave, read, write = terminal()
    sink = pump.open(str(small_disk / "1"), 10_000_000, 3)
    sink.add_terminal(master, read, write)
    data = os.urandom(3000)
    os.write(slave, data)
    await eventually(lambda: sink.error is not None)
    ballast.unlink()
    # It is all in the pipe behind the terminal by now, where epoll does not look: no byte, no exit comes.
    await sink.wait_beyond(2999)
    assert content(small_disk / "1") == data
    os.close(slave)


async def test_terminal_bytes_left_by_the_last_engine_arrive_without_a_new_one(
    pump: OutputPump, tmp_path: Path
) -> None:
    master, slave, read, write = terminal()
    os.write(write, b"left")
    sink = pump.open(str(tmp_path))
    sink.add_terminal(master, read, write)
    await sink.wait_beyond(3)
    assert content(tmp_path) == b"left"
    os.close(slave)


async def test_terminal_bytes_left_in_the_pipe_come_first(pump: OutputPump, tmp_path: Path) -> None:
    master, slave, read, write = terminal()
    os.write(write, b"moved before the kill, ")
    os.write(slave, b"and after")
    os.close(slave)
    sink = pump.open(str(tmp_path))
    sink.add_terminal(master, read, write)
    sink.finish(STDOUT)
    await sink.wait_stream_end(STDOUT)
    assert content(tmp_path) == b"moved before the kill, and after"
