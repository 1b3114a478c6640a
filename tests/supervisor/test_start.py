"""From create to START, and what happens when a step of it fails [L07-L14]."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import pytest

from lighterman import limits
from lighterman.errors import (
    CommandNotFound,
    InvalidState,
    LightermanError,
    NotFound,
    OperationTimeout,
    RuntimeFailed,
    ServicingFailed,
)
from lighterman.lifecycle.events import State, StateInfo
from lighterman.runtimes.options import Servicing
from lighterman.spec import Spec
from lighterman.supervisor.streams import Streams
from lighterman.testing import ProgramContext
from supervisor.world import World, config, policy

FIRST = RuntimeFailed("the first", runtime="fake", operation="start")
SECOND = RuntimeFailed("the second", runtime="fake", operation="terminate")

# ---- L07: the compute system does not start ----------------------------------------------------------------------


async def test_L07_failed_start_is_terminated_and_closed(world: World) -> None:
    world.plan.at("start", error=FIRST)
    with pytest.raises(RuntimeFailed) as raised:
        await world.create("sleep")
    assert raised.value is FIRST
    assert [call.operation for call in world.runtime.calls][:4] == ["create", "start", "terminate", "system.close"]


@pytest.mark.parametrize("operation", ["terminate", "system.close"])
async def test_L07_failed_clean_up_is_logged_and_the_first_error_raised(
    world: World, operation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world.plan.at("start", error=FIRST).at(operation, error=SECOND)
    with pytest.raises(RuntimeFailed) as raised:
        await world.create("sleep")
    assert raised.value is FIRST
    assert "the second" in caplog.text
    assert world.client.containers() == ()
    world.leaves_something = True


async def test_L07_clean_up_that_worked_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    world.plan.at("start", error=FIRST)
    with pytest.raises(RuntimeFailed):
        await world.create("sleep")
    assert [record for record in caplog.records if "c1" in record.getMessage() and "terminated" in record.getMessage()]


async def test_L07_hanging_start_has_a_deadline(world: World) -> None:
    world.plan.at("start", hang=True)
    before = world.clock.mono()
    with pytest.raises(OperationTimeout):
        await world.create("sleep")
    assert world.clock.mono() - before == limits.START_S
    assert not world.runtime.leftovers()


async def test_L07_pending_terminate_is_waited_for(world: World) -> None:
    world.plan.at("start", error=FIRST).at("terminate", pending_s=20)
    before = world.clock.mono()
    with pytest.raises(RuntimeFailed):
        await world.create("sleep")
    assert world.clock.mono() - before == 20
    assert not world.runtime.leftovers()


# ---- L08, L09: what the init process is made of ------------------------------------------------------------------


def oci(**process: Any) -> Spec:
    return Spec.from_oci({"ociVersion": "1.0.2", "process": {"args": ["sleep"], "cwd": "/", **process}})


async def test_L08_environment_is_split_at_the_first_equals(world: World) -> None:
    await world.client.create("c1", oci(env=["A=1", "B=x=y", "C="]))
    assert world.system().init.config.env == {"A": "1", "B": "x=y", "C": ""}


async def test_L08_entry_without_equals_is_dropped_with_a_warning(world: World) -> None:
    with pytest.warns(RuntimeWarning, match="NOEQUALS"):
        spec = oci(env=["A=1", "NOEQUALS"])
    await world.client.create("c1", spec)
    assert world.system().init.config.env == {"A": "1"}


async def test_L09_arguments_arrive_as_a_vector(world: World) -> None:
    seen: list[tuple[str, ...]] = []

    async def program(context: ProgramContext) -> int:
        seen.append(context.args)
        return 0

    world.program("program", program)
    args = ("program", "two words", 'a "quote"', "", "back\\slash", "new\nline", "ünï")
    await world.create(*args)
    await world.client.wait("c1")
    assert seen == [args]


async def test_L09_working_directory_user_and_terminal_arrive(world: World) -> None:
    await world.client.create(
        "c1",
        oci(
            cwd="/srv",
            user={"uid": 5, "gid": 6, "additionalGids": [7]},
            terminal=True,
            consoleSize={"height": 33, "width": 99},
        ),
    )
    made = world.system().init.config
    assert (made.cwd, made.user.uid, made.user.gid, made.user.additional_gids) == ("/srv", 5, 6, (7,))
    assert made.terminal
    assert world.system().init.console == (33, 99)


# ---- L10: stdio --------------------------------------------------------------------------------------------------


async def test_L10_pipes_without_a_terminal(world: World) -> None:
    await world.create("sleep", stdin=True)
    streams = world.backend.streams["c1", "init"]
    assert (streams.stdin is None, streams.stdout is None, streams.stderr is None) == (False, False, False)
    assert not streams.terminal


async def test_L10_no_stderr_with_a_terminal(world: World) -> None:
    await world.create("sleep", stdin=True, terminal=True)
    streams = world.backend.streams["c1", "init"]
    assert (streams.stdin is None, streams.stdout is None, streams.stderr is None) == (False, False, True)
    assert streams.terminal


@pytest.mark.parametrize("null_stdin", [False, True])
async def test_L10_cat_without_stdin_ends(world: World, null_stdin: bool) -> None:
    world.use(null_stdin=null_stdin)
    await world.create("cat")
    assert (await world.client.wait("c1")).exit_code == 0


async def test_L10_exec_without_stdin_reads_its_end(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("cat"))
    assert (await world.backend.wait_for("c1", State.EXIT_PROCESS)).exit_code == 0


async def test_L10_stdin_that_was_asked_for_stays_open(world: World) -> None:
    await world.create("cat", stdin=True)
    await world.clock.sleep(1000)
    assert world.states() == ["start"]
    await world.backend.write_stdin("c1", b"hello")
    assert (await world.client.wait("c1")).exit_code == 0
    assert world.backend.stdout("c1") == b"hello"


async def test_L10_stdin_is_closed_after_start_was_told(world: World) -> None:
    at_start: list[int] = []

    def count(info: StateInfo) -> None:
        if info.state is State.START:
            at_start.append(world.runtime.count("close_stdin"))

    world.plan.at("close_stdin", delay_s=5)
    world.backend.on_state = count
    await world.create("cat")
    await world.client.wait("c1")
    assert len(at_start) == 1


async def test_L10_failure_to_close_stdin_is_not_fatal(world: World) -> None:
    world.plan.at("close_stdin", error=FIRST)
    system = await world.create("cat")
    assert len(system.alive) == 1


async def test_L10_close_stdin_that_hangs_does_not_hold_up_create(world: World) -> None:
    world.plan.at("close_stdin", hang=True)
    system = await world.create("sleep")
    system.init.exit(3)
    assert (await world.client.wait("c1")).exit_code == 3


# ---- L11: the process, or its stdio, can't be had ----------------------------------------------------------------


@pytest.mark.parametrize("operation", ["create_process", "stdio"])
@pytest.mark.parametrize("after", [False, True])
async def test_L11_terminated_closed_first_error(world: World, operation: Any, after: bool) -> None:
    world.plan.at(operation, error=FIRST, after=after)
    with pytest.raises(RuntimeFailed) as raised:
        await world.create("sleep")
    assert raised.value is FIRST
    assert world.runtime.count("terminate") == 1
    assert world.states() == []
    assert not world.runtime.leftovers()


@pytest.mark.parametrize("operation", ["create_process", "stdio"])
async def test_L11_failed_terminate_is_logged(world: World, operation: Any, caplog: pytest.LogCaptureFixture) -> None:
    world.plan.at(operation, error=FIRST).at("terminate", error=SECOND)
    with pytest.raises(RuntimeFailed) as raised:
        await world.create("sleep")
    assert raised.value is FIRST
    assert "the second" in caplog.text
    world.leaves_something = True


async def test_L11_command_not_found_is_its_own_class(world: World) -> None:
    with pytest.raises(CommandNotFound):
        await world.create("no-such-program")
    assert not world.runtime.leftovers()


@pytest.mark.parametrize("operation", ["create_process", "stdio"])
async def test_L11_hanging_has_a_deadline(world: World, operation: Any) -> None:
    world.plan.at(operation, hang=True)
    with pytest.raises(OperationTimeout):
        await world.create("sleep")
    assert not world.runtime.leftovers()


async def test_L11_policy_does_not_restart_what_never_started(world: World) -> None:
    world.plan.at("create_process", error=FIRST)
    with pytest.raises(RuntimeFailed):
        await world.create("sleep", options=(policy("always"),))
    await world.clock.sleep(1000)
    assert world.runtime.count("create") == 1
    assert world.states() == []


# ---- L12: servicing ----------------------------------------------------------------------------------------------


async def test_L12_zero_returns_after_the_systems_own_exit(world: World) -> None:
    world.use(ends_with_init_s=40)
    before = world.clock.mono()
    await world.create("sleep", "20", options=(Servicing(),))
    assert world.clock.mono() - before == 60
    assert world.runtime.count("shutdown") == world.runtime.count("terminate") == 0
    assert not world.runtime.leftovers()


async def test_L12_waits_at_most_five_minutes(world: World) -> None:
    world.use(ends_with_init_s=math.inf)
    before = world.clock.mono()
    await world.create("true", options=(Servicing(),))
    assert world.clock.mono() - before == limits.SERVICING_EXIT_S == 300
    assert world.runtime.count("shutdown") == world.runtime.count("terminate") == 0
    assert world.runtime.leftovers().system_handles == ()
    world.leaves_something = True


async def test_L12_non_zero_warns_terminates_raises(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServicingFailed) as raised:
        await world.create("exit", "7", options=(Servicing(),))
    assert raised.value.exit_code == 7
    assert [record for record in caplog.records if record.levelno == logging.WARNING]
    assert world.runtime.count("terminate") == 1
    assert not world.runtime.leftovers()


async def test_L12_unknown_exit_is_a_failure(world: World) -> None:
    world.plan.at("exit_code", error=NotFound("gone"))
    with pytest.raises(ServicingFailed) as raised:
        await world.create("true", options=(Servicing(),))
    assert raised.value.exit_code == -1


async def test_L12_no_registration_no_streams_no_change(world: World) -> None:
    creating = asyncio.create_task(world.create("sleep", "20", options=(Servicing(), policy("always"))))
    await world.clock.settle()
    assert world.backend.attached == []
    await creating
    assert world.backend.attached == []
    assert world.runtime.count("stdio") == 0
    assert world.states() == []
    assert world.client.containers() == ()
    assert world.runtime.count("create") == 1


async def test_L12_longer_than_any_start(world: World) -> None:
    """A servicing process may take hours; the deadline of a start is not its deadline."""
    await world.create("sleep", str(limits.START_S * 60), options=(Servicing(),))


async def test_L12_cancelled_servicing_is_undone(world: World) -> None:
    creating = asyncio.create_task(world.create("sleep", options=(Servicing(),)))
    await world.clock.settle()
    creating.cancel()
    await asyncio.wait([creating])
    assert creating.cancelled()
    assert not world.runtime.leftovers()


# ---- L13: START, and the fastest of exits ------------------------------------------------------------------------


async def test_L13_order_of_the_start(world: World) -> None:
    order: list[str] = []

    def attached(container_id: str, process_id: str, streams: Streams) -> None:
        order.append(f"streams (registered: {container_id in world.client.containers()})")

    def told(info: StateInfo) -> None:
        order.append(str(info.state))

    world.backend.on_attach = attached
    world.backend.on_state = told
    await world.create("sleep")
    await world.clock.settle()
    assert order == ["streams (registered: True)", "start"]
    assert world.runtime.count("process.wait") == 1


async def test_L13_exit_before_create_process_returns(world: World) -> None:
    world.plan.at("create_process", after=True, delay_s=10)
    await world.create("exit", "5")
    ended = await world.client.wait("c1")
    await world.clock.settle()
    assert ended.exit_code == 5
    assert world.states() == ["start", "exit"]


async def test_L13_exit_while_the_streams_are_attached(world: World) -> None:
    async def slow(container_id: str, process_id: str, streams: Streams) -> None:
        world.system().init.exit(6)
        await world.clock.sleep(10)

    world.backend.on_attach = slow
    await world.create("sleep")
    assert (await world.client.wait("c1")).exit_code == 6
    await world.clock.settle()
    assert world.states() == ["start", "exit"]


async def test_L13_start_bears_pid_and_times(world: World) -> None:
    system = await world.create("sleep")
    started = await world.backend.wait_for("c1", State.START)
    assert (started.pid, started.process_id, started.generation, started.seq) == (system.init.pid, "init", 1, 1)
    assert (started.started_mono, started.started_at) == (world.clock.mono(), world.clock.wall())


async def test_L13_durations_survive_a_stepped_wall_clock(world: World) -> None:
    await world.create("sleep", "60")
    world.clock.set_wall(5.0)
    ended = await world.client.wait("c1")
    assert ended.finished_mono is not None
    assert ended.started_mono is not None
    assert ended.finished_mono - ended.started_mono == 60


# ---- L14: nobody takes the streams -------------------------------------------------------------------------------


async def test_L14_failed_attach_leaves_nothing_running(world: World) -> None:
    wrong = ValueError("no room for streams")
    world.backend.attach_error = wrong
    with pytest.raises(ValueError, match="no room") as raised:
        await world.create("sleep", options=(policy("always"),))
    assert raised.value is wrong
    assert world.client.containers() == ()
    assert not world.runtime.leftovers()


async def test_L14_neither_start_nor_exit_nor_restart(world: World) -> None:
    world.backend.attach_error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await world.create("sleep", options=(policy("always"),))
    await world.clock.sleep(1000)
    assert world.states() == []
    assert world.runtime.count("create") == 1


async def test_L14_error_of_our_own_tree(world: World) -> None:
    wrong = InvalidState("not now")
    world.backend.attach_error = wrong
    with pytest.raises(LightermanError) as raised:
        await world.create("sleep")
    assert raised.value is wrong


async def test_L14_raised_after_the_handles_are_closed(world: World) -> None:
    world.backend.attach_error = ValueError("no")
    world.plan.at("terminate", pending_s=4)
    before = world.clock.mono()
    with pytest.raises(ValueError, match="no"):
        await world.create("sleep")
    assert world.clock.mono() - before == 4
    assert not world.runtime.leftovers()


async def test_L14_attach_that_hangs_can_be_killed(world: World) -> None:
    world.backend.attach_hangs = True
    creating = asyncio.create_task(world.create("sleep"))
    await world.clock.settle()
    await world.client.terminate("c1")
    await asyncio.wait([creating])
    assert isinstance(creating.exception(), LightermanError)
    assert not world.runtime.leftovers()
    assert world.states() == []
