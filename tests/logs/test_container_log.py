"""The log of a container over its runs."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lighterman.keeper.segments import STDERR, STDOUT, SegmentWriter, list_segments
from lighterman.logs.container import ContainerLog, list_generations, trim_generations
from lighterman.logs.pipes import make_output_pipe
from lighterman.logs.pump import OutputPump
from lighterman.logs.query import LogQuery
from lighterman.logs.reader import Cursor, Frame, LogRecord
from lighterman.logs.streams import FrameStream, LogStream

from .support import DEADLINE_S, eventually, put


async def one_run(log: ContainerLog, generation: int, *pieces: bytes) -> None:
    sink = await log.open_run(generation)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    for piece in pieces:
        seen = sink.progress
        os.write(write, piece)
        await sink.wait_beyond(seen)
    os.close(write)
    await sink.wait_stream_end(STDOUT)


async def test_records_of_all_runs_each_once(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path)
    assert [record async for record in log.records()] == []
    await one_run(log, 1, b"a", b"b")
    await one_run(log, 2)
    await one_run(log, 3, b"c")
    records = [record async for record in log.records()]
    assert [record.data for record in records] == [b"a", b"b", b"c"]
    assert [record.cursor for record in records] == [Cursor(1, 1), Cursor(1, 2), Cursor(3, 1)]
    assert {record.stream for record in records} == {"stdout"}
    for number, record in enumerate(records):
        after = [later.data async for later in log.records(record.cursor)]
        assert after == [later.data for later in records[number + 1 :]]


async def test_follow_across_restarts_ends_after_the_last_byte(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path)
    await one_run(log, 1, b"before")
    got: list[LogRecord] = []

    async def follow() -> None:
        async for record in log.records(Cursor(1, 3), follow=True):
            got.append(record)

    following = asyncio.ensure_future(follow())
    await eventually(lambda: len(got) == 1)
    await one_run(log, 2, b"second")
    sink = await log.open_run(3)
    read, write = make_output_pipe()
    sink.add(STDERR, read)
    os.write(write, b"third")
    await eventually(lambda: len(got) == 3)
    os.write(write, b"last")
    log.end()
    os.close(write)
    await following
    assert [record.data for record in got] == [b"ore", b"second", b"third", b"last"]
    assert got[-1].stream == "stderr"
    assert sink.watched == 0


async def test_follow_of_nothing_that_is_to_come_ends(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path)
    await one_run(log, 1, b"x")
    log.end()
    assert [record.data async for record in log.records(follow=True)] == [b"x"]


async def test_new_engine_goes_on_in_the_same_run(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path)
    await one_run(log, 1, b"first")
    again = ContainerLog(pump, tmp_path)
    assert [record.data async for record in again.records()] == [b"first"]
    await one_run(again, 1, b"second")
    assert [record.data async for record in again.records(Cursor(1, 2))] == [b"rst", b"second"]


async def test_old_runs_make_way_and_the_gap_is_counted(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path, 10_000, 3)
    for generation in range(1, 8):
        await one_run(log, generation, b"%d" % generation * 6000)
    assert total_size(tmp_path) <= 30_000
    records = [record async for record in log.records()]
    newest = [record.data[:1] for record in records if record.data]
    assert newest == [b"4", b"5", b"6", b"7"]
    kept = sum(len(record.data) for record in records)
    assert kept + sum(record.lost for record in records) == 7 * 6000
    after = [record async for record in log.records(Cursor(2, 1000))]
    assert after[0] == LogRecord("stdout", 0.0, b"", Cursor(2, 6000), 5000)


def total_size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.log"))


def test_trim_of_a_run_whose_last_frame_was_cut_short(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path / "1"), 10_000, 3)
    put(writer, STDOUT, b"0123456789")
    writer.close()
    path = next((tmp_path / "1").iterdir())
    os.truncate(path, path.stat().st_size - 4)
    (tmp_path / "2").mkdir()
    (tmp_path / "not a run").mkdir()
    (tmp_path / "03").mkdir()
    trim_generations(tmp_path, 0, 2)
    assert list_segments(str(tmp_path / "1")) == [6]
    assert list_generations(tmp_path) == [1, 2]
    trim_generations(tmp_path, 0, 2)
    assert list_segments(str(tmp_path / "1")) == [6]


async def test_a_later_run_is_the_first_one_with_output(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path / "logs")
    await one_run(log, 3, b"three")
    assert [record.data async for record in log.records()] == [b"three"]


async def test_reader_that_stops_early_leaves_nothing_open(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path)
    await one_run(log, 1, b"a", b"b")
    async for record in log.records(follow=True):
        assert record.data == b"a"
        break


async def test_follower_that_is_slow_misses_none_of_the_runs_that_begin_meanwhile(
    pump: OutputPump, tmp_path: Path
) -> None:
    log = ContainerLog(pump, tmp_path)
    await one_run(log, 1, b"one")
    await one_run(log, 2, b"two")
    got = []
    async for record in log.records(follow=True):
        got.append(record.data)
        if len(got) == 1:
            await one_run(log, 3, b"three")
            await one_run(log, 4, b"four")
        elif len(got) == 3:
            await one_run(log, 5, b"five")
            await one_run(log, 6, b"six")
            log.end()
    assert got == [b"one", b"two", b"three", b"four", b"five", b"six"]


@pytest.mark.parametrize("tail", [None, 3])
async def test_reading_that_does_not_follow_ends_at_what_there_was_when_it_began(
    pump: OutputPump, tmp_path: Path, tail: int | None
) -> None:
    log = ContainerLog(pump, tmp_path)
    sink = await log.open_run(1)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    written = 0

    async def say(line: bytes) -> None:
        nonlocal written
        os.write(write, line)
        written += len(line)
        await sink.wait_beyond(written - 1)

    for number in range(10):
        await say(b"%d\n" % number)
    got = []
    read_frames = FrameStream.read_frames

    async def faster_than_it_is_read(self: FrameStream, **how: Any) -> list[Frame]:
        assert written < 100, "it follows"
        await say(b"more\n")
        return await read_frames(self, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FrameStream, "read_frames", faster_than_it_is_read)
        async for record in log.select(LogQuery(lines=True, tail=tail)):
            got.append(record.data)
    assert got == [b"%d\n" % number for number in range(10)][-(tail or 10) :]
    os.close(write)
    await sink.wait_stream_end(STDOUT)


async def test_follow_until_a_time_ends_though_the_other_stream_never_stops(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path)
    sink = await log.open_run(1)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    err_read, err_write = make_output_pipe()
    sink.add(STDERR, err_read)
    os.write(err_write, b"begun")
    await sink.wait_beyond(4)
    written = 5
    read_frames = FrameStream.read_frames

    async def faster_than_it_is_read(self: FrameStream, **how: Any) -> list[Frame]:
        nonlocal written
        os.write(write, b"more\n")
        written += 5
        await sink.wait_beyond(written - 1)
        return await read_frames(self, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FrameStream, "read_frames", faster_than_it_is_read)
        query = LogQuery(lines=True, follow=True, until=time.time() + 0.2, streams=("stderr",))
        async with asyncio.timeout(DEADLINE_S):
            got = [(record.data, record.partial) async for record in log.select(query)]
    assert got == [(b"begun", True)]
    for fd in (write, err_write):
        os.close(fd)
    await sink.wait_stream_end(STDOUT)
    await sink.wait_stream_end(STDERR)


async def test_reader_of_a_run_reads_it_to_its_end_though_the_next_ones_need_the_room(
    pump: OutputPump, tmp_path: Path
) -> None:
    log = ContainerLog(pump, tmp_path, 10_000, 3)
    sink = await log.open_run(1)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    os.write(write, b"first\n" + b"1" * 20_000)
    os.close(write)
    reader = LogStream(sink, STDOUT)
    assert await reader.readline() == b"first\n"
    await sink.wait_stream_end(STDOUT)
    for generation in range(2, 6):
        await one_run(log, generation, *[b"%d" % generation * 5000] * 6)
    assert await reader.read() == b"1" * 20_000
    assert reader.lost == 0
    await one_run(log, 6, b"6")
    assert total_size(tmp_path / "1") == 0
    assert total_size(tmp_path) <= 30_000


async def test_reader_of_a_run_whose_files_went_counts_them(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path, 10_000, 3, policy="drop-oldest")
    sink = await log.open_run(1)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    os.write(write, b"first\n" + b"1" * 20_000)
    os.close(write)
    reader = LogStream(sink, STDOUT)
    await sink.wait_stream_end(STDOUT)
    await one_run(log, 2, *[b"2" * 5000] * 6)
    assert await reader.read() == b""
    assert reader.lost == 20_006


async def test_all_runs_together_keep_no_more_than_one_may(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path, 10_000, 5)
    for generation in (1, 2, 3):
        await one_run(log, generation, *[b"%d" % generation * 4000] * 9)
        assert total_size(tmp_path) <= 50_000
    records = [record async for record in log.records()]
    assert sum(len(record.data) + record.lost for record in records) == 3 * 9 * 4000
    # The oldest went, and no more than had to.
    assert b"1" not in b"".join(record.data for record in records)
    assert sum(len(record.data) for record in records) > 38_000


def test_the_keeper_alone_keeps_that_bound_too(tmp_path: Path) -> None:
    for generation in (1, 2):
        # As a keeper whose engine has left: nobody has made room before.
        writer = SegmentWriter(str(tmp_path / str(generation)), 10_000, 5)
        put(writer, STDOUT, b"x" * 60_000)
        writer.close()
    assert total_size(tmp_path) <= 50_000
    assert list_segments(str(tmp_path / "1")) == [60_000]


def test_one_file_only_never_forgets_where_the_log_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(str(tmp_path / "1"), 10_000, 1)
    put(writer, STDOUT, b"x" * 25_000)
    assert len(list_segments(str(tmp_path / "1"))) == 1
    with monkeypatch.context() as patched:
        # No inode is left for the next one.
        patched.setattr(os, "open", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            put(writer, STDOUT, b"x" * 10_000)
    end = writer.end
    assert end > 25_000
    writer.close()
    again = SegmentWriter(str(tmp_path / "1"), 10_000, 1)
    assert again.end == end
    again.close()
