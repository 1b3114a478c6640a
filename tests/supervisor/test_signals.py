"""Signals, the stop and the kill, and what marks a stop as manual [L04]."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from lighterman import limits
from lighterman.errors import (
    AlreadyStopped,
    InvalidState,
    LimitExceeded,
    NotFound,
    OperationTimeout,
    RuntimeFailed,
    Unkillable,
)
from lighterman.lifecycle.events import State
from lighterman.testing import WINDOWS, ProgramContext
from supervisor.world import World, config, policy

FAILED = RuntimeFailed("it failed", runtime="fake", operation="kill")


async def test_L04_sigkill_terminates_the_system(world: World) -> None:
    await world.create("sleep")
    await world.client.signal("c1", 9)
    assert world.runtime.count("terminate") == 1
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.signal, ended.exit_code_known) == (137, 9, True)


async def test_L04_other_signals_reach_the_init(world: World) -> None:
    system = await world.create("ignore-term")
    await world.client.signal("c1", 15)
    await world.client.signal("c1", 18)
    assert system.init.delivered_signals == [15, 18]
    assert world.runtime.count("terminate") == 0


@pytest.mark.parametrize("signal", [9, 15])
async def test_L04_manual_stop_is_not_restarted(world: World, signal: int) -> None:
    await world.create("sleep", options=(policy("always"),))
    await world.client.signal("c1", signal)
    ended = await world.client.wait("c1")
    assert ended.exit_code == 128 + signal
    assert world.runtime.count("create") == 1


async def test_L04_specs_stop_signal_marks_as_manual(world: World) -> None:
    await world.create("sleep", options=(policy("always"),), stop_signal=12)
    await world.client.signal("c1", 12)
    assert (await world.client.wait("c1")).signal == 12
    assert world.runtime.count("create") == 1


@pytest.mark.parametrize(("stop_signal", "sent"), [(15, 2), (15, 1), (12, 15)])
async def test_L04_other_signal_is_no_manual_stop(world: World, stop_signal: int, sent: int) -> None:
    await world.create("sleep", options=(policy("always"),), stop_signal=stop_signal)
    await world.client.signal("c1", sent)
    restarted = await world.backend.wait_for("c1", State.RESTART)
    assert restarted.signal == sent
    await world.backend.wait_for("c1", State.START, count=2)


async def test_L04_marked_before_it_acts(world: World) -> None:
    """The process dies of the signal before `kill` has returned: no restart can win that race."""
    world.plan.at("kill", after=True, delay_s=20)
    await world.create("sleep", options=(policy("always"),))
    stopping = asyncio.create_task(world.client.signal("c1", 15))
    ended = await world.client.wait("c1")
    assert ended.signal == 15
    await stopping
    assert world.runtime.count("create") == 1


@pytest.mark.parametrize(("operation", "signal"), [("kill", 15), ("terminate", 9)])
async def test_L04_failed_delivery_takes_the_mark_back(world: World, operation: str, signal: int) -> None:
    world.plan.at(operation, error=FAILED, nth=1)  # type: ignore[arg-type]
    system = await world.create("sleep", options=(policy("always"),))
    with pytest.raises(RuntimeFailed):
        await world.client.signal("c1", signal)
    system.init.exit(0)
    await world.backend.wait_for("c1", State.START, count=2)


@pytest.mark.parametrize("turns", range(15))
@pytest.mark.parametrize("verb", ["stop", "terminate"])
async def test_L04_stop_at_every_moment_of_an_exit_is_not_restarted(world: World, verb: str, turns: int) -> None:
    world.plan.at("system.close", delay_s=1)
    system = await world.create("sleep", options=(policy("always"),))
    system.init.exit(1)
    for _ in range(turns):
        await asyncio.sleep(0)
    await getattr(world.client, verb)("c1")
    await world.backend.wait_for("c1", State.EXIT)
    await world.clock.sleep(1000)
    assert world.runtime.count("create") == 1


async def test_L04_failed_delivery_keeps_an_earlier_mark(world: World) -> None:
    world.plan.at("kill", error=FAILED, nth=2)
    system = await world.create("ignore-term", options=(policy("always"),))
    await world.client.signal("c1", 15)
    with pytest.raises(RuntimeFailed):
        await world.client.signal("c1", 15)
    system.init.exit(0)
    await world.client.wait("c1")
    assert world.runtime.count("create") == 1


async def test_L04_failed_delivery_keeps_the_mark_of_another_at_the_same_time(world: World) -> None:
    world.plan.at("kill", error=FAILED, nth=1, delay_s=5)
    system = await world.create("ignore-term", options=(policy("always"),))
    first = asyncio.create_task(world.client.signal("c1", 15))
    await asyncio.sleep(0)
    await world.client.signal("c1", 15)
    with pytest.raises(RuntimeFailed):
        await first
    system.init.exit(0)
    await world.client.wait("c1")
    assert world.runtime.count("create") == 1


async def test_L04_next_start_clears_the_mark(world: World) -> None:
    await world.create("sleep", options=(policy("always"),))
    await world.client.stop("c1")
    await world.backend.wait_for("c1", State.EXIT)
    system = await world.create("sleep", options=(policy("always"),))
    system.init.exit(0)
    await world.backend.wait_for("c1", State.RESTART)
    await world.backend.wait_for("c1", State.START, count=3)


@pytest.mark.parametrize("blocks", [True, False])
async def test_L04_frozen_container_dies_of_sigkill(world: World, blocks: bool) -> None:
    world.use(freeze_blocks_kill=blocks)
    await world.create("sleep")
    await world.client.pause("c1")
    before = world.clock.mono()
    await world.client.signal("c1", 9)
    assert (await world.client.wait("c1")).signal == 9
    assert world.clock.mono() == before


async def test_L04_frozen_container_ends_by_its_stop_signal(world: World) -> None:
    await world.create("sleep")
    await world.client.pause("c1")
    before = world.clock.mono()
    await world.client.signal("c1", 15)
    assert (await world.client.wait("c1")).signal == 15
    assert world.clock.mono() == before
    order = [call.operation for call in world.runtime.calls if call.operation in ("kill", "resume")]
    assert order == ["kill", "resume"]


async def test_L04_other_signal_leaves_it_frozen(world: World) -> None:
    system = await world.create("sleep")
    await world.client.pause("c1")
    await world.client.signal("c1", 2)
    assert system.frozen
    await world.client.resume("c1")
    assert (await world.client.wait("c1")).signal == 2


async def test_L04_stop_of_a_frozen_container_that_survives_is_told_as_resumed(world: World) -> None:
    system = await world.create("ignore-term")
    await world.client.pause("c1")
    await world.client.signal("c1", 15)
    await world.backend.wait_for("c1", State.RESUME)
    assert not system.frozen
    assert world.states() == ["start", "pause", "resume"]


async def test_L04_what_has_survived_a_stop_signal_can_be_paused(world: World) -> None:
    system = await world.create("ignore-term")
    await world.clock.settle()
    await world.client.signal("c1", 15)
    await world.client.pause("c1")
    assert system.frozen
    assert world.states() == ["start", "pause"]


async def test_L04_what_is_being_stopped_does_not_stay_paused(world: World) -> None:
    system = await world.create("ignore-term")
    await world.clock.settle()
    stopping = asyncio.create_task(world.client.stop("c1", grace_s=60))
    await world.clock.settle()
    await world.client.pause("c1")
    assert not system.frozen
    await stopping
    await world.backend.wait_for("c1", State.EXIT)
    assert world.states() == ["start", "pause", "resume", "exit"]


@pytest.mark.parametrize("signal", [9, 15, 18])
async def test_L04_already_stopped_is_no_error(world: World, signal: int) -> None:
    """Between the init's end and EXIT the container is still registered."""
    world.plan.at("shutdown", delay_s=3)
    system = await world.create("sleep")
    system.init.exit(0)
    await world.clock.settle()
    assert world.client.containers() == ("c1",)
    await world.client.signal("c1", signal)
    assert (await world.client.wait("c1")).exit_code == 0


async def test_L04_stopped_before_its_exit_is_noticed_is_no_error(world: World) -> None:
    system = await world.create("sleep")
    system.init.exit(3)
    await world.client.signal("c1", 15)
    assert (await world.client.wait("c1")).exit_code == 3


@pytest.mark.parametrize("signal", [15, 2])
async def test_L04_without_signals_any_but_kill_shuts_down(world: World, signal: int) -> None:
    world.use(features=WINDOWS)
    await world.create("sleep")
    await world.client.signal("c1", signal)
    await world.client.wait("c1")
    assert world.runtime.count("shutdown") >= 1
    assert world.runtime.count("kill", process="init") == 0
    assert world.runtime.calls_of("shutdown")[0].at == world.backend.of("c1", State.START)[0].started_mono


async def test_L04_without_signals_kill_terminates(world: World) -> None:
    world.use(features=WINDOWS)
    await world.create("sleep", options=(policy("always"),))
    await world.client.signal("c1", 9)
    await world.client.wait("c1")
    assert world.runtime.count("terminate") == 1
    assert world.runtime.count("create") == 1


async def test_signal_process_reaches_that_one(world: World) -> None:
    system = await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep"))
    await world.client.add_process("c1", "y", config("sleep"))
    await world.client.signal_process("c1", "x", 15)
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert (ended.process_id, ended.signal, ended.exit_code) == ("x", 15, 143)
    assert [process.name for process in system.alive] == ["init", "y"]


async def test_signal_process_unknown_name_not_found(world: World) -> None:
    await world.create("sleep")
    with pytest.raises(NotFound):
        await world.client.signal_process("c1", "x", 15)


async def test_stop_asks_then_kills_after_the_grace(world: World) -> None:
    system = await world.create("ignore-term")
    before = world.clock.mono()
    await world.client.stop("c1", grace_s=7)
    assert world.clock.mono() - before == 7
    assert system.init.delivered_signals == [15, 9]
    assert (await world.client.wait("c1")).signal == 9


async def test_stop_grace_defaults_to_its_limit(world: World) -> None:
    await world.create("ignore-term")
    before = world.clock.mono()
    await world.client.stop("c1")
    assert world.clock.mono() - before == limits.STOP_GRACE_S


async def test_stop_shorter_grace_wins_and_asks_once(world: World) -> None:
    system = await world.create("ignore-term")
    before = world.clock.mono()
    await asyncio.gather(
        world.client.stop("c1", grace_s=50), world.client.stop("c1", grace_s=2), world.client.stop("c1", grace_s=20)
    )
    assert world.clock.mono() - before == 2
    assert system.init.delivered_signals == [15, 9]


async def test_stop_lets_it_finish(world: World) -> None:
    async def graceful(context: ProgramContext) -> int:
        asked = asyncio.Event()
        context.catch(15, asked.set)
        await asked.wait()
        await context.sleep(3)
        await context.write(b"bye")
        return 4

    world.program("graceful", graceful)
    await world.create("graceful")
    await world.client.stop("c1", grace_s=10)
    assert (await world.client.wait("c1")).exit_code == 4
    assert world.backend.stdout("c1") == b"bye"


async def test_cancelled_stop_still_stops(world: World) -> None:
    await world.create("ignore-term")
    stopping = asyncio.create_task(world.client.stop("c1", grace_s=5))
    await world.clock.settle()
    stopping.cancel()
    before = world.clock.mono()
    assert (await world.client.wait("c1")).signal == 9
    assert world.clock.mono() - before == 5


async def test_ten_callers_of_terminate_and_one_exit(world: World) -> None:
    await world.create("sleep")
    await asyncio.gather(*(world.client.terminate("c1") for _ in range(10)))
    await world.backend.wait_for("c1", State.EXIT)
    assert world.states() == ["start", "exit"]
    assert world.runtime.count("terminate") == 1


async def test_unkillable_is_said_so(world: World) -> None:
    system = await world.create("sleep")
    system.init.unkillable = True
    with pytest.raises(
        Unkillable, match=rf"pid {system.init.pid} has not ended 10 s after SIGKILL; .*fake_wait"
    ) as told:
        await world.client.stop("c1")
    assert (told.value.pid, told.value.since_s, told.value.limit) == (system.init.pid, 10.0, "KILL_WAIT_S")
    assert told.value.where == f"pid {system.init.pid} in fake_wait"
    assert told.value.container == "c1"
    assert world.client.containers() == ("c1",)
    system.init.die()
    assert (await world.client.wait("c1")).signal == 9


@pytest.mark.parametrize("fault", [{"hang": True}, {"pending_s": math.inf}])
async def test_terminate_without_an_end_has_a_deadline(world: World, fault: dict[str, Any]) -> None:
    world.plan.at("terminate", nth=1, **fault)
    system = await world.create("sleep")
    before = world.clock.mono()
    with pytest.raises((LimitExceeded, OperationTimeout)):
        await world.client.terminate("c1")
    assert world.clock.mono() - before <= limits.TERMINATE_S
    assert world.client.containers() == ("c1",)
    system.init.die()
    assert (await world.client.wait("c1")).signal == 9


async def test_exec_verbs_on_ended_container_are_invalid(world: World) -> None:
    world.plan.at("shutdown", delay_s=3)
    system = await world.create("sleep")
    system.init.exit(0)
    await world.clock.settle()
    for verb in (
        world.client.pause("c1"),
        world.client.add_process("c1", "x", config("true")),
        world.client.stats("c1"),
    ):
        with pytest.raises((InvalidState, AlreadyStopped)):
            await verb
