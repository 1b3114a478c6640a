"""Many containers: nothing grows that should not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from real_support import descriptors, keeper_pid, process_is_there

from lighterman import Engine
from support import eventually

pytestmark = pytest.mark.real


def resident_kb(pid: int | str = "self") -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError(pid)


def zombies(parent: int) -> list[int]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] == "Z" and int(fields[1]) == parent:
            found.append(int(directory.name))
    return found


async def runs(engine: Engine, count: int, at_a_time: int) -> None:
    room = asyncio.Semaphore(at_a_time)

    async def one(number: int) -> None:
        async with room:
            done = await engine.run("busybox", ["sh", "-c", f"echo {number}; exit {number % 200}"])
            assert (done.exit.code, done.stdout) == (number % 200, b"%d\n" % number)

    await asyncio.gather(*(one(number) for number in range(count)))


async def test_200_short_containers_16_at_a_time_nothing_grows(engine: Engine) -> None:
    await runs(engine, 40, 16)
    keeper = keeper_pid()
    await eventually(lambda: not zombies(keeper))
    mine, keepers, memory, kept = descriptors(), descriptors(keeper), resident_kb(), resident_kb(keeper)
    await runs(engine, 200, 16)
    # What is closed behind the last exits takes a moment.
    await eventually(lambda: descriptors() <= mine)
    await eventually(lambda: descriptors(keeper) <= keepers)
    await eventually(lambda: not zombies(keeper))
    assert not zombies(os.getpid())
    # 200 times what a container needs while it runs would be far more.
    assert resident_kb() - memory < 16_000
    assert resident_kb(keeper) - kept < 4_000
    assert await engine.containers() == []


async def test_100_sleeping_containers_cost_little_and_all_end(engine: Engine) -> None:
    await runs(engine, 8, 8)
    keeper = keeper_pid()
    await eventually(lambda: not zombies(keeper))
    mine, keepers, kept = descriptors(), descriptors(keeper), resident_kb(keeper)
    room = asyncio.Semaphore(16)

    async def one(number: int) -> int:
        async with room:
            box = await engine.create("busybox", ["sleep", "1000"], name=f"box{number}")
            await box.start()
            return box.pid

    pids = await asyncio.gather(*(one(number) for number in range(100)))
    assert len(set(pids)) == 100
    assert all(map(process_is_there, pids))
    assert resident_kb(keeper) - kept < 8_000
    assert (await (await engine.get("box77")).exec(["echo", "fine"])).stdout == b"fine\n"
    ends = await asyncio.gather(*(box.stop(grace_s=0) for box in await engine.containers()))
    assert {end.signal for end in ends if end is not None} == {9}
    await asyncio.gather(*(box.remove() for box in await engine.containers()))
    assert not any(map(process_is_there, pids))
    await eventually(lambda: descriptors() <= mine)
    await eventually(lambda: descriptors(keeper) <= keepers)
    await eventually(lambda: not zombies(keeper))


async def test_200_execs_16_at_a_time_nothing_grows(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], init=True) as box:
        room = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with room:
                done = await box.exec(["sh", "-c", f"echo {number}; exit {number % 200}"])
                assert (done.exit.code, done.stdout) == (number % 200, b"%d\n" % number)

        await asyncio.gather(*(one(number) for number in range(20)))
        keeper = keeper_pid()
        mine, keepers = descriptors(), descriptors(keeper)
        await asyncio.gather(*(one(number) for number in range(200)))
        await eventually(lambda: descriptors() <= mine)
        await eventually(lambda: descriptors(keeper) <= keepers)
        await eventually(lambda: not zombies(keeper))
