"""What happens when the disk, or a reader that may lose nothing, can't keep up: P7, by number of bytes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lighterman.keeper.output import Mover
from lighterman.keeper.segments import (
    BLOCK_WRITER,
    DROP_NEWEST,
    DROP_OLDEST,
    STDERR,
    STDOUT,
    SegmentWriter,
    list_segments,
)
from lighterman.keeper.table import Row
from lighterman.logs.container import ContainerLog
from lighterman.logs.pipes import make_output_pipe
from lighterman.logs.pump import OutputPump
from lighterman.logs.reader import Cursor, read_frames
from lighterman.logs.sink import OutputSink, StreamEnd
from lighterman.logs.streams import LogStream

from .support import content, eventually, pipe, put, write_all


def told(directory: Path, stream: int | None = None) -> tuple[int, int]:
    """(bytes that are there, bytes that are counted as missing)."""
    kept = lost = 0
    for frame in read_frames(str(directory)):
        if stream in (None, frame.stream):
            kept += len(frame.data)
            lost += frame.lost
    return kept, lost


def numbered(first: int, last: int) -> bytes:
    return b"".join(b"%07d\n" % number for number in range(first, last))


class Full:
    """A disk that refuses while `on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        put_header: Callable[..., int] = SegmentWriter._put_header

        def refuse(writer: SegmentWriter, *arguments: int) -> int:
            if self.on:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return put_header(writer, *arguments)

        monkeypatch.setattr(SegmentWriter, "_put_header", refuse)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    return Full(monkeypatch)


def open_sink(pump: OutputPump, directory: Path, policy: str, **bounds: int) -> tuple[OutputSink, int, int]:
    sink = pump.open(str(directory), bounds.get("max_bytes", 100_000), bounds.get("max_files", 3), policy)
    out_r, out_w = make_output_pipe()
    err_r, err_w = make_output_pipe()
    sink.add(STDOUT, out_r)
    sink.add(STDERR, err_r)
    return sink, out_w, err_w


async def test_P07_drop_newest_the_program_never_waits_and_the_record_says_how_much(
    pump: OutputPump, tmp_path: Path, full: Full
) -> None:
    sink, out, err = open_sink(pump, tmp_path, DROP_NEWEST)
    await write_all(out, b"before\n")
    await sink.wait_beyond(6)
    full.on = True
    # More than both pipes hold: it only comes to an end if somebody takes it.
    await write_all(out, b"x" * 5_000_000)
    await write_all(err, b"y" * 3_000_001)
    await eventually(lambda: sink.writer.dropped == 8_000_001)
    assert sink.dropping
    assert isinstance(sink.error, OSError)
    assert sink.progress == 7
    full.on = False
    # Told without a further byte of output.
    await sink.wait_beyond(7)
    await eventually(lambda: not sink.dropping and sink.error is None)
    await write_all(out, b"after\n")
    os.close(out)
    os.close(err)
    await sink.wait_stream_end(STDOUT)
    frames = list(read_frames(str(tmp_path)))
    assert [(frame.stream, frame.data, frame.lost) for frame in frames] == [
        (STDOUT, b"before\n", 0),
        (STDOUT, b"", 5_000_000),
        (STDERR, b"", 3_000_001),
        (STDOUT, b"after\n", 0),
    ]
    assert frames[-1].end == 7 + 8_000_001 + 6


async def test_P07_drop_newest_at_the_end_of_a_run_on_a_full_disk_is_still_counted(
    pump: OutputPump, tmp_path: Path, full: Full
) -> None:
    log = ContainerLog(pump, tmp_path, policy="drop-newest")
    sink = await log.open_run(1)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    full.on = True
    await write_all(write, b"z" * 123_456)
    os.close(write)
    assert await sink.wait_stream_end(STDOUT) is StreamEnd.EOF
    (live,) = [record async for record in log.records()]
    assert (live.data, live.lost) == (b"", 123_456)
    # And another engine, which only has the files.
    (stored,) = [record async for record in ContainerLog(pump, tmp_path).records()]
    assert (stored.data, stored.lost, stored.cursor) == (b"", 123_456, live.cursor)
    assert [record async for record in log.records(live.cursor)] == []
    full.on = False


async def test_P07_drop_newest_reader_that_stands_still_costs_output_and_no_time(
    pump: OutputPump, tmp_path: Path
) -> None:
    sink, out, err = open_sink(pump, tmp_path, DROP_NEWEST, max_bytes=50_000, max_files=2)
    reader = LogStream(sink, STDOUT)
    await write_all(out, numbered(0, 1))
    assert await reader.readline() == numbered(0, 1)
    total = 8 * 300_000
    await write_all(out, numbered(1, 300_000))
    await eventually(lambda: sink.dropping)
    os.close(out)
    os.close(err)
    # The reader goes on: it gets what there was, whole lines from the beginning, then the count.
    rest = await reader.read()
    assert rest == numbered(1, 1 + len(rest) // 8) + rest[len(rest) // 8 * 8 :]
    assert len(numbered(0, 1)) + len(rest) + reader.lost == total


async def test_P07_drop_oldest_reader_that_stands_still_holds_nobody_up(pump: OutputPump, tmp_path: Path) -> None:
    sink, out, err = open_sink(pump, tmp_path, DROP_OLDEST, max_bytes=50_000, max_files=2)
    reader = LogStream(sink, STDOUT)
    await write_all(out, numbered(0, 1))
    assert await reader.readline() == numbered(0, 1)
    await write_all(out, numbered(1, 300_000))
    os.close(out)
    os.close(err)
    await sink.wait_stream_end(STDOUT)
    assert not sink.blocked
    assert not sink.dropping
    rest = await reader.read()
    assert rest.endswith(numbered(999_000, 300_000))
    assert 8 + len(rest) + reader.lost == 2_400_000


async def test_P07_drop_oldest_on_a_full_disk_makes_room_with_the_oldest(pump: OutputPump, small_disk: Path) -> None:
    log = ContainerLog(pump, small_disk, 10_000_000, 5, policy="drop-oldest")
    for generation in (1, 2):
        sink = await log.open_run(generation)
        read, write = make_output_pipe()
        sink.add(STDOUT, read)
        await write_all(write, numbered(0, 10_000))
        os.close(write)
        await sink.wait_stream_end(STDOUT)
    sink = await log.open_run(3)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    # Five times the disk.
    await write_all(write, numbered(0, 250_000))
    os.close(write)
    await sink.wait_stream_end(STDOUT)
    records = [record async for record in log.records()]
    assert sum(len(record.data) + record.lost for record in records) == 80_000 + 80_000 + 2_000_000
    last = b"".join(record.data for record in records if record.cursor.generation == 3)
    assert last.endswith(numbered(249_000, 250_000))
    assert not any(record.data for record in records if record.cursor.generation < 3)
    assert sink.writer.evicted > 0


def fill(path: Path) -> None:
    """To the last byte of the disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"b" * 4096)


async def test_P07_drop_oldest_when_nothing_is_left_to_delete(pump: OutputPump, small_disk: Path) -> None:
    sink, out, err = open_sink(pump, small_disk / "1", DROP_OLDEST)
    ballast = small_disk / "ballast"
    fill(ballast)
    await write_all(out, b"x" * 3_000_000)
    await eventually(lambda: sink.dropping)
    ballast.unlink()
    await write_all(out, b"last\n")
    os.close(out)
    os.close(err)
    await sink.wait_stream_end(STDOUT)
    await sink.wait_stream_end(STDERR)
    kept, lost = told(small_disk / "1")
    assert kept + lost == 3_000_005


@pytest.mark.parametrize("told_of", ["nothing", "stdout", "both"])
def test_P07_drops_survive_a_kill_at_each_step_of_telling(tmp_path: Path, full: Full, told_of: str) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000, 3, DROP_NEWEST)
    put(writer, STDOUT, b"abc")
    full.on = True
    with pipe(b"12345") as (out, _), pipe(b"67") as (err, _):
        assert writer.drop(STDOUT, out, 100) == 5
        assert writer.drop(STDERR, err, 100) == 2
    full.on = False
    if told_of != "nothing":
        # As `tell_dropped` does it, and killed after.
        writer._mark(STDOUT, 5)
    if told_of == "both":
        writer._mark(STDERR, 2)
    writer.close()
    again = SegmentWriter(str(tmp_path), 10_000, 3, DROP_NEWEST)
    assert again.untold == {"nothing": 7, "stdout": 2, "both": 0}[told_of]
    assert again.dropped == 7
    put(again, STDERR, b"d")
    again.close()
    assert [(frame.stream, frame.data, frame.lost) for frame in read_frames(str(tmp_path))] == [
        (STDOUT, b"abc", 0),
        (STDOUT, b"", 5),
        (STDERR, b"", 2),
        (STDERR, b"d", 0),
    ]


def test_P07_drop_in_the_middle_of_a_frame_loses_nothing_that_was_written(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000, 3, DROP_NEWEST)
    put(writer, STDOUT, b"0123456789")
    writer.close()
    (start,) = list_segments(str(tmp_path))
    path = next(tmp_path.glob("segment-*"))
    os.truncate(path, path.stat().st_size - 4)
    again = SegmentWriter(str(tmp_path), 10_000, 3, DROP_NEWEST)
    assert again.owed == (STDOUT, 4)
    with pipe(b"6789more") as (read, _):
        assert again.drop(STDOUT, read, 100) == 8
    again.tell_dropped()
    again.close()
    assert start == 0
    assert [(frame.data, frame.lost) for frame in read_frames(str(tmp_path))] == [(b"012345", 0), (b"", 8)]


@pytest.mark.parametrize("policy", [DROP_NEWEST, DROP_OLDEST])
def test_P07_the_keeper_alone_keeps_the_policy(tmp_path: Path, full: Full, policy: str) -> None:
    callbacks: dict[int, Callable[[int], None]] = {}
    with pipe() as (read, write):
        row = Row(1, "a", 0, {"stdout": read}, None, b"", b"")
        mover = Mover(
            row,
            (str(tmp_path), 10_000, 3, policy),
            lambda fd, _, act: callbacks.update({fd: act}),
            callbacks.__delitem__,
        )
        os.write(write, b"first")
        callbacks[read](1)
        full.on = True
        for _ in range(20):
            os.write(write, b"x" * 60_000)
            callbacks[read](1)
        assert mover.retry_at is not None
        full.on = False
        mover.retry()
        assert mover.retry_at is None
        os.write(write, b"last")
        callbacks[read](1)
        mover.stop()
        assert sum(os.fstat(row.held[name]).st_size for name in ("drain_out", "drain_err")) == 20 * 60_000
        for name in ("drain_out", "drain_err"):
            os.close(row.held[name])
    frames = list(read_frames(str(tmp_path)))
    assert sum(len(frame.data) + frame.lost for frame in frames) == 5 + 20 * 60_000 + 4
    assert frames[-1].data == b"last"


def test_block_drops_nothing(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path / "1"), 10_000, 3)
    with pipe(b"kept") as (read, _), pytest.raises(OSError, match="No space"):
        writer.give_way(STDOUT, read, 100)
    assert not (tmp_path / "1").exists()
    put(writer, STDOUT, b"x")
    writer.close()
    assert content(tmp_path / "1") == b"x"


async def test_P07_drop_oldest_counts_what_went_of_earlier_runs_and_remembers_it(
    pump: OutputPump, tmp_path: Path, full: Full
) -> None:
    log = ContainerLog(pump, tmp_path, policy="drop-oldest")
    for generation in (1, 2):
        sink = await log.open_run(generation)
        read, write = make_output_pipe()
        sink.add(STDOUT, read)
        await write_all(write, b"x" * 100_000)
        os.close(write)
        await sink.wait_stream_end(STDOUT)
    assert log.state().evicted_bytes == 0
    sink = await log.open_run(3)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    full.on = True
    await write_all(write, b"z")
    await eventually(lambda: sink.dropping)
    full.on = False
    os.close(write)
    await sink.wait_stream_end(STDOUT)
    assert log.state().evicted_bytes == 200_000
    assert sum([record.lost async for record in log.records()]) == 200_001
    again = ContainerLog(pump, tmp_path, policy="drop-oldest")
    taken_up = await again.open_run(3, takeover=True)
    assert again.state().evicted_bytes == 200_000
    assert again.state().dropped_bytes == 1
    taken_up.writer.close()


@pytest.mark.parametrize("how", ["logs", "follow", "stdout"])
async def test_P07_drop_oldest_when_the_room_made_is_taken_by_somebody_else_readers_count_what_went(
    pump: OutputPump, tmp_path: Path, full: Full, how: str
) -> None:
    log = ContainerLog(pump, tmp_path, policy="drop-oldest")
    sink = await log.open_run(1)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    await write_all(write, b"x" * 100_000)
    await sink.wait_beyond(99_999)
    full.on = True
    await write_all(write, b"y" * 5000)
    await eventually(lambda: sink.dropping)
    assert sink.starts == (100_000,)
    if how == "stdout":
        reader = LogStream(sink, STDOUT)
        reading = asyncio.ensure_future(reader.read())
        await eventually(lambda: reader.lost == 100_000)
        os.close(write)
        assert await reading == b""
    else:
        async for record in log.records(follow=how == "follow"):
            assert (record.data, record.lost, record.cursor) == (b"", 100_000, Cursor(1, 100_000))
            break
        os.close(write)
        await sink.wait_stream_end(STDOUT)
        assert [record.lost async for record in log.records()] == [100_000, 5000]
    full.on = False


async def test_block_reader_that_goes_away_while_it_is_looked_at_frees_the_program(
    pump: OutputPump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, out, err = open_sink(pump, tmp_path, BLOCK_WRITER, max_bytes=8192, max_files=2)
    reader = LogStream(sink, STDOUT)
    await write_all(out, b"a")
    assert await reader.read(1) == b"a"
    looked, gone = threading.Event(), threading.Event()
    look = pump._still_overfull

    def look_and_be_late(each: OutputSink) -> bool:
        answer = look(each)
        if answer and not looked.is_set():
            looked.set()
            assert gone.wait(60)
        return answer

    monkeypatch.setattr(pump, "_still_overfull", look_and_be_late)
    writing = asyncio.ensure_future(write_all(out, b"b" * 2_000_000))
    await asyncio.to_thread(looked.wait, 60)
    reader.close()
    gone.set()
    await writing
    os.close(out)
    os.close(err)
    await sink.wait_stream_end(STDOUT)
    assert sink.progress == 2_000_001
    assert not sink.blocked
