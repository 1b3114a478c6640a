"""What a container wrote, read back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from real_support import logged, records, written

from lighterman import Engine
from lighterman.errors import InvalidState, NotFound
from lighterman.logs.reader import Cursor, LogRecord
from support import eventually

pytestmark = pytest.mark.real


async def test_logs_streams_times_and_cursors(engine: Engine) -> None:
    begun = time.time()
    async with engine.container("busybox", ["sh", "-c", "echo out; read x; echo err >&2"], stdin=True) as box:
        await box.stdout.readline()
        box.stdin.write_eof()
        await box.wait()
        out, err = await records(box)
    assert (out.stream, out.data, err.stream, err.data) == ("stdout", b"out\n", "stderr", b"err\n")
    assert begun - 1 <= out.time <= err.time <= time.time() + 1
    assert (out.cursor, err.cursor) == (Cursor(1, 4), Cursor(1, 8))
    assert (out.lost, err.lost) == (0, 0)


async def test_logs_after_each_cursor_gives_exactly_the_rest(engine: Engine) -> None:
    script = "for i in 1 2 3 4 5 6; do echo $i; echo e$i >&2; sleep 0.01; done"
    async with engine.container("busybox", ["sh", "-c", script]) as box:
        await box.wait()
        whole = await records(box)
        for place, record in enumerate(whole):
            assert [one async for one in box.logs(after=record.cursor)] == whole[place + 1 :]


async def test_logs_follow_ends_with_the_container(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "while read l; do echo $l; done"], stdin=True) as box:
        seen: list[LogRecord] = []

        async def follow() -> None:
            async for record in box.logs(follow=True):
                seen.append(record)

        following = asyncio.create_task(follow())
        box.stdin.write(b"one\n")
        await box.stdout.readline()
        box.stdin.write(b"two\n")
        await box.stdout.readline()
        assert not following.done()
        box.stdin.write_eof()
        await asyncio.wait_for(following, 60)
        assert b"".join(record.data for record in seen) == b"one\ntwo\n"


async def test_logs_follow_over_a_restart_goes_on(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "echo run; exit 1"], restart="on-failure:3") as box:
        seen = [record async for record in box.logs(follow=True)]
        assert b"".join(record.data for record in seen) == b"run\n" * 4
        assert [record.cursor.generation for record in seen] == [1, 2, 3, 4]
        assert (await box.wait()).generation == 4


async def test_logs_many_readers_each_gets_all(engine: Engine) -> None:
    async with engine.container("busybox", ["seq", "1", "20000"]) as box:

        async def follow() -> bytes:
            return b"".join([record.data async for record in box.logs(follow=True)])

        texts = await asyncio.gather(*(follow() for _ in range(5)))
        assert set(texts) == {b"".join(b"%d\n" % number for number in range(1, 20001))}


async def test_logs_reader_given_up_half_way_container_goes_on(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "seq 1 300000; exit 6"]) as box:
        async for _ in box.logs(follow=True):
            break
        assert (await asyncio.wait_for(box.wait(), 90)).code == 6


async def test_logs_more_than_is_kept_counts_what_is_lost(engine: Engine) -> None:
    size = 80_000_000
    async with engine.container("busybox", ["sh", "-c", f"yes 123456789 | head -c {size}"]) as box:
        assert (await asyncio.wait_for(box.wait(), 90)).code == 0
        kept = await records(box)
    assert sum(len(record.data) + record.lost for record in kept) == size
    assert kept[0].lost > 0
    assert sum(len(record.data) for record in kept) >= 30_000_000


async def test_logs_of_execs_are_not_in_the_containers(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "echo mine; read x"], stdin=True) as box:
        await box.stdout.readline()
        await box.exec(["echo", "exec"])
        assert await logged(box, None) == b"mine\n"


async def test_logs_before_the_start_are_empty(engine: Engine) -> None:
    box = await engine.create("busybox", ["true"])
    assert await records(box) == []
    await box.remove()


async def test_logs_and_exits_that_are_waited_for_when_the_engine_closes_come_to_an_end(tmp_path: Path) -> None:
    async def read(records: AsyncIterator[LogRecord]) -> bytes:
        return b"".join([record.data async for record in records])

    async with Engine(root=tmp_path) as engine:
        box = await engine.create("busybox", ["sh", "-c", "echo hi; exec sleep 1000"], name="box", lease=None)
        await box.start()
        process = await box.start_exec(["sh", "-c", "echo out; exec sleep 1000"])
        waiting = [
            asyncio.create_task(work)
            for work in (
                read(box.logs(follow=True)),
                read(process.logs(follow=True)),
                box.wait(),
                process.wait(),
                box.exec(["sleep", "1000"]),
            )
        ]
        await written(box, b"hi\n")

        async def all_run() -> bool:
            said = await read(process.logs())
            return said == b"out\n" and [bool(each.pid) for each in await box.execs()] == [True, True]

        await eventually(all_run)
    async with asyncio.timeout(60):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert ends[:2] == [b"hi\n", b"out\n"]
    assert [type(end) for end in ends[2:]] == [InvalidState, NotFound, NotFound]
    async with Engine(root=tmp_path) as engine:
        await (await engine.get("box")).remove(force=True)


async def test_logs_of_a_program_that_never_stops_writing_end_without_follow(engine: Engine) -> None:
    async with engine.container("busybox", ["yes"]) as box:
        await written(box, b"y\n")
        async with asyncio.timeout(120):
            assert [record.data async for record in box.logs(lines=True, tail=3)] == [b"y\n"] * 3
            assert [record async for record in box.logs()]
