"""What follows an end: the wait, the next run, and what may come between [L34-L38]; the decision itself is pure."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from lighterman.errors import InvalidState, LightermanError, NotFound, RuntimeFailed
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.restart import RunEnd
from lighterman.runtimes.fake.platform import SimulatedSystem
from lighterman.runtimes.options import Flush, Layers, WithCheckpoint
from lighterman.spec import RestartPolicy
from lighterman.supervisor.streams import Streams
from lighterman.testing import ProgramContext
from supervisor.world import World, config, policy

FAILED = RuntimeFailed("it failed", runtime="fake", operation="create")


async def restarting(world: World, text: str = "always", code: int = 1) -> StateInfo:
    """A container that waits for its next run."""
    system = await world.create("sleep", options=(policy(text),))
    system.init.exit(code)
    told = await world.backend.wait_for("c1", State.RESTART)
    await world.clock.settle()
    return told


# ---- L34: the wait can be ended ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["stop", "terminate", "kill", "stop signal", "cancel"])
async def test_L34_the_wait_is_ended_at_once(still: World, verb: str) -> None:
    told = await restarting(still)
    match verb:
        case "stop":
            await still.client.stop("c1")
        case "terminate":
            await still.client.terminate("c1")
        case "kill":
            await still.client.signal("c1", 9)
        case "stop signal":
            await still.client.signal("c1", 15)
        case "cancel":
            assert still.client.cancel_restart("c1")
    ended = await still.backend.wait_for("c1", State.EXIT)
    assert still.clock.mono() == told.finished_mono
    await still.clock.advance(1000)
    assert still.states() == ["start", "restart", "exit"]
    assert still.runtime.count("create") == 1
    assert still.client.containers() == ()
    assert (ended.exit_code, ended.pid, ended.generation) == (told.exit_code, told.pid, told.generation)


async def test_L34_exit_repeats_the_data(still: World) -> None:
    told = await restarting(still, code=42)
    still.client.cancel_restart("c1")
    ended = await still.backend.wait_for("c1", State.EXIT)
    for field in (
        "exit_code",
        "exit_code_known",
        "signal",
        "pid",
        "process_id",
        "generation",
        "started_at",
        "finished_at",
        "started_mono",
        "finished_mono",
        "oom_killed",
        "update_pending",
        "drained",
        "error",
    ):
        assert getattr(ended, field) == getattr(told, field), field
    assert ended.seq == told.seq + 1


async def test_L34_other_signals_do_not_end_the_wait(still: World) -> None:
    await restarting(still)
    with contextlib.suppress(LightermanError):
        await still.client.signal("c1", 2)
    await still.clock.advance(1)
    assert still.states() == ["start", "restart", "start"]


async def test_L34_cancel_without_a_wait_is_nothing(world: World) -> None:
    await world.create("sleep", options=(policy("always"),))
    assert not world.client.cancel_restart("c1")
    await world.clock.sleep(10)
    assert world.states() == ["start"]


async def test_L34_who_waits_for_the_end_gets_it(still: World) -> None:
    system = await still.create("sleep", options=(policy("always"),))
    waiting = asyncio.create_task(still.client.wait("c1"))
    system.init.exit(42)
    await still.backend.wait_for("c1", State.RESTART)
    await still.clock.settle()
    assert not waiting.done()
    await still.client.stop("c1")
    assert (await waiting).exit_code == 42


async def test_L34_verbs_that_need_a_run_are_invalid_while_it_waits(still: World) -> None:
    await restarting(still)
    for verb in (
        still.client.pause("c1"),
        still.client.stats("c1"),
        still.client.add_process("c1", "x", config("true")),
    ):
        with pytest.raises(InvalidState):
            await verb


@pytest.mark.parametrize("verb", ["stop", "terminate", "cancel"])
@pytest.mark.parametrize("turns", range(8))
async def test_L34_stop_at_every_moment_of_the_end_of_the_wait(still: World, verb: str, turns: int) -> None:
    await restarting(still)
    still.clock._fire_next()
    for _ in range(turns):
        await asyncio.sleep(0)
    async with still.clock.autojump():
        if verb != "cancel":
            await getattr(still.client, verb)("c1")
        elif not still.client.cancel_restart("c1"):
            await still.client.terminate("c1")
        await still.backend.wait_for("c1", State.EXIT)
        await still.clock.sleep(1000)
    began = still.runtime.count("create") - 1
    assert still.states() in (["start", "restart", "exit"], ["start", "restart", "start", "exit"])
    assert began == 0 if turns == 0 else began <= 1
    assert still.client.containers() == ()
    assert not still.runtime.leftovers()


@pytest.mark.parametrize("verb", ["stop", "terminate"])
@pytest.mark.parametrize("operation", ["create", "start", "create_process", "stdio"])
async def test_L34_stop_while_the_next_run_is_being_made(world: World, verb: str, operation: Any) -> None:
    world.plan.at(operation, nth=2, hang=True)
    told = await restarting(world)
    while world.runtime.count(operation) < 2:
        await world.clock.sleep(0.05)
    await world.clock.settle()
    await getattr(world.client, verb)("c1")
    ended = await world.backend.wait_for("c1", State.EXIT)
    await world.clock.sleep(1000)
    assert world.states() == ["start", "restart", "exit"]
    assert ended.pid == told.pid
    assert not world.runtime.leftovers()


@pytest.mark.parametrize("verb", ["stop", "terminate"])
async def test_L34_stop_while_it_waits_for_the_old_clean_up(world: World, verb: str) -> None:
    world.plan.at("shutdown", delay_s=60, nth=1)
    told = await restarting(world)
    await world.clock.sleep(20)
    await getattr(world.client, verb)("c1")
    ended = await world.backend.wait_for("c1", State.EXIT)
    await world.clock.sleep(1000)
    assert world.states() == ["start", "restart", "exit"]
    assert (ended.exit_code, ended.not_started) == (told.exit_code, False)
    assert world.runtime.count("create") == 1


# ---- L33 at work, L35: the back-off, and a changed policy --------------------------------------------------------


async def test_L33_delays_double_up_to_a_minute(world: World) -> None:
    await world.create("false", options=(policy("always"),))
    await world.backend.wait_for("c1", State.START, count=14)
    ends = [info.finished_mono or 0 for info in world.backend.of("c1", State.RESTART)]
    starts = [info.started_mono or 0 for info in world.backend.of("c1", State.START)][1:]
    delays = [round(start - end, 6) for start, end in zip(starts, ends, strict=False)]
    assert delays[:13] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60, 60]


async def test_L33_a_long_run_resets_it(world: World) -> None:
    await world.create("false", options=(policy("always"),))
    await world.backend.wait_for("c1", State.START, count=6)
    world.runtime.programs["false"] = world.runtime.programs["sleep"]
    await world.backend.wait_for("c1", State.START, count=7)
    await world.clock.sleep(10)
    world.system().init.exit(1)
    ended = await world.backend.wait_for("c1", State.RESTART, count=7)
    started = await world.backend.wait_for("c1", State.START, count=8)
    assert started.started_mono is not None
    assert ended.finished_mono is not None
    assert started.started_mono - ended.finished_mono == pytest.approx(0.1)


async def test_L35_changed_policy_takes_effect_at_the_next_decision(world: World) -> None:
    system = await world.create("sleep")
    world.client.set_restart_policy("c1", RestartPolicy.parse("always"))
    system.init.exit(0)
    await world.backend.wait_for("c1", State.START, count=2)
    world.client.set_restart_policy("c1", RestartPolicy.parse("no"))
    world.system().init.exit(0)
    await world.client.wait("c1")
    await world.clock.settle()
    assert world.states() == ["start", "restart", "start", "exit"]


async def test_L35_changed_policy_does_not_touch_a_decision_made(still: World) -> None:
    await restarting(still)
    still.client.set_restart_policy("c1", RestartPolicy.parse("no"))
    await still.clock.advance(1)
    assert still.states() == ["start", "restart", "start"]


async def test_L35_unknown_container(world: World) -> None:
    with pytest.raises(NotFound):
        world.client.set_restart_policy("nobody", RestartPolicy.parse("no"))


async def test_L32_on_failure_counts_to_its_maximum(world: World) -> None:
    await world.create("false", options=(policy("on-failure:3"),))
    ended = await world.client.wait("c1")
    await world.clock.settle()
    assert world.states() == ["start", "restart", "start", "restart", "start", "restart", "start", "exit"]
    assert (ended.exit_code, ended.generation) == (1, 4)


async def test_L32_on_failure_restarts_an_unknown_end(world: World) -> None:
    system = await world.create("sleep", options=(policy("on-failure"),))
    system.init.vanish()
    await world.backend.wait_for("c1", State.START, count=2)


async def test_L32_on_failure_leaves_a_success_alone(world: World) -> None:
    await world.create("true", options=(policy("on-failure"),))
    assert (await world.client.wait("c1")).exit_code == 0
    assert world.runtime.count("create") == 1


async def test_L32_restart_says_why(world: World) -> None:
    assert (await restarting(world)).reason


# ---- L36: the next run -------------------------------------------------------------------------------------------


async def test_L36_same_spec_same_options_same_id(world: World) -> None:
    layers = Layers("/layer", ("/base",))
    system = await world.create("sleep", options=(policy("always"), layers))
    system.init.exit(0)
    await world.backend.wait_for("c1", State.START, count=2)
    first, second = world.runtime.created_with
    assert first == second == ("c1", system.spec, (layers,))


async def test_L36_fresh_streams(world: World) -> None:
    given: list[Streams] = []

    def keep(container_id: str, process_id: str, streams: Streams) -> None:
        given.append(streams)

    world.backend.on_attach = keep
    await world.create("echo", "hi", options=(policy("on-failure:1"),))
    await world.client.wait("c1")
    await world.create("exit", "1", options=(policy("on-failure:1"),))
    await world.client.wait("c1")
    assert len(given) == 3
    assert len({id(streams) for streams in given}) == 3


async def test_L36_output_of_every_run_arrives(world: World) -> None:
    async def program(context: ProgramContext) -> int:
        await context.write(b"run\n")
        return 1

    world.program("program", program)
    await world.create("program", options=(policy("on-failure:2"),))
    await world.client.wait("c1")
    assert world.backend.stdout("c1") == b"run\n" * 3


async def test_L36_checkpoint_is_dropped(world: World) -> None:
    world.runtime.checkpoints["/checkpoints", "one"] = config("sleep")
    await world.create("sleep", options=(policy("always"), WithCheckpoint("one", "/checkpoints")))
    assert world.runtime.count("restore") == 1
    world.system().init.exit(0)
    await world.backend.wait_for("c1", State.START, count=2)
    assert world.runtime.count("restore") == 1
    assert world.runtime.created_with[1][2] == ()


@pytest.mark.parametrize("first", [True, False])
async def test_L36_flush_is_forced_false(world: World, first: bool) -> None:
    system = await world.create("sleep", options=(policy("always"), Flush(first)))
    system.init.exit(0)
    await world.backend.wait_for("c1", State.START, count=2)
    assert [options for _, _, options in world.runtime.created_with] == [(Flush(first),), (Flush(False),)]


async def test_L36_generation_counts_the_runs(world: World) -> None:
    await world.create("false", options=(policy("on-failure:2"),))
    await world.client.wait("c1")
    await world.clock.settle()
    assert [info.generation for info in world.backend.of("c1")] == [1, 1, 2, 2, 3, 3]
    assert [info.seq for info in world.backend.of("c1")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("operation", ["create", "start", "create_process", "stdio"])
async def test_L36_failed_recreation_is_tried_again(world: World, operation: Any) -> None:
    world.plan.at(operation, nth=2, error=FAILED).at(operation, nth=3, error=FAILED)
    told = await restarting(world)
    started = await world.backend.wait_for("c1", State.START, count=2)
    assert world.states() == ["start", "restart", "start"]
    assert world.runtime.count("create") == 4
    assert started.started_mono is not None
    assert told.finished_mono is not None
    assert started.started_mono - told.finished_mono == pytest.approx(0.1 + 0.2 + 0.4)


async def test_L36_exit_when_the_policy_gives_up(world: World) -> None:
    world.plan.at("create_process", error=FAILED, nth=2).at("create_process", error=FAILED, nth=3)
    await restarting(world, "on-failure:2")
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert ended.not_started
    assert "it failed" in (ended.reason or "")
    assert world.states() == ["start", "restart", "exit"]
    # Nothing of the run before it: it is another one, of which there was nothing.
    (told,) = world.backend.of("c1", State.RESTART)
    assert (told.generation, ended.generation) == (1, 3)
    assert (ended.pid, ended.exit_code, ended.exit_code_known, ended.signal) == (0, -1, False, None)
    assert (ended.started_at, ended.started_mono, ended.cpu_ns, ended.memory_peak_bytes) == (None, None, None, None)
    assert world.client.containers() == ()
    assert not world.runtime.leftovers()


async def test_L36_who_waits_hears_of_the_end_that_never_started(world: World) -> None:
    world.plan.at("create", error=FAILED, nth=2)
    system = await world.create("sleep", options=(policy("on-failure:1"),))
    waiting = asyncio.create_task(world.client.wait("c1"))
    system.init.exit(1)
    assert (await waiting).not_started


async def test_L36_long_failing_recreation_does_not_reset_the_back_off(world: World) -> None:
    """It never ran: the minute that the runtime took to fail is no long run."""
    world.plan.at("start", nth=2, delay_s=30, error=FAILED).at("start", nth=3, delay_s=30, error=FAILED)
    told = await restarting(world)
    started = await world.backend.wait_for("c1", State.START, count=2)
    assert started.started_mono is not None
    assert told.finished_mono is not None
    assert started.started_mono - told.finished_mono == pytest.approx(60 + 0.1 + 0.2 + 0.4)


async def test_L36_streams_not_taken_at_a_restart_end_it(world: World) -> None:
    def refuse(container_id: str, process_id: str, streams: Streams) -> None:
        if len(world.backend.attached) == 2:
            raise ValueError("no")

    world.backend.on_attach = refuse
    await restarting(world)
    ended = await world.backend.wait_for("c1", State.EXIT)
    await world.clock.sleep(1000)
    assert ended.not_started
    assert world.states() == ["start", "restart", "exit"]
    assert not world.runtime.leftovers()


# ---- L37: what belongs to a run stays with it --------------------------------------------------------------------


async def test_L37_exec_never_leaks_into_the_next_run(world: World) -> None:
    system = await world.create("sleep", options=(policy("always"),))
    await world.client.add_process("c1", "x", config("sleep"))
    system.init.exit(0)
    await world.backend.wait_for("c1", State.START, count=2)
    with pytest.raises(NotFound):
        await world.client.signal_process("c1", "x", 15)
    await world.client.add_process("c1", "x", config("sleep"))
    assert world.states() == ["start", "start-process", "exit-process", "restart", "start", "start-process"]
    assert world.backend.of("c1", State.EXIT_PROCESS)[0].generation == 1
    assert world.backend.of("c1", State.START_PROCESS)[1].generation == 2


async def test_L37_exec_that_was_being_started_does_not_either(world: World) -> None:
    world.plan.at("create_process", process="x", delay_s=50, nth=1)
    system = await world.create("sleep", options=(policy("always"),))
    adding = asyncio.create_task(world.client.add_process("c1", "x", config("sleep")))
    await world.clock.settle()
    system.init.exit(0)
    await world.backend.wait_for("c1", State.START, count=2)
    await world.clock.sleep(100)
    assert adding.done()
    assert adding.exception() is not None
    assert [process.name for process in world.system().everyone] == ["init"]
    assert world.states() == ["start", "restart", "start"]


async def test_L37_exec_exit_that_is_late_is_not_told_in_the_next_run(world: World) -> None:
    world.plan.at("process.wait", process="x", hang=True, nth=1)
    system = await world.create("sleep", options=(policy("always"),))
    await world.client.add_process("c1", "x", config("sleep"))
    system.init.exit(0)
    await world.backend.wait_for("c1", State.START, count=2)
    await world.clock.sleep(1000)
    assert world.states() == ["start", "start-process", "exit-process", "restart", "start"]


async def test_L37_pause_does_not_leak_into_the_next_run(world: World) -> None:
    world.use(freeze_blocks_kill=False)
    system = await world.create("sleep", options=(policy("always"),))
    await world.client.pause("c1")
    system.init.die()
    await world.backend.wait_for("c1", State.START, count=2)
    with pytest.raises(InvalidState):
        await world.client.resume("c1")
    await world.client.pause("c1")
    await world.clock.settle()
    assert world.states() == ["start", "pause", "restart", "start", "pause"]


async def test_L37_stop_asked_in_one_run_does_not_reach_the_next(world: World) -> None:
    """Its SIGKILL after the grace is for the run that was asked to stop; that run has ended, and there is no other."""
    system = await world.create("ignore-term", options=(policy("always"),))
    stopping = asyncio.create_task(world.client.stop("c1", grace_s=5))
    await world.clock.settle()
    system.init.exit(0)
    await world.client.wait("c1")
    await stopping
    second: SimulatedSystem = await world.create("sleep")
    await world.clock.sleep(100)
    assert [process.name for process in second.alive] == ["init"]


# ---- L38: one decision at a time ---------------------------------------------------------------------------------


async def test_L38_one_end_one_restart(still: World) -> None:
    await restarting(still)
    manager = still.client._containers["c1"]._restarts
    with pytest.raises(InvalidState):
        manager.decide(RunEnd(exit_code=1), manually_stopped=False, ran_for_s=0)
    await still.clock.advance(1)
    assert still.states() == ["start", "restart", "start"]
    assert still.runtime.count("create") == 2
