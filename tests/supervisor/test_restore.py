"""Coming back to what outlived the engine [L06]."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from lighterman.errors import AlreadyExists, BrokenPipe, InvalidState, NotFound, NotSupported, RuntimeFailed
from lighterman.lifecycle.events import State
from lighterman.runtimes.base import Features
from lighterman.supervisor.streams import Streams
from lighterman.testing import ProgramContext
from supervisor.world import World, config, policy

FAILED = RuntimeFailed("it failed", runtime="fake", operation="open")


async def outlived(world: World, *args: str, stdin: bool = False) -> None:
    """A container whose engine was killed."""
    await world.create(*(args or ("sleep",)), stdin=stdin)
    await world.clock.settle()
    await world.engine_dies()


async def test_L06_restore_registers_and_is_told(world: World) -> None:
    await outlived(world)
    pid = world.system().init.pid
    await world.client.restore("c1", spec=world.spec("sleep"))
    told = await world.backend.wait_for("c1", State.RESTORE)
    assert told.pid == pid
    assert world.client.containers() == ("c1",)
    assert world.states() == ["restore"]
    assert world.runtime.count("create") == 1
    assert world.runtime.count("kill") == world.runtime.count("terminate") == world.runtime.count("shutdown") == 0


async def test_L06_waiting_resumes(world: World) -> None:
    await outlived(world, "sleep", "50")
    await world.clock.sleep(20)
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.client.wait("c1")
    await world.clock.settle()
    assert (ended.exit_code, ended.exit_code_known) == (0, True)
    assert ended.finished_mono is not None
    assert ended.started_mono is not None
    assert ended.finished_mono - ended.started_mono == 50
    assert world.states() == ["restore", "exit"]


async def test_L06_stdio_is_connected_again(world: World) -> None:
    await outlived(world, "cat", stdin=True)
    await world.client.restore("c1", spec=world.spec("cat", stdin=True))
    await world.backend.write_stdin("c1", b"after")
    ended = await world.client.wait("c1")
    assert ended.exit_code == 0
    assert world.backend.stdout("c1") == b"after"


async def test_L06_output_written_meanwhile_arrives(world: World) -> None:
    async def program(context: ProgramContext) -> int:
        await context.sleep(10)
        await context.write(b"while you were gone")
        await context.sleep(math.inf)
        return 0

    world.program("program", program)
    await outlived(world, "program")
    await world.clock.sleep(20)
    await world.client.restore("c1", spec=world.spec("program"))
    await world.clock.settle()
    assert world.backend.stdout("c1") == b"while you were gone"


async def test_L06_its_processes_are_registered(world: World) -> None:
    await world.create("sleep")
    pid = await world.client.add_process("c1", "x", config("sleep", "100"))
    await world.engine_dies()
    await world.client.restore("c1", spec=world.spec("sleep"))
    with pytest.raises(AlreadyExists):
        await world.client.add_process("c1", "x", config("true"))
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert (ended.process_id, ended.pid, ended.exit_code) == ("x", pid, 0)


async def test_L06_exec_that_ended_meanwhile_is_told(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep", "5"))
    await world.engine_dies()
    await world.clock.sleep(10)
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert (ended.process_id, ended.exit_code) == ("x", 0)


async def test_L06_verbs_work_after_it(world: World) -> None:
    await outlived(world)
    await world.client.restore("c1", spec=world.spec("sleep"))
    await world.client.add_process("c1", "y", config("true"))
    await world.backend.wait_for("c1", State.EXIT_PROCESS)
    await world.client.pause("c1")
    await world.client.resume("c1")
    await world.client.stop("c1")
    assert (await world.backend.wait_for("c1", State.EXIT)).signal == 15


async def test_L06_policy_counts_after_it(world: World) -> None:
    await outlived(world)
    await world.client.restore("c1", policy("always"), spec=world.spec("sleep"))
    world.system().init.exit(0)
    await world.backend.wait_for("c1", State.START)
    assert world.states() == ["restore", "restart", "start"]


async def test_L06_id_in_use(world: World) -> None:
    await world.create("sleep")
    with pytest.raises(AlreadyExists):
        await world.client.restore("c1", spec=world.spec("sleep"))


# ---- it died meanwhile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 7])
async def test_L06_died_meanwhile_with_its_true_code(world: World, code: int) -> None:
    await outlived(world)
    world.system().init.exit(code)
    await world.clock.sleep(100)
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert (ended.exit_code, ended.exit_code_known) == (code, True)
    assert ended.finished_mono == world.clock.mono() - 100
    assert world.states() in (["exit"], ["restore", "exit"])
    assert not world.runtime.leftovers()


@pytest.mark.parametrize("broken", [False, True])
async def test_L06_died_meanwhile_and_nobody_knows_how(world: World, broken: bool) -> None:
    await outlived(world)
    world.system().init.vanish(broken=broken)
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert (ended.exit_code, ended.exit_code_known) == (-1, False)
    assert not world.runtime.leftovers()


async def test_L06_gone_altogether_is_unknown_never_success(world: World) -> None:
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert (ended.exit_code, ended.exit_code_known) == (-1, False)
    assert ended.reason
    assert world.states() == ["exit"]
    assert world.client.containers() == ()


# ---- it can't be re-attached -------------------------------------------------------------------------------------


async def test_L06_runtime_that_can_not_reattach(world: World) -> None:
    world.use(features=Features(reattach=False))
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert (ended.exit_code, ended.exit_code_known) == (-1, False)


@pytest.mark.parametrize("operation", ["open_process", "stdio"])
@pytest.mark.parametrize(
    "error", [FAILED, NotFound("x"), NotSupported("x"), BrokenPipe("x"), OSError("strange")], ids=repr
)
async def test_L06_what_is_left_is_terminated(world: World, operation: Any, error: Exception) -> None:
    await outlived(world)
    world.plan.at(operation, error=error, process="init")
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert not ended.exit_code_known or ended.exit_code != 0
    assert world.states() == ["exit"]
    assert world.runtime.count("terminate") == 1
    assert not world.runtime.leftovers()


async def test_L06_streams_that_nobody_takes(world: World) -> None:
    await outlived(world)
    world.backend.attach_error = ValueError("no")
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert not ended.exit_code_known or ended.exit_code != 0
    assert not world.runtime.leftovers()


async def test_L06_code_known_though_streams_are_not_taken(world: World) -> None:
    """It died meanwhile; the exit code is known, whatever becomes of its output."""
    await outlived(world)
    world.system().init.exit(5)
    world.backend.attach_error = ValueError("no")
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert (ended.exit_code, ended.exit_code_known) == (5, True)


async def test_L06_open_that_fails_is_told(world: World) -> None:
    await outlived(world)
    world.plan.at("open", error=FAILED)
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert (ended.exit_code, ended.exit_code_known) == (-1, False)
    world.leaves_something = True


@pytest.mark.parametrize("operation", ["open", "open_process", "stdio"])
async def test_L06_restore_that_hangs_has_a_deadline(world: World, operation: Any) -> None:
    await outlived(world)
    world.plan.at(operation, hang=True)
    await world.client.restore("c1", spec=world.spec("sleep"))
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert not ended.exit_code_known or ended.exit_code != 0
    world.leaves_something = operation == "open"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("verb", ["stop", "terminate", "kill", "stop signal"])
async def test_L06_stop_while_it_is_being_restored(world: World, verb: str, fails: bool) -> None:
    await outlived(world)
    world.plan.at("open_process", delay_s=5, error=FAILED if fails else None)
    restoring = asyncio.create_task(world.client.restore("c1", policy("always"), spec=world.spec("sleep")))
    await world.clock.settle()
    match verb:
        case "stop" | "terminate":
            await getattr(world.client, verb)("c1")
        case "kill":
            await world.client.signal("c1", 9)
        case "stop signal":
            await world.client.signal("c1", 15)
    await restoring
    await world.backend.wait_for("c1", State.EXIT)
    await world.clock.sleep(1000)
    assert world.states() == (["exit"] if fails else ["restore", "exit"])
    assert not world.runtime.leftovers()


async def test_L06_exec_that_can_not_be_reopened_does_not_end_the_container(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep"))
    await world.engine_dies()
    world.plan.at("open_process", process="x", error=FAILED)
    await world.client.restore("c1", spec=world.spec("sleep"))
    await world.clock.settle()
    assert world.states()[0] == "restore"
    assert world.client.containers() == ("c1",)


async def test_L06_exec_whose_streams_nobody_takes_is_told_to_end_at_once(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep", "50"))
    await world.engine_dies()

    async def refuse(_: str, process: str, __: Streams) -> None:
        if process == "x":
            raise OSError("no room for a segment")

    world.backend.on_attach = refuse
    await world.client.restore("c1", spec=world.spec("sleep"))
    before = world.clock.mono()
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert (ended.process_id, ended.exit_code, ended.drained) == ("x", 0, ())
    assert world.clock.mono() - before <= 50
    await world.clock.settle()
    assert world.system().processes["x"].forgotten


async def test_L06_terminal_of_an_exec_is_its_own(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep", terminal=True))
    await world.engine_dies()
    await world.client.restore("c1", spec=world.spec("sleep"))
    assert world.backend.streams["c1", "x"].terminal
    assert not world.backend.streams["c1", "init"].terminal


async def test_L06_paused_before_it_can_be_resumed_after(world: World) -> None:
    await world.create("sleep")
    await world.client.pause("c1")
    await world.engine_dies()
    await world.client.restore("c1", spec=world.spec("sleep"))
    await world.client.stop("c1", grace_s=5)
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert ended.signal in (9, 15)


async def test_L06_running_before_tells_no_resume_when_it_is_stopped(world: World) -> None:
    await outlived(world, "ignore-term")
    await world.client.restore("c1", spec=world.spec("ignore-term"))
    await world.client.signal("c1", 15)
    await world.clock.settle()
    assert world.states() == ["restore"]


async def test_L06_pause_and_resume_are_told_after_it(world: World) -> None:
    await world.create("sleep")
    await world.client.pause("c1")
    await world.engine_dies()
    await world.client.restore("c1", spec=world.spec("sleep"))
    with pytest.raises(InvalidState):
        await world.client.pause("c1")
    await world.client.resume("c1")
    await world.client.pause("c1")
    await world.clock.settle()
    assert world.states() == ["restore", "resume", "pause"]


async def test_L06_restore_twice_at_once(world: World) -> None:
    await outlived(world)
    results = await asyncio.gather(
        world.client.restore("c1", spec=world.spec("sleep")),
        world.client.restore("c1", spec=world.spec("sleep")),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), AlreadyExists]


async def test_L06_thawed_while_its_pause_is_on_the_way_no_resume_without_a_pause(world: World) -> None:
    await outlived(world, "sleep")
    await world.client.restore("c1", spec=world.spec("sleep"))
    world.plan.at("pause", delay_s=5, after=True)
    pausing = asyncio.create_task(world.client.pause("c1"))
    await world.clock.settle()
    await world.client.signal("c1", world.spec("sleep").stop_signal)
    await asyncio.wait((pausing,))
    await world.backend.wait_for("c1", State.EXIT)
    told = [state for state in world.states() if state in ("pause", "resume")]
    assert told in ([], ["pause"], ["pause", "resume"])
