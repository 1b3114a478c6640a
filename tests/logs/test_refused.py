"""A disk that refuses to write, to delete, or to make a file, and what is in the log of it: nothing goes uncounted."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import tty
from collections.abc import Callable
from pathlib import Path

import pytest

from lighterman.keeper import drops, files
from lighterman.keeper.drops import make_drain
from lighterman.keeper.output import Mover
from lighterman.keeper.segments import (
    BLOCK_WRITER,
    DROP_NEWEST,
    DROP_OLDEST,
    STDERR,
    STDOUT,
    SegmentWriter,
    segment_name,
)
from lighterman.keeper.table import Row
from lighterman.logs.container import ContainerLog
from lighterman.logs.pipes import make_output_pipe
from lighterman.logs.pump import OutputPump
from lighterman.logs.query import log_query
from lighterman.logs.reader import Cursor, LogRecord, StreamName, read_frames
from lighterman.logs.sink import StreamEnd
from lighterman.logs.streams import LogStream
from lighterman.spec import LogPolicy

from .support import content, eventually, pipe, put, write_all


class Refusing:
    """What of a disk refuses while it is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames = self.new_files = self.slots = self.slot_files = self.deleting = False
        put_header: Callable[..., int] = SegmentWriter._put_header
        open_file: Callable[..., None] = SegmentWriter._open
        pwrite, open_slot = files.pwrite, drops._open
        unlink = os.unlink

        def header(writer: SegmentWriter, *arguments: int) -> int:
            self._refuse(self.frames)
            return put_header(writer, *arguments)

        def file(writer: SegmentWriter, start: int, flags: int) -> None:
            self._refuse(self.new_files and bool(flags & os.O_CREAT))
            open_file(writer, start, flags)

        def slot(fd: int, data: bytes, offset: int) -> int:
            self._refuse(self.slots)
            return pwrite(fd, data, offset)

        def slot_file(directory: str) -> int:
            self._refuse(self.slot_files)
            return open_slot(directory)

        def delete(path: str, **rest: int) -> None:
            self._refuse(self.deleting and "segment-" in str(path))
            unlink(path, **rest)

        monkeypatch.setattr(SegmentWriter, "_put_header", header)
        monkeypatch.setattr(SegmentWriter, "_open", file)
        monkeypatch.setattr(drops, "pwrite", slot)
        monkeypatch.setattr(drops, "_open", slot_file)
        monkeypatch.setattr(os, "unlink", delete)

    @staticmethod
    def _refuse(how: bool) -> None:
        if how:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    return Refusing(monkeypatch)


def in_all(directory: Path) -> int:
    return sum(len(frame.data) + frame.lost for frame in read_frames(str(directory)))


# ---- the keeper alone ----


def a_mover(row: Row, directory: Path, policy: str) -> tuple[Mover, dict[int, Callable[[int], None]]]:
    callbacks: dict[int, Callable[[int], None]] = {}
    mover = Mover(
        row,
        (str(directory), 10_000, 3, policy),
        lambda fd, _, act: callbacks.update({fd: act}),
        callbacks.__delitem__,
    )
    return mover, callbacks


def close_drains(row: Row) -> None:
    for name in ("drain_out", "drain_err"):
        os.close(row.held[name])


@pytest.mark.parametrize("policy", [DROP_NEWEST, DROP_OLDEST])
def test_P07_the_keeper_comes_to_the_end_of_a_stream_on_a_full_disk(
    tmp_path: Path, refusing: Refusing, policy: str
) -> None:
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    row = Row(1, "a", 0, {"stdout": read}, None, b"", b"")
    mover, callbacks = a_mover(row, tmp_path, policy)
    refusing.frames = True
    os.write(write, b"x" * 50_000)
    callbacks[read](1)
    os.close(write)
    # Of what was dropped nothing can be told yet, and there is nothing more to drop.
    callbacks[read](1)
    assert callbacks == {}
    mover.stop()
    close_drains(row)
    os.close(read)
    refusing.frames = False
    again = SegmentWriter(str(tmp_path), 10_000, 3, policy)
    assert again.untold_each == (50_000, 0)
    again.close()


def test_P07_the_keeper_goes_on_dropping_what_a_terminal_says(tmp_path: Path, refusing: Refusing) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    through = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    held = {"console": master, "console_pipe_r": through[0], "console_pipe_w": through[1]}
    row = Row(1, "a", 0, held, None, b"", b"")
    mover, callbacks = a_mover(row, tmp_path, DROP_NEWEST)
    refusing.frames = True
    for _ in range(5):
        os.write(slave, b"y" * 1000)
        callbacks[master](1)
    refusing.frames = False
    mover.retry()
    mover.stop()
    close_drains(row)
    for fd in (master, slave, *through):
        os.close(fd)
    assert [(frame.data, frame.lost) for frame in read_frames(str(tmp_path))] == [(b"", 5000)]


# ---- the pump ----


async def test_P07_an_engine_that_takes_over_untold_drops_comes_to_the_end_on_a_full_disk(
    pump: OutputPump, tmp_path: Path, refusing: Refusing
) -> None:
    writer = SegmentWriter(str(tmp_path / "1"), 10_000, 3, DROP_NEWEST)
    with pipe(b"12345") as (read, _):
        writer.drop(STDOUT, read, 100)
    writer.close()
    refusing.frames = True
    sink = pump.open(str(tmp_path / "1"), 10_000, 3, DROP_NEWEST)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    os.close(write)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.EOF
    refusing.frames = False
    other = pump.open(str(tmp_path / "2"))
    read, write = make_output_pipe()
    other.add(STDOUT, read)
    os.write(write, b"moves")
    await other.wait_beyond(4)
    os.close(write)


async def test_P07_a_terminal_that_is_taken_over_on_a_full_disk_is_counted(
    pump: OutputPump, tmp_path: Path, refusing: Refusing
) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000, 3, DROP_NEWEST)
    with pipe(b"12345") as (read, _):
        writer.drop(STDOUT, read, 100)
    writer.close()
    refusing.frames = True
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.write(slave, b"last words")
    sink = pump.open(str(tmp_path), 10_000, 3, DROP_NEWEST)
    sink.add_terminal(master, *make_output_pipe())
    sink.finish(STDOUT)
    await sink.wait_stream_end(STDOUT)
    os.close(slave)
    assert sink.writer.dropped == 5 + len(b"last words")


@pytest.mark.parametrize("how", ["at its end", "when the other goes on"])
async def test_P07_dropped_output_that_no_frame_tells_of_is_in_what_was_captured(
    pump: OutputPump, tmp_path: Path, refusing: Refusing, how: str
) -> None:
    sink = pump.open(str(tmp_path), 10_000, 3, DROP_NEWEST)
    out_r, out_w = make_output_pipe()
    err_r, err_w = make_output_pipe()
    sink.add(STDOUT, out_r)
    sink.add(STDERR, err_r)
    refusing.frames = True
    await write_all(out_w, b"z" * 123_456)
    os.close(out_w)
    await sink.wait_stream_end(STDOUT)
    if how == "when the other goes on":
        refusing.frames = False
        await eventually(lambda: not sink.dropping)
        os.write(err_w, b"more")
        await eventually(lambda: content(tmp_path, STDERR) == b"more")
    os.close(err_w)
    await sink.wait_stream_end(STDERR)
    reader = LogStream(sink, STDOUT)
    assert await reader.capture(1000) == (b"", True)
    assert reader.lost == 123_456
    reader = LogStream(sink, STDERR)
    assert await reader.capture(1000) == (content(tmp_path, STDERR), False)
    assert reader.lost == 0
    refusing.frames = False


async def test_P07_drops_of_both_streams_told_by_one_of_them_reach_the_other_ones_reader(
    pump: OutputPump, tmp_path: Path
) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000, 3, DROP_NEWEST)
    put(writer, STDOUT, b"first")
    for stream, data in ((STDOUT, b"12"), (STDERR, b"345")):
        with pipe(data) as (read, _):
            writer.drop(stream, read, 100)
    writer.close()
    sink = pump.open(str(tmp_path), 10_000, 3, DROP_NEWEST)
    out_r, out_w = make_output_pipe()
    err_r, err_w = make_output_pipe()
    sink.add(STDOUT, out_r)
    sink.add(STDERR, err_r)
    reader = LogStream(sink, STDERR, 5)
    reading = asyncio.ensure_future(reader.read())
    os.write(out_w, b"second")
    await sink.wait_beyond(15)
    await eventually(lambda: reader.lost == 3)
    os.close(out_w)
    os.close(err_w)
    assert await reading == b""
    assert reader.lost == 3


async def test_block_goes_on_when_a_file_could_not_be_deleted_once(
    pump: OutputPump, tmp_path: Path, refusing: Refusing
) -> None:
    sink = pump.open(str(tmp_path), 8192, 2, BLOCK_WRITER)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    reader = LogStream(sink, STDOUT)
    await write_all(write, b"a")
    assert await reader.readexactly(1) == b"a"
    writing = asyncio.ensure_future(write_all(write, b"b" * 2_000_000))
    await eventually(lambda: sink.blocked)
    refusing.deleting = True
    # All there is; the reader then waits for more, and does not move.
    await reader.readexactly(sink.progress - 1)
    rest = asyncio.ensure_future(reader.read())
    await eventually(lambda: sink.error is not None)
    refusing.deleting = False
    await writing
    os.close(write)
    await rest
    assert sink.progress == 2_000_001


async def test_P07_drop_oldest_drops_where_a_new_file_is_refused(
    pump: OutputPump, tmp_path: Path, refusing: Refusing
) -> None:
    sink = pump.open(str(tmp_path), 10_000, 3, DROP_OLDEST)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    os.write(write, b"first")
    await sink.wait_beyond(4)
    refusing.new_files = True
    await write_all(write, b"x" * 3_000_000)
    refusing.new_files = False
    os.close(write)
    await sink.wait_stream_end(STDOUT)
    assert in_all(tmp_path) == 3_000_005


# ---- the slot that counts ----


def with_drains(writer: SegmentWriter, drains: tuple[int, int]) -> None:
    writer.drop_into((os.dup(drains[0]), os.dup(drains[1])))


@pytest.mark.parametrize("killed", [False, True])
def test_P07_a_slot_that_can_not_be_written_stops_no_drop_and_counts_once(
    tmp_path: Path, refusing: Refusing, killed: bool
) -> None:
    drains = make_drain(), make_drain()
    writer = SegmentWriter(str(tmp_path), 10_000, 3, DROP_NEWEST)
    with_drains(writer, drains)
    put(writer, STDOUT, b"abc")
    refusing.frames = refusing.slots = True
    for _ in range(3):
        with pipe(b"12345") as (read, _):
            assert writer.give_way(STDOUT, read, 100) == 5
    assert (writer.dropped, writer.untold) == (15, 15)
    refusing.frames = False
    # Not before the slot: told twice, if we were killed in between.
    with pytest.raises(OSError, match="No space"):
        writer.tell_dropped()
    refusing.slots = False
    if not killed:
        writer.tell_dropped()
    writer.close()
    again = SegmentWriter(str(tmp_path), 10_000, 3, DROP_NEWEST)
    with_drains(again, drains)
    assert (again.dropped, again.untold) == (15, 15 if killed else 0)
    put(again, STDOUT, b"d")
    again.close()
    for drain in drains:
        os.close(drain)
    assert [(frame.data, frame.lost) for frame in read_frames(str(tmp_path))] == [(b"abc", 0), (b"", 15), (b"d", 0)]


def test_a_slot_that_can_not_be_made_and_has_nothing_to_count_stops_no_output(
    tmp_path: Path, refusing: Refusing
) -> None:
    refusing.slot_files = True
    writer = SegmentWriter(str(tmp_path), 10_000, 3, DROP_NEWEST)
    put(writer, STDOUT, b"abc")
    writer.close()
    assert content(tmp_path) == b"abc"


@pytest.mark.parametrize("policy", ["drop-newest", "drop-oldest"])
async def test_P07_a_run_begins_where_no_file_can_be_made_under_a_policy_that_drops(
    pump: OutputPump, tmp_path: Path, refusing: Refusing, policy: LogPolicy
) -> None:
    log = ContainerLog(pump, tmp_path, 10_000_000, 5, policy=policy)
    (await log.open_run(1)).writer.close()
    refusing.new_files = refusing.slot_files = True
    sink = await log.open_run(2)
    assert not (tmp_path / "2" / "dropped").exists()
    drains = make_drain(), make_drain()
    sink.writer.drop_into(drains)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    await write_all(write, b"x" * 3_000_000)
    refusing.new_files = refusing.slot_files = False
    os.write(write, b"last\n")
    os.close(write)
    await sink.wait_stream_end(STDOUT)
    records = [record async for record in log.records()]
    assert sum(len(record.data) + record.lost for record in records) == 3_000_005


async def test_P07_earlier_output_that_can_not_be_deleted_refuses_no_run(
    pump: OutputPump, tmp_path: Path, refusing: Refusing
) -> None:
    for run in (1, 2):
        writer = SegmentWriter(str(tmp_path / str(run)), 5000, 3)
        put(writer, STDOUT, b"x" * 9000)
        writer.close()
    log = ContainerLog(pump, tmp_path, 5000, 2)
    refusing.deleting = True
    sink = await log.open_run(3)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    os.write(write, b"new")
    os.close(write)
    await sink.wait_stream_end(STDOUT)
    assert content(tmp_path / "3") == b"new"
    refusing.deleting = False


# ---- reading ----


async def test_P08_an_earlier_run_that_is_not_written_to_its_end_is_read_to_it(
    pump: OutputPump, tmp_path: Path, refusing: Refusing
) -> None:
    log = ContainerLog(pump, tmp_path)
    first = await log.open_run(1)
    read, write = make_output_pipe()
    first.add(STDOUT, read)
    os.write(write, b"first, ")
    await first.wait_beyond(6)
    refusing.frames = True
    os.write(write, b"its rest, ")
    os.close(write)
    await eventually(lambda: first.error is not None)
    second = await log.open_run(2)
    read, write = make_output_pipe()
    second.add(STDOUT, read)
    got: list[LogRecord] = []

    async def follow() -> None:
        async for record in log.records(follow=True):
            got.append(record)

    following = asyncio.ensure_future(follow())
    await eventually(lambda: len(got) == 1)
    refusing.frames = False
    os.write(write, b"second")
    os.close(write)
    await second.wait_stream_end(STDOUT)
    log.end()
    await following
    assert b"".join(record.data for record in got) == b"first, its rest, second"


async def test_what_was_rotated_away_before_another_streams_drop_is_told_to_each(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path / "1"), 4096, 5, DROP_NEWEST)
    put(writer, STDOUT, b"o" * (4096 - 32))
    with pipe(b"e" * 7) as (read, _):
        writer.drop(STDERR, read, 100)
    writer.tell_dropped()
    put(writer, STDOUT, b"kept")
    writer.close()
    os.unlink(tmp_path / "1" / segment_name(0))
    log = ContainerLog(None, tmp_path)  # type: ignore[arg-type]
    assert sum([record.lost async for record in log.records()]) == 4064 + 7
    wanted: list[tuple[StreamName, int, bytes]] = [("stdout", 4064, b"kept"), ("stderr", 4064 + 7, b"")]
    for stream, lost, data in wanted:
        records = [record async for record in log.select(log_query(streams=stream))]
        assert sum(record.lost for record in records) == lost
        assert b"".join(record.data for record in records) == data


@pytest.mark.parametrize("tail", [None, 1])
async def test_a_damaged_end_of_an_earlier_run_is_a_gap_and_hides_no_later_one(
    tmp_path: Path, tail: int | None
) -> None:
    for run in (1, 2, 3):
        writer = SegmentWriter(str(tmp_path / str(run)), 10_000, 3)
        put(writer, STDOUT, b"run %d\n" % run)
        writer.close()
    with (tmp_path / "1" / segment_name(0)).open("ab") as file:
        file.write(b"\0" * 100)
    log = ContainerLog(None, tmp_path)  # type: ignore[arg-type]
    records = [record async for record in log.select(log_query(tail=tail))]
    if tail is not None:
        assert [record.data for record in records] == [b"run 3\n"]
        return
    assert [record.data for record in records] == [b"run 1\n", b"", b"run 2\n", b"run 3\n"]
    assert [record.lost > 0 for record in records] == [False, True, False, False]
    gap = records[1]
    # Told once, wherever one goes on from; and where a writer goes on is after it.
    assert [record.data async for record in log.records(gap.cursor)] == [b"run 2\n", b"run 3\n"]
    assert [record.lost async for record in log.records(Cursor(1, 3))] == [0, gap.lost, 0, 0]
    writer = SegmentWriter(str(tmp_path / "1"), 10_000, 3)
    assert writer.end == gap.cursor.offset
    writer.close()
