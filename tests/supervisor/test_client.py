"""The set of containers, and the operations that are no chapter of their own [L01-L03, L05]."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from lighterman import limits
from lighterman.errors import (
    AlreadyExists,
    AlreadyStopped,
    InvalidSpec,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    OperationTimeout,
    RuntimeFailed,
)
from lighterman.lifecycle.events import State, StateInfo
from lighterman.runtimes.base import Features
from lighterman.runtimes.fake.handles import FakeComputeSystem
from lighterman.runtimes.options import WithCheckpoint
from lighterman.spec import Resources
from lighterman.testing import WINDOWS
from supervisor.world import World, config, policy

FAILED = RuntimeFailed("it failed", runtime="fake", operation="some")

# ---- L01: calls back, and who waits for whom ---------------------------------------------------------------------


async def test_L01_backend_creates_same_id_anew_from_exit(world: World) -> None:
    async def create_again(info: StateInfo) -> None:
        if info.state is State.EXIT and len(world.backend.of("c1", State.EXIT)) == 1:
            await world.create("sleep")

    world.backend.on_state = create_again
    await world.create("true")
    await world.backend.wait_for("c1", State.START, count=2)
    assert world.states() == ["start", "exit", "start"]


@pytest.mark.parametrize("verb", ["stop", "terminate", "pause", "add_process", "stats", "pids", "signal"])
async def test_L01_backend_calls_back_from_start(world: World, verb: str) -> None:
    called: list[str] = []

    async def call_back(info: StateInfo) -> None:
        if info.state is not State.START:
            return
        client = world.client
        match verb:
            case "signal":
                await client.signal("c1", 18)
            case "add_process":
                await client.add_process("c1", "x", config("true"))
            case _:
                await getattr(client, verb)("c1")
        called.append(verb)

    world.backend.on_state = call_back
    await world.create("sleep")
    while not called:
        await world.clock.sleep(1)
    assert called == [verb]


async def test_L01_backend_that_waits_for_the_end_inside_an_event(world: World) -> None:
    ended: list[StateInfo] = []

    async def wait_inside(info: StateInfo) -> None:
        if info.state is State.START:
            await world.client.terminate("c1")
            ended.append(info)

    world.backend.on_state = wait_inside
    await world.create("sleep")
    assert (await world.client.wait("c1")).exit_code == 137
    await world.backend.wait_for("c1", State.EXIT)
    assert ended


async def test_L01_containers_never_wait_for_each_other(world: World) -> None:
    world.plan.at("create", id="slow", hang=True)
    world.plan.at("pause", id="stuck", hang=True)
    await world.create("sleep", id="stuck")
    creating = asyncio.create_task(world.create("sleep", id="slow"))
    pausing = asyncio.create_task(world.client.pause("stuck"))
    await world.clock.settle()
    before = world.clock.mono()
    await world.create("sleep", id="quick")
    await world.client.pause("quick")
    await world.client.resume("quick")
    await world.client.terminate("quick")
    assert world.clock.mono() == before
    for task in (creating, pausing):
        task.cancel()
    await asyncio.wait([creating, pausing])
    await world.client.terminate("stuck")


async def test_L01_terminate_does_not_wait_for_another_verb(world: World) -> None:
    world.plan.at("update_resources", hang=True)
    await world.create("sleep")
    updating = asyncio.create_task(world.client.update_resources("c1", Resources(pids_limit=5)))
    await world.clock.settle()
    before = world.clock.mono()
    await world.client.signal("c1", 18)
    await world.client.terminate("c1")
    assert world.clock.mono() == before
    with pytest.raises(AlreadyStopped):
        await updating


async def test_L01_verbs_of_one_container_in_order(world: World) -> None:
    world.plan.at("pause", delay_s=5)
    await world.create("sleep")
    pausing = asyncio.create_task(world.client.pause("c1"))
    await world.clock.settle()
    await world.client.resume("c1")
    await pausing
    assert world.states() == ["start", "pause", "resume"]


async def test_L01_id_is_reserved_before_anything_else(world: World) -> None:
    world.plan.at("create", delay_s=10, nth=1)
    first = asyncio.create_task(world.create("sleep"))
    await asyncio.sleep(0)
    with pytest.raises(AlreadyExists):
        await world.create("sleep")
    await first
    assert world.runtime.count("create") == 1


# ---- L02: create -------------------------------------------------------------------------------------------------


async def test_L02_create_starts_it(world: World) -> None:
    await world.create("sleep")
    assert world.client.containers() == ("c1",)
    started = await world.backend.wait_for("c1", State.START)
    assert started.pid == world.system().init.pid
    assert started.started_at == world.clock.wall()


@pytest.mark.parametrize("operation", ["create", "start", "create_process", "stdio"])
async def test_L02_failure_leaves_nothing(world: World, operation: str) -> None:
    world.plan.at(operation, error=FAILED)  # type: ignore[arg-type]
    with pytest.raises(RuntimeFailed) as raised:
        await world.create("sleep")
    assert raised.value is FAILED
    assert world.client.containers() == ()
    assert not world.runtime.leftovers()
    assert world.states() == []


async def test_L02_failed_id_can_be_used_at_once(world: World) -> None:
    world.plan.at("start", error=FAILED, nth=1)
    with pytest.raises(RuntimeFailed):
        await world.create("sleep")
    await world.create("sleep")
    assert world.client.containers() == ("c1",)


async def test_L02_id_in_use_already_exists(world: World) -> None:
    await world.create("sleep")
    with pytest.raises(AlreadyExists):
        await world.create("sleep")
    assert world.runtime.count("create") == 1


async def test_L02_id_in_use_in_the_runtime_already_exists(world: World) -> None:
    stranger = await world.runtime.create("c1", world.spec("sleep"))
    with pytest.raises(AlreadyExists):
        await world.create("sleep")
    assert world.client.containers() == ()
    await stranger.close()


async def cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize("operation", ["create", "start", "create_process", "stdio"])
@pytest.mark.parametrize("after", [False, True])
async def test_L02_cancelled_create_is_undone_first(world: World, operation: str, after: bool) -> None:
    world.plan.at(operation, hang=True, after=after)  # type: ignore[arg-type]
    creating: asyncio.Task[object] = asyncio.create_task(world.create("sleep"))
    await world.clock.settle()
    await cancel(creating)
    assert world.client.containers() == ()
    assert not world.runtime.leftovers()
    assert "start" not in world.states()


async def test_L02_cancelled_create_during_attach_is_undone(world: World) -> None:
    world.backend.attach_hangs = True
    creating: asyncio.Task[object] = asyncio.create_task(world.create("sleep"))
    await world.clock.settle()
    await cancel(creating)
    assert world.client.containers() == ()
    assert not world.runtime.leftovers()
    assert world.states() == []


async def test_L02_cancelled_create_waits_no_longer_than_its_limit(still: World) -> None:
    still.plan.at("start", hang=True)
    still.plan.at("terminate", hang=True)
    creating = asyncio.create_task(still.create("sleep"))
    await still.clock.advance(0)
    creating.cancel()
    await still.clock.advance(limits.CANCEL_S - 0.1)
    assert not creating.done()
    await still.clock.advance(0.2)
    assert creating.cancelled()
    still.leaves_something = True


@pytest.mark.parametrize("how", ["cancel", "terminate", "stop", "close"])
async def test_L02_create_that_waits_for_an_old_clean_up_can_be_given_up(world: World, how: str) -> None:
    world.plan.at("shutdown", delay_s=60, nth=1)
    system = await world.create("sleep")
    system.init.exit(0)
    await world.client.wait("c1")
    creating: asyncio.Task[object] = asyncio.create_task(world.create("sleep"))
    await world.clock.settle()
    if how == "cancel":
        creating.cancel()
    else:
        await (world.client.close() if how == "close" else getattr(world.client, how)("c1"))
    await asyncio.wait([creating])
    await world.clock.sleep(1000)
    assert creating.cancelled() or creating.exception() is not None
    assert world.runtime.count("create") == 1
    assert world.client.containers() == ()


# ---- L03: add_process --------------------------------------------------------------------------------------------


async def test_L03_exec_runs_and_returns_its_pid(world: World) -> None:
    await world.create("sleep")
    pid = await world.client.add_process("c1", "x", config("echo", "hi"))
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert (ended.process_id, ended.pid, ended.exit_code) == ("x", pid, 0)
    assert world.backend.stdout("c1", "x") == b"hi\n"
    assert world.states() == ["start", "start-process", "exit-process"]


async def test_L03_cwd_falls_back_to_the_inits(world: World) -> None:
    from lighterman.spec import ProcessConfig, Spec

    await world.client.create("c1", Spec(process=ProcessConfig(args=("sleep",), cwd="/srv")))
    await world.client.add_process("c1", "x", ProcessConfig(args=("sleep",), cwd=""))
    await world.client.add_process("c1", "y", ProcessConfig(args=("sleep",), cwd="/tmp"))
    processes = world.system().processes
    assert [processes[name].config.cwd for name in ("init", "x", "y")] == ["/srv", "/srv", "/tmp"]


async def test_L03_same_name_while_it_runs_already_exists(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep", "5"))
    with pytest.raises(AlreadyExists):
        await world.client.add_process("c1", "x", config("true"))
    with pytest.raises(AlreadyExists):
        await world.client.add_process("c1", "init", config("true"))
    await world.backend.wait_for("c1", State.EXIT_PROCESS)
    await world.client.add_process("c1", "x", config("true"))
    await world.backend.wait_for("c1", State.EXIT_PROCESS, count=2)


async def test_L03_same_name_while_it_is_being_started_already_exists(world: World) -> None:
    await world.create("sleep")
    world.plan.at("create_process", process="x", delay_s=3)
    first = asyncio.create_task(world.client.add_process("c1", "x", config("sleep")))
    await asyncio.sleep(0)
    with pytest.raises(AlreadyExists):
        await world.client.add_process("c1", "x", config("sleep"))
    await first


@pytest.mark.parametrize("operation", ["create_process", "stdio"])
async def test_L03_failed_exec_leaves_its_name_free(world: World, operation: str) -> None:
    await world.create("sleep")
    world.plan.at(operation, process="x", error=FAILED, nth=1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeFailed):
        await world.client.add_process("c1", "x", config("sleep"))
    assert [process.name for process in world.system().alive] == ["init"]
    await world.client.add_process("c1", "x", config("true"))
    await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert world.states() == ["start", "start-process", "exit-process"]


async def test_L03_exec_whose_streams_nobody_takes_is_killed(world: World) -> None:
    await world.create("sleep")
    world.backend.attach_error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await world.client.add_process("c1", "x", config("sleep"))
    assert [process.name for process in world.system().alive] == ["init"]
    assert world.states() == ["start"]


async def test_L03_exec_in_unknown_or_ended_container(world: World) -> None:
    with pytest.raises(NotFound):
        await world.client.add_process("nobody", "x", config("true"))


async def test_L03_cancelled_exec_goes_on(world: World) -> None:
    await world.create("sleep")
    world.plan.at("create_process", process="x", delay_s=3)
    adding = asyncio.create_task(world.client.add_process("c1", "x", config("sleep", "1")))
    await world.clock.settle()
    adding.cancel()
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert ended.process_id == "x"


async def test_L03_exec_start_that_hangs_has_a_deadline(world: World) -> None:
    await world.create("sleep")
    world.plan.at("create_process", process="x", hang=True)
    before = world.clock.mono()
    with pytest.raises(OperationTimeout):
        await world.client.add_process("c1", "x", config("sleep"))
    assert world.clock.mono() - before == limits.EXEC_START_S


# ---- L05: resize, and its neighbours in the table ----------------------------------------------------------------


async def test_L05_resize_init_and_exec(world: World) -> None:
    await world.create("sleep", terminal=True)
    await world.client.add_process("c1", "x", config("sleep", terminal=True))
    await world.client.resize("c1", "init", height=24, width=80)
    await world.client.resize("c1", "x", height=50, width=132)
    processes = world.system().processes
    assert (processes["init"].console, processes["x"].console) == ((24, 80), (50, 132))


async def test_L05_resize_without_terminal_is_invalid(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("sleep"))
    for name in ("init", "x"):
        with pytest.raises(InvalidState):
            await world.client.resize("c1", name, height=24, width=80)


async def test_L05_resize_takes_names_only(world: World) -> None:
    with pytest.raises(TypeError):
        await world.client.resize("c1", "init", 24, 80)  # type: ignore[call-arg]


@pytest.mark.parametrize(("height", "width"), [(0, 80), (24, 0), (65536, 80), (24, -1)])
async def test_L05_impossible_size_is_invalid(world: World, height: int, width: int) -> None:
    await world.create("sleep", terminal=True)
    with pytest.raises(InvalidSpec):
        await world.client.resize("c1", "init", height=height, width=width)


async def test_L05_resize_unknown_process_not_found(world: World) -> None:
    await world.create("sleep", terminal=True)
    with pytest.raises(NotFound):
        await world.client.resize("c1", "x", height=24, width=80)


async def test_console_size_is_set_before_the_program_starts(world: World) -> None:
    system = await world.create("sleep", terminal=True, size=(30, 100))
    assert system.init.console == (30, 100)


async def test_pause_and_resume_are_told(world: World) -> None:
    await world.create("sleep")
    await world.client.pause("c1")
    assert world.system().frozen
    with pytest.raises(InvalidState):
        await world.client.pause("c1")
    await world.client.resume("c1")
    with pytest.raises(InvalidState):
        await world.client.resume("c1")
    await world.clock.settle()
    assert world.states() == ["start", "pause", "resume"]


async def test_failed_pause_is_not_told(world: World) -> None:
    await world.create("sleep")
    world.plan.at("pause", error=FAILED)
    with pytest.raises(RuntimeFailed):
        await world.client.pause("c1")
    await world.clock.settle()
    assert world.states() == ["start"]


@pytest.mark.parametrize("verb", ["pause", "resume", "stats", "pids", "summary", "stop", "terminate", "wait"])
async def test_unknown_container_not_found(world: World, verb: str) -> None:
    with pytest.raises(NotFound):
        await getattr(world.client, verb)("nobody")


async def test_what_the_runtime_lacks_is_not_supported(world: World) -> None:
    world.use(features=Features(pause=False, update_resources=False, statistics=False, checkpoint=False))
    await world.create("sleep")
    with pytest.raises(NotSupported):
        await world.client.pause("c1")
    with pytest.raises(NotSupported):
        await world.client.update_resources("c1", Resources(pids_limit=5))
    with pytest.raises(NotSupported):
        await world.client.stats("c1")


async def test_pause_on_windows_is_not_supported(world: World) -> None:
    world.use(features=WINDOWS)
    await world.create("sleep")
    with pytest.raises(NotSupported):
        await world.client.pause("c1")


async def test_stats_pids_summary(world: World) -> None:
    await world.create("sleep")
    pid = await world.client.add_process("c1", "x", config("cat", stdin=True))
    assert (await world.client.stats("c1")).pids == 2
    assert set(await world.client.pids("c1")) == {world.system().init.pid, pid}
    assert [(each.pid, each.image_name) for each in await world.client.summary("c1")] == [
        (world.system().init.pid, "sleep"),
        (pid, "cat"),
    ]


async def test_update_resources_is_applied(world: World) -> None:
    await world.create("sleep")
    await world.client.update_resources("c1", Resources(memory_bytes=1 << 20))
    assert world.system().resources == [Resources(memory_bytes=1 << 20)]


async def test_cancelled_verb_goes_on(world: World) -> None:
    await world.create("sleep")
    world.plan.at("pause", delay_s=3)
    pausing = asyncio.create_task(world.client.pause("c1"))
    await world.clock.settle()
    pausing.cancel()
    await world.backend.wait_for("c1", State.PAUSE)
    assert world.system().frozen


async def test_checkpoint_ends_it_and_create_starts_from_it(world: World, tmp_path: object) -> None:
    directory = str(tmp_path)
    await world.create("sleep")
    await world.client.create_checkpoint("c1", "one", directory)
    await world.backend.wait_for("c1", State.EXIT)
    assert await world.client.list_checkpoints(directory) == ("one",)
    await world.create("sleep", options=(WithCheckpoint("one", directory),))
    assert world.runtime.count("restore") == 1
    assert world.runtime.count("create_process") == 1
    await world.client.delete_checkpoint("one", directory)
    assert await world.client.list_checkpoints(directory) == ()


async def test_start_from_a_checkpoint_that_is_told_is_not_undone_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.runtime.checkpoints["/checkpoints", "one"] = config("sleep")
    order: list[str] = []

    def begun(_: FakeComputeSystem) -> Callable[[], Awaitable[None]]:
        order.append("begun")

        async def in_safety() -> None:
            order.append("in safety")

        return in_safety

    async def hear(info: StateInfo) -> None:
        order.append(info.state)

    monkeypatch.setattr(FakeComputeSystem, "begun", begun)
    world.backend.on_state = hear
    world.backend.attach_error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await world.create("sleep", options=(WithCheckpoint("one", "/checkpoints"),))
    assert order == []
    world.backend.attach_error = None
    system = await world.create("sleep", options=(WithCheckpoint("one", "/checkpoints"),))
    # However soon it ends.
    system.init.exit(0)
    await world.backend.wait_for("c1", State.EXIT)
    assert order == ["begun", "start", "in safety", "exit"]


async def test_checkpointed_one_ends_for_good_whatever_its_policy(world: World, tmp_path: object) -> None:
    await world.create("sleep", options=(policy("always"),))
    await world.client.create_checkpoint("c1", "one", str(tmp_path))
    await world.backend.wait_for("c1", State.EXIT)
    assert world.states() == ["start", "exit"]
    assert await world.client.list_checkpoints(str(tmp_path)) == ("one",)


async def test_checkpoint_whose_answer_comes_after_the_end_is_made(world: World, tmp_path: object) -> None:
    system = await world.create("sleep")
    world.plan.at("checkpoint", delay_s=5)
    making = asyncio.create_task(world.client.create_checkpoint("c1", "one", str(tmp_path), leave_running=True))
    await world.clock.settle()
    system.init.exit(0)
    await world.client.wait("c1")
    # The fake refuses it then; either way the answer is the runtime's, and not that the verb was cut short.
    with pytest.raises(LightermanError) as refused:
        await making
    assert "ended meanwhile" not in str(refused.value)
    assert await world.client.list_checkpoints(str(tmp_path)) == ()


async def test_failed_checkpoint_is_no_stop(world: World, tmp_path: object) -> None:
    world.plan.at("checkpoint", error=FAILED)
    system = await world.create("sleep", options=(policy("always"),))
    with pytest.raises(RuntimeFailed):
        await world.client.create_checkpoint("c1", "one", str(tmp_path))
    system.init.exit(0)
    await world.backend.wait_for("c1", State.START, count=2)


async def test_failed_checkpoint_takes_back_no_stop_made_meanwhile(world: World, tmp_path: object) -> None:
    world.plan.at("checkpoint", delay_s=5, error=FAILED)
    system = await world.create("ignore-term", options=(policy("always"),))
    making = asyncio.create_task(world.client.create_checkpoint("c1", "one", str(tmp_path)))
    await world.clock.settle()
    await world.client.signal("c1", 15)
    with pytest.raises(RuntimeFailed):
        await making
    system.init.exit(0)
    await world.client.wait("c1")
    assert world.states() == ["start", "exit"]


async def test_cancelled_checkpoint_is_made_all_the_same(world: World, tmp_path: object) -> None:
    await world.create("sleep")
    world.plan.at("checkpoint", delay_s=5)
    making = asyncio.create_task(world.client.create_checkpoint("c1", "one", str(tmp_path), leave_running=True))
    await world.clock.settle()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    await world.clock.sleep(10)
    assert await world.client.list_checkpoints(str(tmp_path)) == ("one",)
    assert world.client.containers() == ("c1",)


async def test_checkpoint_leaves_it_running(world: World, tmp_path: object) -> None:
    await world.create("sleep")
    await world.client.create_checkpoint("c1", "one", str(tmp_path), leave_running=True)
    assert world.client.containers() == ("c1",)
    assert len(world.system().alive) == 1


async def test_failed_checkpoint_leaves_no_name(world: World, tmp_path: object) -> None:
    world.plan.at("checkpoint", error=FAILED)
    await world.create("sleep")
    with pytest.raises(RuntimeFailed):
        await world.client.create_checkpoint("c1", "one", str(tmp_path))
    assert await world.client.list_checkpoints(str(tmp_path)) == ()


async def test_leaving_the_client_ends_nothing(world: World) -> None:
    system = await world.create("sleep", options=(policy("always"),))
    await world.client.close()
    await world.clock.sleep(1000)
    assert [process.name for process in system.alive] == ["init"]
    assert world.runtime.count("terminate") == world.runtime.count("shutdown") == world.runtime.count("kill") == 0
    assert world.states() == ["start"]
    world.leaves_something = True


async def test_closing_the_client_frees_who_waits(world: World) -> None:
    await world.create("sleep")
    waiting = asyncio.create_task(world.client.wait("c1"))
    await world.clock.settle()
    await world.client.close()
    await asyncio.wait([waiting])
    assert waiting.done()
    assert waiting.exception() is not None
    world.leaves_something = True


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("verb", ["create", "restore", "pause", "exec"])
async def test_closing_the_client_in_any_moment_of_a_verb_frees_who_asked(world: World, verb: str, turns: int) -> None:
    if verb != "create":
        await world.create("sleep")
        await world.clock.settle()
    if verb == "restore":
        await world.engine_dies()
    asked: Coroutine[Any, Any, object]
    match verb:
        case "create":
            asked = world.client.create("c1", world.spec("sleep"))
        case "restore":
            asked = world.client.restore("c1", spec=world.spec("sleep"))
        case "pause":
            asked = world.client.pause("c1")
        case _:
            asked = world.client.add_process("c1", "x", config("sleep"))
    asking = asyncio.create_task(asked)
    for _ in range(turns):
        await asyncio.sleep(0)
    await world.client.close()
    await asyncio.wait([asking])
    assert world.client.containers() == ()
    world.leaves_something = True


@pytest.mark.parametrize(
    ("operation", "verb"),
    [
        ("pause", "pause"),
        ("statistics", "stats"),
        ("pids", "pids"),
        ("process_list", "summary"),
    ],
)
async def test_every_verb_has_a_deadline(world: World, operation: Any, verb: str) -> None:
    world.plan.at(operation, hang=True)
    await world.create("sleep")
    before = world.clock.mono()
    with pytest.raises(OperationTimeout):
        await getattr(world.client, verb)("c1")
    assert world.clock.mono() - before == limits.RUNTIME_CALL_S


async def test_verb_that_hangs_does_not_hold_up_the_next(world: World) -> None:
    world.plan.at("update_resources", hang=True)
    await world.create("sleep")
    updating = asyncio.create_task(world.client.update_resources("c1", Resources(pids_limit=5)))
    await asyncio.sleep(0)
    await world.client.pause("c1")
    with pytest.raises(OperationTimeout):
        await updating


async def test_pause_without_an_answer_leaves_resume_possible(world: World) -> None:
    """Whether it is frozen nobody knows; the runtime is asked."""
    world.plan.at("pause", hang=True, after=True)
    system = await world.create("sleep")
    with pytest.raises(OperationTimeout):
        await world.client.pause("c1")
    assert system.frozen
    await world.client.stop("c1", grace_s=5)
    assert (await world.backend.wait_for("c1", State.EXIT)).signal == 15


async def test_signal_that_hangs_has_a_deadline(world: World) -> None:
    world.plan.at("kill", hang=True)
    await world.create("sleep")
    with pytest.raises(OperationTimeout):
        await world.client.signal("c1", 2)


async def test_stop_whose_signal_hangs_kills_after_the_grace(world: World) -> None:
    world.plan.at("kill", hang=True)
    await world.create("sleep", options=(policy("always"),))
    before = world.clock.mono()
    await world.client.stop("c1", grace_s=4)
    assert world.clock.mono() - before == 4
    assert (await world.backend.wait_for("c1", State.EXIT)).signal == 9


async def test_every_verb_ends_when_its_container_does(world: World) -> None:
    world.plan.at("pause", hang=True)
    world.plan.at("create_process", process="x", hang=True)
    system = await world.create("sleep")
    verbs = [
        asyncio.create_task(world.client.pause("c1")),
        asyncio.create_task(world.client.update_resources("c1", Resources(pids_limit=1))),
        asyncio.create_task(world.client.add_process("c1", "x", config("sleep"))),
        asyncio.create_task(world.client.stop("c1", grace_s=math.inf)),
    ]
    await world.clock.settle()
    system.init.exit(0)
    done, pending = await asyncio.wait(verbs, timeout=None)
    assert not pending
    assert all(isinstance(task.exception(), AlreadyStopped | None) for task in done)
