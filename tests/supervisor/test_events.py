"""Events: in order, once, never two at a time; and their legal order under faults [L27, L39]."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from lighterman.errors import LightermanError, RuntimeFailed
from lighterman.lifecycle.events import State, StateInfo
from supervisor.world import World, config, policy

FAILED = RuntimeFailed("it failed", runtime="fake", operation="some")


async def test_L27_in_order_and_once_with_a_slow_backend(world: World) -> None:
    """The recording backend notes every overlap and every step out of order as a violation."""

    async def slow(info: StateInfo) -> None:
        await world.clock.sleep(7)

    world.backend.on_state = slow
    system = await world.create("sleep")
    await world.client.pause("c1")
    await world.client.resume("c1")
    await world.client.add_process("c1", "x", config("true"))
    await world.clock.settle()
    system.init.exit(3)
    await world.client.wait("c1")
    await world.backend.wait_for("c1", State.EXIT)
    assert world.states() == ["start", "pause", "resume", "start-process", "exit-process", "exit"]
    assert [info.seq for info in world.backend.of("c1")] == [1, 2, 3, 4, 5, 6]


async def test_L27_the_owner_does_not_wait_for_the_backend(world: World) -> None:
    async def slow(info: StateInfo) -> None:
        await world.clock.sleep(1000)

    world.backend.on_state = slow
    before = world.clock.mono()
    system = await world.create("sleep")
    await world.client.pause("c1")
    await world.client.resume("c1")
    system.init.exit(3)
    ended = await world.client.wait("c1")
    assert ended.exit_code == 3
    assert world.clock.mono() == before


async def test_L27_containers_do_not_wait_for_each_other(world: World) -> None:
    told_at: dict[str, float] = {}

    async def slow(info: StateInfo) -> None:
        if info.container_id == "slow":
            await world.clock.sleep(1000)
        told_at[info.container_id] = world.clock.mono()

    world.backend.on_state = slow
    before = world.clock.mono()
    await world.create("sleep", id="slow")
    await world.create("true", id="quick")
    await world.backend.wait_for("quick", State.EXIT)
    await world.clock.settle()
    assert told_at["quick"] == before


async def test_L27_reused_id_is_told_after_the_old_ones_exit(world: World) -> None:
    async def slow(info: StateInfo) -> None:
        await world.clock.sleep(50)

    world.backend.on_state = slow
    system = await world.create("sleep")
    system.init.exit(0)
    await world.client.wait("c1")
    await world.create("sleep")
    await world.backend.wait_for("c1", State.START, count=2)
    assert world.states() == ["start", "exit", "start"]


async def test_L27_closing_client_delivers_what_has_happened(world: World) -> None:
    async def slow(info: StateInfo) -> None:
        await world.clock.sleep(5)

    world.backend.on_state = slow
    system = await world.create("sleep")
    system.init.exit(3)
    await world.client.wait("c1")
    await world.client.close()
    assert world.states() == ["start", "exit"]


OPERATIONS = [
    "create",
    "start",
    "create_process",
    "stdio",
    "exit_code",
    "process.close",
    "oom_counters",
    "shutdown",
    "terminate",
    "system.wait",
    "system.close",
    "close_stdin",
    "kill",
    "pause",
    "resume",
]
FAULTS: list[dict[str, Any]] = [{"error": FAILED}, {"hang": True}, {"delay_s": 3.0}, {"error": FAILED, "after": True}]


@pytest.mark.parametrize(
    ("operation", "fault", "nth"),
    list(itertools.product(OPERATIONS, FAULTS, [1, 2])),
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
async def test_L39_legal_order_under_every_single_fault(
    world: World, operation: Any, fault: dict[str, Any], nth: int
) -> None:
    """A life with every verb in it and one fault: it ends, told once, in order. (Order is held by the backend.)"""
    world.plan.at(operation, nth=nth, **fault)
    world.leaves_something = True

    async def verbs() -> None:
        await world.create("sleep", options=(policy("on-failure:2"),))
        await world.client.add_process("c1", "x", config("sleep"))
        await world.client.pause("c1")
        await world.client.resume("c1")
        world.system().init.exit(1)
        await world.backend.wait_for("c1", State.START, count=2)
        await world.client.stop("c1", grace_s=1)

    async def try_all() -> None:
        try:
            async with world.clock.timeout(2000):
                await verbs()
        except (LightermanError, TimeoutError):
            return

    await try_all()
    for id in world.client.containers():
        waiting = asyncio.ensure_future(world.client.wait(id))
        while not waiting.done():
            try:
                await world.client.terminate(id)
            except LightermanError:
                await world.clock.sleep(1)
            if id in world.runtime.systems:
                world.system().init.die()
            await world.clock.sleep(100)
        await waiting
    await world.clock.settle()
    assert world.backend.violations == []
    if "start" in world.states():
        assert world.states()[-1] == "exit"
        assert world.states().count("exit") == 1
    world.plan.faults.clear()
