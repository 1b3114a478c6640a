"""Reading output back while it is written."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighterman.errors import InvalidState, StoreError
from lighterman.keeper.segments import BLOCK, STDERR, STDOUT, SegmentWriter, list_segments, segment_name
from lighterman.logs import streams
from lighterman.logs.pipes import make_output_pipe
from lighterman.logs.pump import OutputPump
from lighterman.logs.reader import SegmentReader
from lighterman.logs.sink import OutputSink, StreamEnd
from lighterman.logs.streams import FrameStream, LogStream

from .support import DEADLINE_S, eventually, put
from .test_pump import write_all


class Process:
    """Both pipes of a process that the test plays."""

    def __init__(self, pump: OutputPump, directory: Path, max_bytes: int = 10_000_000, max_files: int = 5) -> None:
        self.sink: OutputSink = pump.open(str(directory), max_bytes, max_files)
        self.writes: dict[int, int] = {}
        for stream in (STDOUT, STDERR):
            read, self.writes[stream] = make_output_pipe()
            self.sink.add(stream, read)

    def exit(self) -> None:
        for stream, write in self.writes.items():
            os.close(write)
            self.sink.finish(stream)

    def out(self, data: bytes) -> None:
        os.write(self.writes[STDOUT], data)


@pytest.fixture
def process(pump: OutputPump, tmp_path: Path) -> Process:
    return Process(pump, tmp_path / "1")


async def test_read_while_it_is_written(process: Process) -> None:
    stream = LogStream(process.sink, STDOUT)
    reading = asyncio.ensure_future(stream.read(100))
    await asyncio.sleep(0)
    assert not reading.done()
    process.out(b"hello")
    assert await reading == b"hello"
    process.out(b"abcdef")
    assert await stream.readexactly(4) == b"abcd"
    assert await stream.read(0) == b""
    process.exit()
    assert not stream.at_eof()
    assert await stream.read() == b"ef"
    assert await stream.read() == b""
    assert await stream.read(5) == b""
    assert stream.at_eof()
    with pytest.raises(asyncio.IncompleteReadError):
        await stream.readexactly(1)


async def test_read_from_a_place_and_as_often_as_one_likes(process: Process) -> None:
    process.out(b"0123456789")
    process.exit()
    assert await LogStream(process.sink, STDOUT).read() == b"0123456789"
    assert await LogStream(process.sink, STDOUT, after=4).read() == b"456789"
    assert await LogStream(process.sink, STDOUT, after=10).read() == b""
    assert await LogStream(process.sink, STDERR).read() == b""


async def test_lines(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LINE_BYTES", 10)
    process.out(b"one\n\ntwo")
    stream = LogStream(process.sink, STDOUT)
    assert await stream.readline() == b"one\n"
    assert await stream.readline() == b"\n"
    reading = asyncio.ensure_future(stream.readline())
    await asyncio.sleep(0)
    assert not reading.done()
    process.out(b"!\n" + b"x" * 25 + b"\n123456789\n\xff")
    assert await reading == b"two!\n"
    process.exit()
    assert [line async for line in stream] == [b"x" * 10, b"x" * 10, b"xxxxx\n", b"123456789\n", b"\xff"]
    assert await stream.readline() == b""


@given(written=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 2000), max_size=6), n=st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_lines_and_reads_add_up(written: bytes, cuts: list[int], n: int) -> None:
    async def check() -> None:
        pump = OutputPump(asyncio.get_running_loop())
        with tempfile.TemporaryDirectory() as directory:
            process = Process(pump, Path(directory))
            lines, reads = LogStream(process.sink, STDOUT), LogStream(process.sink, STDOUT)
            places = [0, *sorted(min(cut, len(written)) for cut in cuts), len(written)]
            got = bytearray()
            for first, last in itertools.pairwise(places):
                if last > first:
                    process.out(written[first:last])
                    got += await reads.read(n)
            process.exit()
            while piece := await reads.read(n):
                assert len(piece) <= n
                got += piece
            assert bytes(got) == written
            assert [line async for line in lines] == re.findall(rb"[^\n]*\n|[^\n]+", written)
            await pump.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("limit", "kept", "truncated"), [(0, b"", True), (4, b"0123", True), (10, b"0123456789", False)]
)
async def test_capture_keeps_the_first_bytes(process: Process, limit: int, kept: bytes, truncated: bool) -> None:
    process.out(b"0123456789")
    capturing = asyncio.ensure_future(LogStream(process.sink, STDOUT).capture(limit))
    await process.sink.wait_beyond(9)
    assert not capturing.done()
    process.exit()
    assert await capturing == (kept, truncated)


async def test_capture_of_more_than_it_keeps_holds_nobody_up(pump: OutputPump, tmp_path: Path) -> None:
    process = Process(pump, tmp_path / "1", 100_000, 3)
    capturing = asyncio.ensure_future(LogStream(process.sink, STDOUT).capture(1_000_000))
    await asyncio.sleep(0)
    data = os.urandom(5_000_000)
    await asyncio.to_thread(write_all, process.writes[STDOUT], data)
    process.exit()
    assert await capturing == (data[:1_000_000], True)
    assert await process.sink.wait_stream_end(STDOUT) is StreamEnd.EOF


async def test_read_by_two_tasks_at_once_is_refused(process: Process) -> None:
    stream = LogStream(process.sink, STDOUT)
    reading = asyncio.ensure_future(stream.read())
    await asyncio.sleep(0)
    with pytest.raises(InvalidState):
        await stream.read()
    process.exit()
    assert await reading == b""


async def test_cancelled_read_loses_nothing(process: Process) -> None:
    stream = LogStream(process.sink, STDOUT)
    reading = asyncio.ensure_future(stream.read(10))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    process.out(b"hello")
    assert await stream.read(10) == b"hello"
    assert process.sink.watched == 0
    process.exit()


async def test_read_cancelled_in_the_thread_loses_nothing(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    process.out(b"hello")
    await process.sink.wait_beyond(4)
    entered, release = threading.Event(), threading.Event()
    pread = SegmentReader._pread

    def slow_disk(reader: SegmentReader, count: int, position: int, nowait: bool) -> bytes | bytearray:
        entered.set()
        assert release.wait(DEADLINE_S)
        return pread(reader, count, position, nowait)

    monkeypatch.setattr(SegmentReader, "_pread", no_page_cache(slow_disk))
    stream = LogStream(process.sink, STDOUT)
    reading = asyncio.ensure_future(stream.read(10))
    await eventually(entered.is_set)
    reading.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await stream.read(10) == b"hello"
    process.exit()


Pread = Callable[[SegmentReader, int, int, bool], bytes | bytearray]


def no_page_cache(pread: Pread) -> Pread:
    def cold(reader: SegmentReader, count: int, position: int, nowait: bool) -> bytes | bytearray:
        if nowait:
            raise BlockingIOError
        return pread(reader, count, position, nowait)

    return cold


async def test_read_what_is_not_in_memory_goes_through_a_thread(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SegmentReader, "_pread", no_page_cache(SegmentReader._pread))
    data = os.urandom(800_000)
    write_all(process.writes[STDOUT], data)
    process.exit()
    assert await LogStream(process.sink, STDOUT).read() == data
    assert await LogStream(process.sink, STDOUT, after=799_990).read() == data[-10:]


async def test_started_late_counts_what_is_gone(pump: OutputPump, tmp_path: Path) -> None:
    process = Process(pump, tmp_path / "1", 4096, 2)
    data = os.urandom(50_000)
    for place in range(0, len(data), 1000):
        process.out(data[place : place + 1000])
        await process.sink.wait_beyond(place + 999)
    process.exit()
    stream = LogStream(process.sink, STDOUT)
    got = await stream.read()
    assert stream.lost == list_segments(str(tmp_path / "1"))[0] > 0
    assert got == data[stream.lost :]


async def test_reader_without_a_pin_counts_the_gap_exactly(pump: OutputPump, tmp_path: Path) -> None:
    process = Process(pump, tmp_path / "1", 4096, 2)
    stream = FrameStream(process.sink, pinned=False)
    numbers = [b"%06d\n" % number for number in range(4000)]
    process.out(numbers[0])
    first = await stream.read_frames()
    for number in numbers[1:]:
        process.out(number)
        await process.sink.wait_beyond(int(number) * 7 + 6)
    process.exit()
    got = bytearray()
    while frames := await stream.read_frames():
        for frame in frames:
            # It holds the file open that it was in; what comes after that and before the oldest is lost.
            assert frame.data == b"".join(numbers[(frame.end - len(frame.data)) // 7 : frame.end // 7])
            got += frame.data
    assert stream.lost > 0
    assert len(first[0].data) + len(got) + stream.lost == 28_000


async def test_both_streams_in_their_order(process: Process) -> None:
    stream = FrameStream(process.sink)
    for number in range(20):
        os.write(process.writes[STDOUT + number % 2], b"%d" % number)
        await process.sink.wait_beyond(stream.offset)
        frames = await stream.read_frames()
        assert [(frame.stream, frame.data) for frame in frames] == [(STDOUT + number % 2, b"%d" % number)]
    process.exit()
    assert await stream.read_frames() == []


async def test_segments_vanish_reading_fails_and_does_not_spin(process: Process, tmp_path: Path) -> None:
    process.out(b"hello")
    await process.sink.wait_beyond(4)
    (tmp_path / "1" / segment_name(0)).unlink()
    with pytest.raises(StoreError):
        await LogStream(process.sink, STDOUT).read()
    process.exit()


def test_reader_goes_on_in_files_that_were_deleted_while_open(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 3 * BLOCK, 2)
    put(writer, STDOUT, b"a" * 2 * BLOCK)
    reader = SegmentReader(str(tmp_path))
    got = bytearray(b"".join(frame.data for frame in reader.read()))
    put(writer, STDOUT, b"b" * 8 * BLOCK)
    assert segment_name(0) not in os.listdir(tmp_path)
    lost = 0
    while frames := reader.read():
        for frame in frames:
            lost += frame.lost
            got += frame.data
    assert got.count(b"a") == 2 * BLOCK
    assert len(got) + lost == writer.end == reader.offset
    assert 0 < lost == reader.lost
    reader.close()
    writer.close()


async def test_reading_a_flood_lets_other_tasks_run(process: Process) -> None:
    data = os.urandom(4_000_000)
    await asyncio.to_thread(write_all, process.writes[STDOUT], data)
    process.exit()
    await process.sink.wait_stream_end(STDOUT)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    assert await LogStream(process.sink, STDOUT).read() == data
    task.cancel()
    # 256 KiB at a time.
    assert turns >= len(data) // (512 * 1024)


def test_file_that_grows_just_before_it_gets_a_successor_is_read_to_its_end(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 4096, 10)
    put(writer, STDOUT, b"a" * 100)

    def list_and_grow() -> list[int]:
        if writer.end == 200:
            put(writer, STDOUT, b"c" * 8000)
        return list_segments(str(tmp_path))

    reader = SegmentReader(str(tmp_path), 0, list_and_grow)
    assert reader.read()[0].data == b"a" * 100
    assert reader.read() == []
    put(writer, STDOUT, b"b" * 100)
    reader.read(150)
    got = bytearray()
    while frames := reader.read():
        got += b"".join(frame.data for frame in frames)
    assert bytes(got) == b"c" * 8000
    assert reader.lost == 0
    reader.close()
    writer.close()
