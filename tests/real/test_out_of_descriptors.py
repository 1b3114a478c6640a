"""An engine at its limit of descriptors: what it can't do is refused and leaves nothing, and what runs goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from real_support import descriptors, process_is_there, running_in

from lighterman import Container, Engine, LightermanError, LimitExceeded, Resources
from support import descriptors_left, eventually

pytestmark = pytest.mark.real

# More than any verb here needs; the test says so where that is no longer true.
ENOUGH = 24


async def refused_at(left: int, verb: Callable[[], Awaitable[object]]) -> bool:
    """Whether it is refused while this process can open so many descriptors more; for no other reason than that."""
    refusal = None
    try:
        with descriptors_left(left):
            await verb()
    except LimitExceeded as failed:
        refusal = failed
    assert refusal is None or (refusal.limit == "ulimit -n" and "ulimit -n" in str(refusal)), refusal
    return refusal is not None


async def still_speaks(box: Container) -> None:
    box.stdin.write(b"still here\n")
    assert await box.stdout.readline() == b"still here\n"


async def test_start_is_done_or_refused_and_costs_no_other_container_its_streams(engine: Engine) -> None:
    outcomes = []
    async with engine.container("busybox", ["cat"], stdin=True) as other:
        for left in range(ENOUGH):
            box = await engine.create("busybox", ["sleep", "1000"])
            outcomes.append(await refused_at(left, box.start))
            await box.remove(force=True)
            await still_speaks(other)
    assert outcomes[0]
    assert not outcomes[-1]


async def test_exec_is_done_or_refused_and_leaves_no_process(engine: Engine) -> None:
    outcomes = []
    async with engine.container("busybox", ["cat"], stdin=True) as box:
        for left in range(ENOUGH):
            outcomes.append(await refused_at(left, lambda: box.exec(["true"])))
            assert [one.pid for one in await box.top()] == [box.pid]
            await still_speaks(box)
    assert outcomes[0]
    assert not outcomes[-1]


async def in_a_terminal(box: Container) -> None:
    process = await box.start_exec(["true"], terminal=True)
    await process.wait()
    await process.stdout.read()


async def test_terminals_are_started_or_refused_and_leave_no_descriptor(engine: Engine) -> None:
    outcomes = []
    async with engine.container("busybox", ["cat"], stdin=True) as box:
        await in_a_terminal(box)  # what an engine opens at the first
        before = descriptors()
        for left in range(ENOUGH):
            outcomes.append(await refused_at(left, partial(in_a_terminal, box)))
            one = await engine.create("busybox", ["sh"], terminal=True)
            outcomes.append(await refused_at(left, one.start))
            await one.remove(force=True)
            assert [process.pid for process in await box.top()] == [box.pid]

        def is_closed() -> bool:
            # Of the reserve some may not be back yet.
            return descriptors() <= before

        await eventually(is_closed)
        await still_speaks(box)
    assert outcomes[0]
    assert not any(outcomes[-2:])


@pytest.mark.parametrize("verb", ["kill", "stop"])
async def test_paused_ends_and_is_not_started_again(engine: Engine, verb: str) -> None:
    async with engine.container("busybox", ["sleep", "1000"], restart="always") as box:
        await box.pause()
        with descriptors_left(0):
            if verb == "kill":
                await box.kill()
            else:
                await box.stop(grace_s=0)
        ended = await box.wait()
        assert (ended.signal, box.status) == (9, "exited")


async def test_kill_of_an_exec_ends_all_that_it_has_started(engine: Engine) -> None:
    async with engine.container("busybox", ["cat"], stdin=True) as box:
        process = await box.start_exec(["sh", "-c", "sleep 1234 & sleep 4321 & echo; wait"])
        await process.stdout.readline()
        await eventually(lambda: len(running_in(box.id)) == 4)
        with descriptors_left(0):
            await process.kill()
        assert (await process.wait()).signal == 9
        await eventually(lambda: running_in(box.id) == [box.pid])


async def test_engine_that_comes_back_ends_nothing_that_it_has_no_room_for(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["cat"], name="box", stdin=True, lease=None)
        await box.start()
        pid = box.pid
    came, refused = 0, 0
    for left in range(40, 0, -1):
        engine = Engine(root=root)
        try:
            with descriptors_left(left):
                await engine.start()
        except (LightermanError, OSError):
            refused += 1
        else:
            came += bool(await engine.containers())
            await engine.close()
        assert process_is_there(pid), left
    assert came
    assert refused
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        await still_speaks(box)
        await box.remove(force=True)


async def test_stop_needs_none(engine: Engine) -> None:
    for left in range(6):
        async with engine.container("busybox", ["sleep", "1000"]) as box:
            with descriptors_left(left):
                ended = await box.stop(grace_s=0)
            assert ended is not None
            assert ended.signal == 9


async def test_other_verbs_say_what_ran_out(engine: Engine) -> None:
    async with engine.container("busybox", ["cat"], stdin=True) as box:
        verbs: list[Callable[[], Awaitable[object]]] = [
            box.stats,
            box.top,
            box.pause,
            lambda: box.update(Resources(memory_bytes=96 << 20)),
        ]
        for verb in verbs:
            assert await refused_at(0, verb), verb
        await still_speaks(box)


@pytest.mark.parametrize("left", [20, 40, 60])
async def test_many_starts_at_once_are_each_done_or_refused(engine: Engine, left: int) -> None:
    async with engine.container("busybox", ["cat"], stdin=True) as other:
        boxes = [await engine.create("busybox", ["sleep", "1000"]) for _ in range(12)]
        with descriptors_left(left):
            outcomes = await asyncio.gather(*(box.start() for box in boxes), return_exceptions=True)
        assert {type(one) for one in outcomes} <= {type(None), LimitExceeded}
        assert any(outcomes)
        for box, outcome in zip(boxes, outcomes, strict=True):
            assert str(box.status) == ("running" if outcome is None else "created")
        await still_speaks(other)
        await asyncio.gather(*(box.start() for box, outcome in zip(boxes, outcomes, strict=True) if outcome))
        for box in boxes:
            await box.remove(force=True)
        await still_speaks(other)
