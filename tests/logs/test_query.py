"""Reading a log by lines, time, stream and from its end: P8, each byte once, wherever reading goes on."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighterman.errors import InvalidSpec
from lighterman.keeper import segments
from lighterman.keeper.segments import DROP_NEWEST, STDERR, STDOUT, SegmentWriter
from lighterman.logs.container import ContainerLog
from lighterman.logs.lines import LINE_BYTES
from lighterman.logs.pipes import make_output_pipe
from lighterman.logs.pump import OutputPump
from lighterman.logs.query import LogQuery, log_query
from lighterman.logs.reader import STREAM_NAMES, Cursor, LogRecord

from .support import eventually, pipe, put

pieces = st.lists(
    st.tuples(st.sampled_from([STDOUT, STDERR]), st.text("ab\n\0", min_size=1, max_size=6).map(str.encode)), max_size=25
)


def stored(directory: Path, runs: list[list[tuple[int, bytes]]]) -> ContainerLog:
    """A log of runs that are over."""
    for generation, written in enumerate(runs, 1):
        writer = SegmentWriter(str(directory / str(generation)), 4096, 1000)
        for stream, data in written:
            put(writer, stream, data)
        writer.close()
    return ContainerLog(None, directory)  # type: ignore[arg-type]


async def select(log: ContainerLog, **query: object) -> list[LogRecord]:
    return [record async for record in log.select(LogQuery(**query))]  # type: ignore[arg-type]


def lines_of(runs: list[list[tuple[int, bytes]]], stream: int) -> list[bytes]:
    """What the lines of a stream are; runs are not joined."""
    found = []
    for written in runs:
        found += b"".join(data for source, data in written if source == stream).splitlines(keepends=True)
    return found


def of(records: list[LogRecord], stream: int) -> list[bytes]:
    return [record.data for record in records if record.stream == STREAM_NAMES[stream]]


def told(records: list[LogRecord]) -> list[tuple[str, bytes, bool]]:
    """All but the cursors: there are several for the same place."""
    return [(record.stream, record.data, record.partial) for record in records]


@given(runs=st.lists(pieces, max_size=3), steps=st.lists(st.integers(1, 9), min_size=1))
@settings(max_examples=100, deadline=None)
def test_P08_lines_taken_up_after_any_of_them_lose_and_double_nothing(
    runs: list[list[tuple[int, bytes]]], steps: list[int]
) -> None:
    async def check(log: ContainerLog) -> None:
        whole = await select(log, lines=True)
        for stream in (STDOUT, STDERR):
            assert of(whole, stream) == lines_of(runs, stream)
        assert [line.partial for line in whole] == [not line.data.endswith(b"\n") for line in whole]
        got: list[LogRecord] = []
        for step in itertools.cycle(steps):
            place = got[-1].cursor if got else None
            rest = await select(log, lines=True, after=place)
            assert told(got + rest) == told(whole)
            raw = await select(log, after=place)
            for stream in (STDOUT, STDERR):
                assert b"".join(of(raw, stream)) == b"".join(of(rest, stream))
            if not rest:
                break
            got += rest[:step]

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(check(stored(Path(directory), runs)))


@given(runs=st.lists(pieces, max_size=2), steps=st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=1))
@settings(max_examples=60, deadline=None)
def test_P08_pieces_and_lines_by_turns_give_each_byte_once(
    runs: list[list[tuple[int, bytes]]], steps: list[tuple[bool, int]]
) -> None:
    async def check(log: ContainerLog) -> None:
        got: list[LogRecord] = []
        for lines, step in itertools.cycle(steps):
            rest = await select(log, lines=lines, after=got[-1].cursor if got else None)
            if not rest:
                break
            got += rest[:step]
        for stream in (STDOUT, STDERR):
            expected = b"".join(piece for run in runs for source, piece in run if source == stream)
            assert b"".join(of(got, stream)) == expected

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(check(stored(Path(directory), runs)))


@given(runs=st.lists(pieces, max_size=3), counts=st.lists(st.integers(0, 30)), lines=st.booleans())
@settings(max_examples=40, deadline=None)
def test_tail_gives_the_last_records(runs: list[list[tuple[int, bytes]]], counts: list[int], lines: bool) -> None:
    async def check(log: ContainerLog) -> None:
        whole = await select(log, lines=lines)
        for count in counts:
            assert told(await select(log, lines=lines, tail=count)) == told(whole[-count:] if count else [])

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(check(stored(Path(directory), runs)))


async def test_tail_of_much_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(str(tmp_path / "1"), 4_000_000, 100)
    put(writer, STDOUT, b"".join(b"%07d\n" % number for number in range(500_000)))
    writer.close()
    log = ContainerLog(None, tmp_path)  # type: ignore[arg-type]
    bytes_read = 0
    pread = os.pread

    def counted(fd: int, count: int, position: int) -> bytes:
        nonlocal bytes_read
        data = pread(fd, count, position)
        bytes_read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    last = await select(log, lines=True, tail=3)
    assert [line.data for line in last] == [b"0499997\n", b"0499998\n", b"0499999\n"]
    assert bytes_read < 4_000_000
    assert [line.data for line in await select(log, lines=True, tail=20_000)] == [
        b"%07d\n" % number for number in range(480_000, 500_000)
    ]


async def test_streams_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000
    monkeypatch.setattr(segments, "time_ns", lambda: now * 1_000_000_000)
    writer = SegmentWriter(str(tmp_path / "1"), 4096, 100)
    for number in range(200):
        now = 1000 + number
        put(writer, STDERR if number % 2 else STDOUT, b"%d" % number + b"x" * 100 + b"\n")
    writer.close()
    log = ContainerLog(None, tmp_path)  # type: ignore[arg-type]

    def numbers(records: list[LogRecord]) -> list[int]:
        return [int(record.data.split(b"x")[0]) for record in records]

    assert numbers(await select(log, since=1150.0, lines=True)) == list(range(150, 200))
    assert numbers(await select(log, until=1003.0, lines=True)) == [0, 1, 2, 3]
    assert numbers(await select(log, since=1090.5, until=1094.5, lines=True)) == [91, 92, 93, 94]
    assert numbers(await select(log, streams=("stderr",), tail=3, lines=True)) == [195, 197, 199]
    assert numbers(await select(log, since=1100.0, tail=2, until=1120.0, lines=True)) == [119, 120]
    raw = await select(log, since=1150.0)
    assert {record.time for record in raw} == {float(second) for second in range(1150, 1200)}
    # Skipping files is no loss.
    assert not any(record.lost for record in raw)


async def test_follow_until_a_time_ends_then(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path)
    sink = await log.open_run(1)
    read, write = make_output_pipe()
    sink.add(STDOUT, read)
    os.write(write, b"now\n")
    until = time.time() + 0.2
    got = [record.data async for record in log.select(LogQuery(follow=True, until=until))]
    assert got == [b"now\n"]
    assert time.time() >= until
    os.close(write)
    await sink.wait_stream_end(STDOUT)


async def test_lines_followed_while_both_streams_are_in_the_middle_of_one(pump: OutputPump, tmp_path: Path) -> None:
    log = ContainerLog(pump, tmp_path)
    sink = await log.open_run(1)
    writes = {}
    for stream in (STDOUT, STDERR):
        read, writes[stream] = make_output_pipe()
        sink.add(stream, read)

    async def say(stream: int, data: bytes) -> None:
        seen = sink.progress
        os.write(writes[stream], data)
        await sink.wait_beyond(seen)

    got: list[LogRecord] = []

    async def follow(after: Cursor | None) -> None:
        async for line in log.select(LogQuery(after=after, follow=True, lines=True)):
            got.append(line)

    following = asyncio.ensure_future(follow(None))
    await say(STDOUT, b"out")
    await say(STDERR, b"err 1\nerr")
    await eventually(lambda: len(got) == 1)
    following.cancel()
    await asyncio.wait((following,))
    assert got[0].cursor == Cursor(1, 0, 0, 9)
    await say(STDERR, b" 2\n")
    following = asyncio.ensure_future(follow(got[0].cursor))
    await say(STDOUT, b" 1\n")
    await eventually(lambda: len(got) == 3)
    await say(STDOUT, b"end")
    log.end()
    for write in writes.values():
        os.close(write)
    await following
    assert [(line.stream, line.data, line.partial) for line in got] == [
        ("stderr", b"err 1\n", False),
        ("stderr", b"err 2\n", False),
        ("stdout", b"out 1\n", False),
        ("stdout", b"end", True),
    ]


async def test_a_line_without_end_comes_in_pieces(tmp_path: Path) -> None:
    data = b"x" * (2 * LINE_BYTES) + b"yz\n"
    log = stored(tmp_path, [[(STDOUT, data)]])
    lines = await select(log, lines=True)
    assert [(len(line.data), line.partial) for line in lines] == [(LINE_BYTES, True), (LINE_BYTES, True), (3, False)]
    assert [line.data async for line in log.select(LogQuery(lines=True, after=lines[1].cursor))] == [b"yz\n"]


async def test_what_was_rotated_away_between_lines_is_a_record_of_its_own(tmp_path: Path) -> None:
    log = stored(tmp_path, [[(STDOUT, b"%04d\n" % number) for number in range(1000)]])
    first = (await select(log, lines=True))[0]
    kept = sorted((tmp_path / "1").iterdir())
    for path in kept[:-1]:
        path.unlink()
    lost, *rest = await select(log, lines=True, after=first.cursor)
    assert (lost.data, lost.lost) == (b"", int(kept[-1].stem.split("-")[1]) - 5)
    assert lost.lost + sum(len(line.data) for line in rest) == 4995
    assert (await select(log, lines=True, after=lost.cursor)) == rest


def test_bad_queries_are_refused() -> None:
    good = {
        "after": None,
        "follow": False,
        "since": None,
        "until": None,
        "tail": None,
        "streams": "stdout",
        "lines": False,
    }
    for wrong in (
        {"tail": -1},
        {"tail": True},
        {"streams": ()},
        {"streams": ("stdout", "x")},
        {"since": datetime.datetime(2026, 1, 1)},
        {"until": float("nan")},
        {"since": 1e300},
        {"since": 10**400},
        {"since": 10**5000},
        {"until": 10**400},
        {"until": -(10**400)},
        {"tail": 2**63},
        {"tail": 10**5000},
        {"tail": -(10**5000)},
        {"after": Cursor("x", None)},  # type: ignore[arg-type]
        {"after": Cursor(1, -5)},
        {"after": Cursor(1, 2**64)},
        {"after": Cursor(True, 0)},
        {"after": Cursor(10**5000, 0)},
    ):
        with pytest.raises(InvalidSpec):
            log_query(**(good | wrong))
    aware = datetime.datetime(1970, 1, 1, 0, 1, tzinfo=datetime.UTC)
    assert log_query(**(good | {"since": aware})).since == 60.0  # type: ignore[arg-type]
    assert log_query(**good).streams == ("stdout",)  # type: ignore[arg-type]


@pytest.mark.parametrize("between", [1, 3000])
async def test_until_has_the_lines_that_began_before_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: int
) -> None:
    now = 1000
    monkeypatch.setattr(segments, "time_ns", lambda: now * 1_000_000_000)
    writer = SegmentWriter(str(tmp_path / "1"), 10_000_000, 5)
    put(writer, STDOUT, b"begun ")
    now = 1001
    put(writer, STDOUT, b"and ended\nagain ")
    now = 1005
    for _ in range(between):
        # More than is read at once, or less: it makes no difference.
        put(writer, STDERR, b"late" * 25 + b"\n")
    put(writer, STDOUT, b"ended\nlater\n")
    writer.close()
    log = ContainerLog(None, tmp_path)  # type: ignore[arg-type]
    for streams in (("stdout",), ("stdout", "stderr")):
        got = await select(log, lines=True, until=1002.0, streams=streams)
        assert [(line.time, line.data) for line in got] == [(1000.0, b"begun and ended\n"), (1001.0, b"again ended\n")]
    assert [piece.data for piece in await select(log, until=1002.0)] == [b"begun ", b"and ended\nagain "]


async def test_until_has_a_line_that_never_ended_as_far_as_there_is_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000
    monkeypatch.setattr(segments, "time_ns", lambda: now * 1_000_000_000)
    writer = SegmentWriter(str(tmp_path / "1"), 10_000_000, 5)
    put(writer, STDOUT, b"prompt> ")
    now = 1005
    put(writer, STDERR, b"late\n")
    writer.close()
    log = ContainerLog(None, tmp_path)  # type: ignore[arg-type]
    assert told(await select(log, lines=True, until=1002.0)) == [("stdout", b"prompt> ", True)]


@pytest.mark.parametrize("lines", [False, True])
async def test_what_was_dropped_at_the_end_of_a_run_is_told_of_its_stream(tmp_path: Path, lines: bool) -> None:
    writer = SegmentWriter(str(tmp_path / "1"), 10_000_000, 5, DROP_NEWEST)
    put(writer, STDERR, b"kept\n")
    with pipe(b"z" * 777) as (read, _):
        writer.drop(STDERR, read, 1000)
    with pipe(b"z" * 3) as (read, _):
        writer.drop(STDOUT, read, 1000)
    writer.close()
    log = ContainerLog(None, tmp_path)  # type: ignore[arg-type]

    async def lost(*streams: str, after: Cursor | None = None) -> list[tuple[str, int]]:
        records = await select(log, streams=streams, lines=lines, after=after)
        return [(record.stream, record.lost) for record in records if record.lost]

    assert await lost("stderr") == [("stderr", 777)]
    assert await lost("stdout") == [("stdout", 3)]
    assert await lost("stdout", "stderr") == [("stdout", 3), ("stderr", 777)]
    assert await lost("stdout", "stderr", after=Cursor(1, 8)) == [("stderr", 777)]


@pytest.mark.parametrize("lines", [False, True])
async def test_what_was_rotated_away_is_told_though_none_of_the_stream_comes_after_it(
    tmp_path: Path, lines: bool
) -> None:
    writer = SegmentWriter(str(tmp_path / "1"), 4096, 1)
    put(writer, STDERR, b"e" * 3000)
    for _ in range(4):
        put(writer, STDOUT, b"o" * 3000)
    writer.close()
    log = ContainerLog(None, tmp_path)  # type: ignore[arg-type]
    records = await select(log, lines=lines, streams=("stderr",))
    assert {(record.stream, record.data) for record in records} == {("stderr", b"")}
    kept = sum(len(record.data) for record in await select(log))
    assert sum(record.lost for record in records) == 15_000 - kept
    assert await select(log, lines=lines, streams=("stderr",), after=records[-1].cursor) == []


async def test_tail_counts_lines_and_no_gaps(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path / "1"), 10_000_000, 5, DROP_NEWEST)
    put(writer, STDOUT, b"one\ntwo\n")
    with pipe(b"gone\n") as (read, _):
        writer.drop(STDOUT, read, 1000)
    put(writer, STDOUT, b"three\n")
    writer.close()
    log = ContainerLog(None, tmp_path)  # type: ignore[arg-type]
    records = await select(log, lines=True, tail=2)
    assert [(record.data, record.lost) for record in records] == [(b"two\n", 0), (b"", 5), (b"three\n", 0)]
