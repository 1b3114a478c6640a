"""Cancelled at any instant: undone, nothing is left, and the engine works on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from real_support import descriptors, keeper_pid, running_in, the_two

from lighterman import Container, Engine
from lighterman.lifecycle.status import Status
from support import eventually, leaked_since, snapshot

pytestmark = pytest.mark.real

# A start takes 10 to 60 ms: every part of one is met.
DELAYS_S = [number / 1000 for number in range(31)]


async def cut_off(work: Coroutine[Any, Any, Any], delay_s: float, *, twice: bool = False) -> bool:
    """Cancel `work` after a time; whether it was still under way."""
    task = asyncio.create_task(work)
    if delay_s:
        await asyncio.wait((task,), timeout=delay_s)
    else:
        await asyncio.sleep(0)
    task.cancel()
    if twice:
        await asyncio.sleep(0)
        task.cancel()
    try:
        await asyncio.wait_for(asyncio.shield(task), 60)
    except asyncio.CancelledError:
        return True
    return False


async def settled(engine: Engine, before: dict[str, frozenset[str]]) -> None:
    """Nothing that was begun is left, and the engine works."""

    async def gone() -> bool:
        return not await engine.containers()

    await eventually(gone)
    left = await asyncio.to_thread(leaked_since, before)
    assert not left
    assert (await engine.run("busybox", ["echo", "fine"])).stdout == b"fine\n"


@pytest.mark.parametrize("twice", [False, True])
async def test_run_cancelled_at_any_instant_nothing_is_left(engine: Engine, twice: bool) -> None:
    await engine.run("busybox", ["true"])
    before, keeper = snapshot(), keeper_pid()
    mine, keepers = descriptors(), descriptors(keeper)
    cut = [await cut_off(engine.run("busybox", ["sleep", "1000"]), delay, twice=twice) for delay in DELAYS_S]
    assert all(cut)
    await settled(engine, before)
    await eventually(lambda: descriptors(keeper) <= keepers)
    await eventually(lambda: descriptors() <= mine + 1)


async def test_run_with_everything_cancelled_at_any_instant_nothing_is_left(engine: Engine) -> None:
    await engine.run("busybox", ["true"])
    before, mine = snapshot(), descriptors()
    for delay in DELAYS_S:
        assert await cut_off(
            engine.run("busybox", ["cat"], stdin=None, terminal=True, user="nobody", memory="32M", name="box"), delay
        )
    await settled(engine, before)
    await eventually(lambda: descriptors() <= mine + 1)


async def test_runs_cancelled_all_at_once_nothing_is_left(engine: Engine) -> None:
    await engine.run("busybox", ["true"])
    before, mine = snapshot(), descriptors()
    await asyncio.gather(*(cut_off(engine.run("busybox", ["sleep", "1000"]), delay) for delay in DELAYS_S))
    await settled(engine, before)
    await eventually(lambda: descriptors() <= mine + 1)


async def test_run_of_a_short_program_cancelled_around_its_end(engine: Engine) -> None:
    await engine.run("busybox", ["true"])
    before = snapshot()
    for delay in DELAYS_S:
        await cut_off(engine.run("busybox", ["true"]), delay)
    await settled(engine, before)


async def test_create_cancelled_at_any_instant_nothing_is_left(engine: Engine) -> None:
    before = snapshot()
    for steps in range(12):
        task = asyncio.create_task(engine.create("busybox", ["true"], name="box", user="nobody"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        try:
            box = await task
        except asyncio.CancelledError:
            assert await engine.containers() == []
        else:
            await box.remove()
    await settled(engine, before)


async def test_start_cancelled_at_any_instant_container_can_be_started_again(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"])
    for delay in DELAYS_S:
        if not await cut_off(box.start(), delay):
            assert box.status is Status.RUNNING
            await box.stop(grace_s=0)
        assert box.status in (Status.CREATED, Status.EXITED), box
        assert box.pid == 0
        await eventually(lambda: not running_in(box.id))
    await box.start()
    assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"
    await box.remove(force=True)


@pytest.mark.parametrize("twice", [False, True])
async def test_exec_cancelled_at_any_instant_its_tree_is_gone(engine: Engine, twice: bool) -> None:
    async with engine.container("busybox", ["sleep", "1000"], init=True) as box:
        await box.exec(["true"])
        keeper = keeper_pid()
        mine, keepers, alone = descriptors(), descriptors(keeper), await the_two(box)
        for delay in DELAYS_S:
            await cut_off(box.exec(["sh", "-c", "sleep 998 & sleep 997"]), delay, twice=twice)
        await eventually(lambda: sorted(running_in(box.id)) == alone)
        assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"
        await eventually(lambda: descriptors(keeper) <= keepers)
        await eventually(lambda: descriptors() <= mine + 1)
        assert box.status is Status.RUNNING


async def test_start_exec_cancelled_at_any_instant_nothing_is_left(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], init=True) as box:
        alone = await the_two(box)
        for delay in DELAYS_S:
            task = asyncio.create_task(box.start_exec(["sleep", "998"], terminal=True))
            await asyncio.wait((task,), timeout=delay)
            task.cancel()
            try:
                process = await task
            except asyncio.CancelledError:
                continue
            await process.kill()
        await eventually(lambda: sorted(running_in(box.id)) == alone)
        assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"


async def test_block_entered_cancelled_at_any_instant_nothing_is_left(engine: Engine) -> None:
    before = snapshot()

    async def block() -> None:
        async with engine.container("busybox", ["sleep", "1000"]):
            await asyncio.Event().wait()

    for delay in DELAYS_S:
        assert await cut_off(block(), delay)
    await settled(engine, before)


async def test_other_verbs_cancelled_only_the_waiting_ends(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        verbs: list[Callable[[], Coroutine[Any, Any, Any]]] = [box.wait, box.stats, box.top, box.pause]
        for verb in verbs:
            await cut_off(verb(), 0)
        await eventually(lambda: box.status is Status.PAUSED)
        await cut_off(box.resume(), 0)
        await eventually(lambda: box.status is Status.RUNNING)
        assert box.exit is None


def is_removed(box: Container) -> Callable[[], bool]:
    return lambda: box.status is Status.REMOVED


async def test_remove_cancelled_it_is_removed_all_the_same(engine: Engine) -> None:
    for delay in (0, 0.001, 0.002, 0.004, 0.008):
        box = await engine.create("busybox", ["sleep", "1000"])
        await box.start()
        await cut_off(box.remove(force=True), delay)
        await eventually(is_removed(box))
    assert await engine.containers() == []


async def test_engine_start_cancelled_at_any_instant_nothing_is_left(real_runtime: str) -> None:
    before, mine = snapshot(), descriptors()
    for delay in (0, *DELAYS_S[:12], *DELAYS_S[12::4], 0.05, 0.08):
        engine = Engine(runtime=real_runtime)
        if not await cut_off(engine.start(), delay):
            await engine.close()
    left = await asyncio.to_thread(leaked_since, before)
    assert not left
    await eventually(lambda: descriptors() <= mine + 1)


async def test_engine_close_cancelled_it_is_closed_all_the_same(real_runtime: str) -> None:
    before, mine = snapshot(), descriptors()
    for delay in (0, 0.001, 0.003, 0.01):
        engine = Engine(runtime=real_runtime)
        await engine.start()
        box = await engine.create("busybox", ["sleep", "1000"])
        await box.start()
        await cut_off(engine.close(), delay)
        await engine.close()
    left = await asyncio.to_thread(leaked_since, before)
    assert not left
    await eventually(lambda: descriptors() <= mine + 1)


async def test_task_group_failing_takes_its_containers_along(engine: Engine) -> None:
    before = snapshot()
    begun: list[Container] = []

    async def long(number: int) -> None:
        async with engine.container("busybox", ["sleep", "1000"]) as box:
            begun.append(box)
            await box.wait()

    async def fails() -> None:
        await eventually(lambda: len(begun) == 4)
        raise ZeroDivisionError

    async def group(*work: Awaitable[None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for one in work:
                tasks.create_task(one)  # type: ignore[arg-type]

    with pytest.raises(ExceptionGroup):
        await group(*(long(number) for number in range(4)), fails())
    await settled(engine, before)
