"""The exit path of a process: nothing keeps an exit from being told, and told right [L20-L26]."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import pytest

from lighterman import limits
from lighterman.errors import (
    AlreadyClosed,
    AlreadyStopped,
    BrokenPipe,
    InvalidState,
    KeeperLost,
    NotFound,
    NotSupported,
    RuntimeFailed,
)
from lighterman.lifecycle.events import State, StateInfo
from lighterman.testing import WINDOWS, ProgramContext
from supervisor.world import World, config, policy

FAILED = RuntimeFailed("it failed", runtime="fake", operation="some")
ERRORS = [
    AlreadyStopped("x"),
    AlreadyClosed("x"),
    NotFound("x"),
    InvalidState("x"),
    NotSupported("x"),
    KeeperLost("x"),
    BrokenPipe("x"),
    FAILED,
]

# ---- L20: waiting for the exit -----------------------------------------------------------------------------------


async def test_L20_waits_without_limit(world: World) -> None:
    await world.create("sleep", str(10 * 365 * 24 * 3600 / 1000))
    ended = await world.client.wait("c1")
    assert ended.exit_code == 0


async def test_L20_broken_pipe_continues_quietly(world: World, caplog: pytest.LogCaptureFixture) -> None:
    system = await world.create("sleep")
    system.init.break_pipe(code=9)
    ended = await world.client.wait("c1")
    assert ended.exit_code == 9
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("error", [error for error in ERRORS if not isinstance(error, BrokenPipe)], ids=repr)
async def test_L20_other_error_warns_and_continues(
    world: World, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world.plan.at("process.wait", error=error)
    system = await world.create("sleep")
    system.init.exit(4)
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.exit_code_known) == (4, True)
    assert [record for record in caplog.records if record.levelno == logging.WARNING]


async def test_L20_error_from_outside_our_tree_does_not_hide_the_exit(world: World) -> None:
    world.plan.at("process.wait", error=OSError("strange"))
    system = await world.create("sleep")
    system.init.exit(4)
    assert (await world.client.wait("c1")).exit_code == 4


async def test_L20_cancelled_wait_tells_nothing(world: World) -> None:
    system = await world.create("sleep")
    await world.client.close()
    system.init.exit(3)
    await world.clock.sleep(100)
    assert world.states() == ["start"]
    world.leaves_something = True


async def test_L20_cancelled_caller_of_wait_changes_nothing(world: World) -> None:
    system = await world.create("sleep")
    waiting = asyncio.create_task(world.client.wait("c1"))
    await world.clock.settle()
    waiting.cancel()
    await asyncio.wait([waiting])
    system.init.exit(3)
    assert (await world.client.wait("c1")).exit_code == 3


# ---- L21: the exit code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [*ERRORS, OSError("strange")], ids=repr)
async def test_L21_unknowable_code_is_never_zero(world: World, error: Exception) -> None:
    world.plan.at("exit_code", error=error)
    await world.create("true")
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.exit_code_known, ended.signal) == (-1, False, None)
    assert ended.reason


async def test_L21_not_found_is_unknown(world: World) -> None:
    system = await world.create("sleep")
    system.init.vanish()
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.exit_code_known) == (-1, False)


async def test_L21_broken_pipe_and_no_code_is_unknown(world: World) -> None:
    system = await world.create("sleep")
    system.init.vanish(broken=True)
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.exit_code_known) == (-1, False)


async def test_L21_exit_code_that_never_answers_is_unknown(world: World) -> None:
    world.plan.at("exit_code", hang=True)
    await world.create("true")
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.exit_code_known) == (-1, False)


async def test_L21_exec_has_the_same_tolerance(world: World) -> None:
    world.plan.at("exit_code", process="x", error=NotFound("x"))
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("true"))
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert (ended.exit_code, ended.exit_code_known) == (-1, False)


async def test_L21_windows_code_has_32_bits(world: World) -> None:
    world.use(features=WINDOWS)
    system = await world.create("sleep")
    system.init.exit(0xC0000005)
    assert (await world.client.wait("c1")).exit_code == 0xC0000005


async def test_L21_signal_is_128_and_more(world: World) -> None:
    system = await world.create("sleep")
    system.init.die(11)
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.signal) == (139, 11)


async def test_L21_exit_with_139_is_no_signal(world: World) -> None:
    await world.create("exit", "139")
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.signal) == (139, None)


async def test_L21_exited_as_soon_as_the_code_is_known(world: World) -> None:
    """`stop` returns though a stream has no end, and though the clean-up takes minutes."""
    world.backend.reads = False
    world.plan.at("shutdown", hang=True)
    await world.create("sleep")
    before = world.clock.mono()
    await world.client.stop("c1", grace_s=100)
    assert world.clock.mono() == before
    await world.client.wait("c1")


# ---- L22: closing the handle -------------------------------------------------------------------------------------


async def handle_closes(world: World, process: str = "init") -> int:
    return world.runtime.count("process.close", "c1", process)


@pytest.mark.parametrize("fault", ["process.wait", "exit_code", "process.close"])
async def test_L22_closed_exactly_once_whatever_happened(world: World, fault: Any) -> None:
    if fault == "process.close":
        world.plan.at(fault, error=FAILED, after=True)
    else:
        world.plan.at(fault, error=FAILED)
    await world.create("exit", "3")
    await world.client.wait("c1")
    assert await handle_closes(world) == 1
    assert not world.runtime.leftovers()


async def test_L22_failing_close_is_logged_and_changes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.plan.at("process.close", error=FAILED)
    await world.create("exit", "3")
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.error) == (3, None)
    assert "it failed" in caplog.text
    assert await handle_closes(world) == 1
    world.leaves_something = True


async def test_L22_close_that_never_answers_does_not_hide_the_exit(world: World) -> None:
    world.plan.at("process.close", hang=True)
    await world.create("exit", "3")
    assert (await world.client.wait("c1")).exit_code == 3
    world.leaves_something = True


async def test_L22_closed_after_the_drain(world: World) -> None:
    world.backend.reads = False
    system = await world.create("echo", "hi")
    await world.clock.sleep(limits.DRAIN_S / 2)
    assert await handle_closes(world) == 0
    world.backend.read("c1", "init", world.backend.streams["c1", "init"])
    await world.client.wait("c1")
    assert await handle_closes(world) == 1
    assert world.backend.stdout("c1") == b"hi\n"
    assert system.init.exit_code is not None


async def test_L22_exec_handle_closed_once(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("true"))
    await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert await handle_closes(world, "x") == 1


# ---- L23: an exec's exit -----------------------------------------------------------------------------------------


async def test_L23_exec_tells_its_exit_and_nothing_else(world: World) -> None:
    await world.create("sleep", options=(policy("always"),))
    pid = await world.client.add_process("c1", "x", config("exit", "9"))
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS)
    await world.clock.sleep(1000)
    assert (ended.process_id, ended.pid, ended.exit_code, ended.exit_code_known) == ("x", pid, 9, True)
    assert world.states() == ["start", "start-process", "exit-process"]
    assert world.runtime.count("shutdown") == world.runtime.count("terminate") == 0


async def test_L23_exec_is_forgotten(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("true"))
    await world.backend.wait_for("c1", State.EXIT_PROCESS)
    with pytest.raises(NotFound):
        await world.client.signal_process("c1", "x", 15)


async def test_L23_failing_exec_leaves_the_container_alone(world: World) -> None:
    world.plan.at("process.wait", process="x", error=FAILED)
    world.plan.at("process.close", process="x", error=FAILED, after=True)
    system = await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep"))
    system.processes["x"].vanish(broken=True)
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert not ended.exit_code_known
    assert world.client.containers() == ("c1",)


# ---- L24: the init's exit ----------------------------------------------------------------------------------------


async def test_L24_pending_updates_are_asked_for(world: World) -> None:
    world.use(features=WINDOWS)
    system = await world.create("sleep")
    system.pending_updates = True
    system.init.exit(0)
    assert (await world.client.wait("c1")).update_pending


@pytest.mark.parametrize("fault", [{"error": FAILED}, {"hang": True}, {"error": BrokenPipe("x")}])
async def test_L24_failure_to_ask_for_updates_is_none_pending(
    world: World, fault: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    world.use(features=WINDOWS)
    world.plan.at("has_pending_updates", **fault)
    await world.create("exit", "3")
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.update_pending) == (3, False)
    assert [record for record in caplog.records if record.levelno == logging.WARNING]


async def test_L24_no_warning_where_there_are_no_updates(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.create("true")
    assert not (await world.client.wait("c1")).update_pending
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_L24_system_is_shut_down_and_closed_before_exit_is_told(world: World) -> None:
    left: list[bool] = []

    def look(info: StateInfo) -> None:
        if info.state is State.EXIT:
            left.append(bool(world.runtime.leftovers()))

    world.backend.on_state = look
    world.plan.at("shutdown", delay_s=limits.SETTLE_S - 1)
    await world.create("true")
    await world.client.wait("c1")
    await world.clock.settle()
    assert left == [False]
    operations = [call.operation for call in world.runtime.calls]
    assert operations.index("shutdown") < operations.index("system.close")


@pytest.mark.parametrize("fault", [{"hang": True}, {"pending_s": 60}, {"delay_s": 60}])
async def test_L24_event_waits_at_most_settle_s(world: World, fault: dict[str, Any]) -> None:
    world.plan.at("shutdown", **fault)
    await world.create("exit", "3")
    ended = await world.client.wait("c1")
    assert ended.exit_code == 3
    assert ended.finished_mono is not None
    assert world.clock.mono() - ended.finished_mono == limits.SETTLE_S


async def test_L24_clean_up_goes_on_in_the_background(world: World) -> None:
    world.plan.at("shutdown", delay_s=60)
    await world.create("true")
    await world.client.wait("c1")
    assert world.runtime.leftovers()
    await world.clock.sleep(60)
    assert not world.runtime.leftovers()


@pytest.mark.parametrize("operation", ["shutdown", "system.close", "oom_counters", "process.close"])
async def test_L24_error_from_outside_our_tree_does_not_hide_the_exit(world: World, operation: Any) -> None:
    world.plan.at(operation, error=OSError("strange"), after=True)
    await world.create("exit", "3")
    assert (await world.client.wait("c1")).exit_code == 3
    assert world.client.containers() == ()


@pytest.mark.parametrize("operation", ["shutdown", "system.close"])
async def test_L24_failed_clean_up_is_told_and_changes_nothing_else(
    world: World, operation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world.plan.at(operation, error=FAILED, after=True)
    await world.create("exit", "3")
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.exit_code_known, ended.error) == (3, True, FAILED)
    assert "it failed" in caplog.text
    assert world.client.containers() == ()


async def test_L24_failed_clean_up_does_not_change_the_restart(world: World) -> None:
    world.plan.at("shutdown", error=FAILED, after=True, nth=1)
    await world.create("true", options=(policy("on-failure"),))
    ended = await world.client.wait("c1")
    assert (ended.exit_code, world.runtime.count("create")) == (0, 1)


async def test_L24_unregistered_by_the_container_id(world: World) -> None:
    await world.create("true", id="abc")
    await world.create("sleep", id="init")
    await world.backend.wait_for("abc", State.EXIT)
    assert world.client.containers() == ("init",)


async def test_L24_told_with_everything(world: World) -> None:
    system = await world.create("sleep", "30")
    started = await world.backend.wait_for("c1", State.START)
    system.oom_kills = 2
    ended = await world.client.wait("c1")
    assert ended == world.backend.of("c1", State.EXIT)[0]
    assert (ended.pid, ended.process_id, ended.exit_code, ended.generation) == (started.pid, "init", 0, 1)
    assert (ended.started_at, ended.started_mono) == (started.started_at, started.started_mono)
    assert started.started_mono is not None
    assert started.started_at is not None
    assert (ended.finished_mono, ended.finished_at) == (started.started_mono + 30, started.started_at + 30)
    assert ended.oom_killed


async def test_L24_oom_counters_are_read_before_the_system_is_gone(world: World) -> None:
    await world.create("true")
    await world.client.wait("c1")
    operations = [call.operation for call in world.runtime.calls]
    assert operations.index("oom_counters") < operations.index("shutdown")


@pytest.mark.parametrize("fault", [{"error": FAILED}, {"hang": True}])
async def test_L24_failing_oom_counters_do_not_hide_the_exit(world: World, fault: dict[str, Any]) -> None:
    world.plan.at("oom_counters", **fault)
    await world.create("exit", "3")
    ended = await world.client.wait("c1")
    assert (ended.exit_code, ended.oom_killed) == (3, False)


async def test_L24_wait_returns_for_everybody(world: World) -> None:
    system = await world.create("sleep")
    waiting = [asyncio.create_task(world.client.wait("c1")) for _ in range(5)]
    await world.clock.settle()
    system.init.exit(3)
    assert {info.exit_code for info in await asyncio.gather(*waiting)} == {3}


async def test_L24_reused_id_waits_for_the_old_clean_up(world: World) -> None:
    world.plan.at("shutdown", delay_s=60, nth=1)
    await world.create("true")
    ended = await world.client.wait("c1")
    assert world.client.containers() == ()
    await world.create("sleep")
    assert ended.finished_mono is not None
    assert world.clock.mono() - ended.finished_mono == 60
    assert world.client.containers() == ("c1",)


async def test_L24_restart_waits_for_the_old_clean_up(world: World) -> None:
    world.plan.at("shutdown", delay_s=60, nth=1)
    system = await world.create("sleep", options=(policy("always"),))
    system.init.exit(0)
    restarted = await world.backend.wait_for("c1", State.RESTART)
    started = await world.backend.wait_for("c1", State.START, count=2)
    assert restarted.finished_mono is not None
    assert started.started_mono is not None
    assert started.started_mono - restarted.finished_mono >= 60


async def test_L24_end_is_forgotten_only_after_the_backend_has_heard_of_it(world: World) -> None:
    """An engine that dies in between finds the exit record again."""
    seen: list[bool] = []
    system = await world.create("sleep")

    async def slow(info: StateInfo) -> None:
        if info.state is State.EXIT:
            await world.clock.sleep(5)
            seen.append(system.init.forgotten)

    world.backend.on_state = slow
    system.init.exit(3)
    await world.client.wait("c1")
    while not seen:
        await world.clock.sleep(1)
    assert seen == [False]
    await world.clock.sleep(1)
    assert system.init.forgotten


@pytest.mark.parametrize("fault", [{"error": FAILED}, {"error": OSError("strange")}, {"hang": True}])
async def test_L27_end_that_can_not_be_forgotten_holds_up_nothing(world: World, fault: dict[str, Any]) -> None:
    world.plan.at("process.forget", nth=1, **fault)
    system = await world.create("sleep", options=(policy("always"),))
    system.init.exit(1)
    await world.backend.wait_for("c1", State.START, count=2)
    await world.client.stop("c1")
    await world.backend.wait_for("c1", State.EXIT)


async def test_L24_end_that_was_not_told_is_kept(world: World) -> None:
    system = await world.create("sleep")
    await world.client.close()
    system.init.exit(3)
    await world.clock.sleep(100)
    assert not system.init.forgotten
    world.leaves_something = True


# ---- L25: execs alive at the init's end --------------------------------------------------------------------------


async def test_L25_execs_are_ended_and_told_first(world: World) -> None:
    system = await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep"))
    await world.client.add_process("c1", "y", config("ignore-term"))
    system.init.exit(2)
    await world.client.wait("c1")
    await world.clock.settle()
    assert world.states() == ["start", "start-process", "start-process", "exit-process", "exit-process", "exit"]
    assert {info.process_id for info in world.backend.of("c1", State.EXIT_PROCESS)} == {"x", "y"}
    assert all(info.signal == 9 for info in world.backend.of("c1", State.EXIT_PROCESS))


@pytest.mark.parametrize("fault", [{"error": FAILED}, {"hang": True}])
async def test_L25_exec_that_can_not_be_killed_does_not_hide_the_exit(world: World, fault: dict[str, Any]) -> None:
    world.plan.at("kill", process="x", **fault)
    system = await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep"))
    system.init.exit(2)
    ended = await world.client.wait("c1")
    await world.clock.settle()
    assert ended.exit_code == 2
    assert world.states() == ["start", "start-process", "exit-process", "exit"]


async def test_L25_exec_whose_end_is_never_told_by_the_runtime(world: World) -> None:
    world.plan.at("process.wait", process="x", hang=True)
    system = await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep"))
    system.init.exit(2)
    await world.client.wait("c1")
    await world.clock.settle()
    assert world.states() == ["start", "start-process", "exit-process", "exit"]
    assert not world.backend.of("c1", State.EXIT_PROCESS)[0].exit_code_known


async def test_L25_exec_being_started_is_given_up(world: World) -> None:
    world.plan.at("create_process", process="x", hang=True)
    system = await world.create("sleep")
    adding = asyncio.create_task(world.client.add_process("c1", "x", config("sleep")))
    await world.clock.settle()
    system.init.exit(2)
    await world.client.wait("c1")
    await asyncio.wait([adding])
    assert isinstance(adding.exception(), AlreadyStopped)
    await world.clock.settle()
    assert world.states() == ["start", "exit"]


async def test_L25_exec_that_starts_at_the_same_moment(world: World) -> None:
    """The runtime makes it, and the init ends before it answers."""
    world.plan.at("create_process", process="x", after=True, delay_s=1)
    system = await world.create("sleep", "0.5")
    adding = asyncio.create_task(world.client.add_process("c1", "x", config("sleep")))
    await world.client.wait("c1")
    await asyncio.wait([adding])
    assert adding.exception() is not None or "start-process" in world.states()
    await world.clock.settle()
    assert system.alive == []


async def test_L25_exec_output_is_drained_before_its_exit_is_told(world: World) -> None:
    async def chatty(context: ProgramContext) -> int:
        await context.write(b"z" * 50_000)
        await context.sleep(math.inf)
        return 0

    world.program("chatty", chatty)
    system = await world.create("sleep")
    await world.client.add_process("c1", "x", config("chatty"))
    system.init.exit(0)
    await world.client.wait("c1")
    assert world.backend.stdout("c1", "x") == b"z" * 50_000


# ---- L26: a backend that raises ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [ValueError("mine"), FAILED, asyncio.CancelledError()], ids=repr)
async def test_L26_error_of_the_backend_is_logged_and_stops_nothing(
    world: World, wrong: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    world.backend.state_error = wrong
    system = await world.create("sleep", options=(policy("on-failure:1"),))
    await world.client.pause("c1")
    await world.client.resume("c1")
    system.init.exit(1)
    await world.backend.wait_for("c1", State.START, count=2)
    world.system().init.exit(1)
    await world.client.wait("c1")
    await world.clock.settle()
    assert world.states() == ["start", "pause", "resume", "restart", "start", "exit"]
    if not isinstance(wrong, asyncio.CancelledError):
        assert "backend failed" in caplog.text


async def test_end_is_forgotten_no_sooner_than_the_backend_has_it_in_safety(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is told meanwhile; what the keeper has of an end stays until it is written down."""
    safe: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    tell = world.backend.state_changed

    async def not_yet(info: StateInfo) -> asyncio.Future[None]:
        await tell(info)
        return safe

    monkeypatch.setattr(world.backend, "state_changed", not_yet)
    system = await world.create("sleep", options=(policy("on-failure:1"),))
    await world.client.pause("c1")
    await world.client.resume("c1")
    system.init.exit(1)
    await world.backend.wait_for("c1", State.START, count=2)
    again = world.system()
    again.init.exit(1)
    await world.client.wait("c1")
    await world.clock.settle()
    assert world.states() == ["start", "pause", "resume", "restart", "start", "exit"]
    assert not system.init.forgotten
    assert not again.init.forgotten
    safe.set_result(None)
    await world.clock.settle()
    assert system.init.forgotten
    assert again.init.forgotten


async def test_L26_backend_that_never_returns_stops_only_its_own_events(world: World) -> None:
    released = asyncio.Event()

    async def hang(info: StateInfo) -> None:
        if info.container_id == "c1":
            await released.wait()

    world.backend.on_state = hang
    for id, code in (("c1", 3), ("c2", 4)):
        system = await world.create("sleep", id=id)
        system.init.exit(code)
        assert (await world.client.wait(id)).exit_code == code
    await world.clock.settle()
    assert world.states("c2") == ["start", "exit"]
    assert world.states("c1") == ["start"]
    released.set()
