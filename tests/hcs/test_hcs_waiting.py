"""Waiting, faults, races: hcs.md's rows on the double, each by script."""

from __future__ import annotations

import asyncio

import pytest

from hcs.world import HcsWorld, all_of, end, process
from lighterman.errors import (
    AlreadyClosed,
    AlreadyExists,
    AlreadyStopped,
    BrokenPipe,
    CommandNotExecutable,
    CommandNotFound,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    OperationPending,
    OperationTimeout,
    RuntimeFailed,
)
from lighterman.runtimes.hcs import callbacks
from lighterman.runtimes.hcs.failures import EndedOrUnknown, ServiceLost, UnexpectedExit, code_behind
from lighterman.testing import FakeClock
from support import eventually

UNEXPECTED_EXIT = 0xC0370106
DISCONNECT = 0x01000000


# ---- completions -------------------------------------------------------------------------------------------------


async def test_completion_that_comes_late(world: HcsWorld) -> None:
    world.core.script("HcsCreateComputeSystem", completion_ms=80)
    world.core.script("HcsStartComputeSystem", completion_ms=80)
    system, init = await world.started("exit", "0")
    await init.wait()
    await end(system, init)


async def test_success_without_pending(world: HcsWorld) -> None:
    world.core.script("HcsCreateComputeSystem", completion="now")
    world.core.script("HcsStartComputeSystem", completion="now")
    world.core.script("HcsTerminateComputeSystem", completion="now")
    system, init = await world.started("sleep")
    # "Done" is no more than "asked": only the notice of the exit means that it is gone.
    with pytest.raises((OperationPending, AlreadyStopped)):
        await system.terminate()
    await system.wait()
    await init.close()
    await system.close()


async def test_completion_inside_of_the_registration(world: HcsWorld) -> None:
    world.core.set("inside_register", 1)
    world.core.script("HcsRegisterComputeSystemCallback", delay_ms=60)
    world.core.script("HcsRegisterProcessCallback", delay_ms=60)
    system, init = await world.started("exit", "7")
    await init.wait()
    assert (await init.exit_code()).code == 7
    await end(system, init)


async def test_exit_before_create_process_returns(either: HcsWorld) -> None:
    either.core.set("exit_before_create_returns_ms", 100)
    system, init = await either.started("exit", "7")
    await init.wait()
    assert (await init.exit_code()).code == 7
    await end(system, init)


@pytest.mark.parametrize("function", ["HcsCreateComputeSystem", "HcsStartComputeSystem"])
async def test_completion_that_never_comes_is_late(function: str, either: HcsWorld) -> None:
    clock = FakeClock()
    either.core.script(function, completion="never")
    runtime = either.runtime(clock=clock)
    asked = asyncio.create_task(either.started("sleep", runtime=runtime))
    await eventually(lambda: function in either.core.functions())
    await eventually(lambda: clock.pending)
    await clock.advance(239)
    assert not asked.done()
    ticking = asyncio.create_task(_tick(clock))
    with pytest.raises(OperationTimeout, match="no answer in 240 s"):
        await asked
    ticking.cancel()
    if either.name == "computecore":
        # The call goes on on its thread: nothing is torn down under it.
        either.core.settle()
        await eventually(lambda: "operation" not in either.core.leaks())
        if function == "HcsCreateComputeSystem":
            await eventually(lambda: "not closed" not in either.core.leaks())
    # The double's system stays; who asked for the start is the one to end what was created.
    either.leaves_something = either.name == "computecore" or function == "HcsStartComputeSystem"


async def _tick(clock: FakeClock) -> None:
    while True:
        await clock.advance(1)
        await asyncio.sleep(0.01)


async def test_create_that_is_late_is_ended_and_closed(world: HcsWorld) -> None:
    clock = FakeClock()
    world.core.script("HcsCreateComputeSystem", completion="never")
    asked = asyncio.create_task(world.runtime(clock=clock).create("c1", world.spec("sleep")))
    await eventually(lambda: clock.pending)
    await clock.advance(240)
    with pytest.raises(OperationTimeout):
        await asked
    assert world.core.functions()[-3:] == [
        "HcsTerminateComputeSystem",
        "HcsUnregisterComputeSystemCallback",
        "HcsCloseComputeSystem",
    ]


async def test_cancelled_create_leaves_nothing(either: HcsWorld) -> None:
    either.core.script("HcsCreateComputeSystem", nth=1, delay_ms=100)
    runtime = either.runtime()
    asked = asyncio.create_task(runtime.create("c1", either.spec("sleep")))
    await eventually(lambda: "HcsCreateComputeSystem" in either.core.functions())
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await eventually(lambda: "HcsCloseComputeSystem" in either.core.functions())


async def test_cancelled_create_process_leaves_none(either: HcsWorld) -> None:
    system, init = await either.started("sleep")
    either.core.script("HcsCreateProcess", delay_ms=100)
    asked = asyncio.create_task(system.create_process(process("sleep"), exec_id="x"))
    await eventually(lambda: either.core.functions().count("HcsCreateProcess") == 2)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked

    async def only_the_init() -> bool:
        return await system.pids() == [init.pid]

    await eventually(lambda: "HcsCloseProcess" in either.core.functions())
    await eventually(only_the_init)
    await end(system, init)


@pytest.mark.parametrize("status", [UNEXPECTED_EXIT, 0xC0370100])
async def test_start_that_completes_with_an_unexpected_exit(status: int, either: HcsWorld) -> None:
    code = status if either.name == "vmcompute" else status & 0x8FFFFFFF
    either.core.script("HcsStartComputeSystem", status=hex(status))
    system = await either.runtime().create("c1", either.spec("sleep"))
    with pytest.raises(UnexpectedExit) as raised:
        await system.start()
    assert code_behind(raised.value) in (status, code)
    await system.close()


async def test_exit_while_starting(world: HcsWorld) -> None:
    world.core.script("HcsStartComputeSystem", completion="never")
    system = await world.runtime().create("c1", world.spec("sleep"))
    starting = asyncio.create_task(system.start())
    await eventually(lambda: "HcsStartComputeSystem" in world.core.functions())
    world.core.notify("c1", 1, status=UNEXPECTED_EXIT)
    with pytest.raises(UnexpectedExit, match="ended meanwhile"):
        await starting
    with pytest.raises(UnexpectedExit):
        await system.wait()
    world.leaves_something = True
    await system.close()


async def test_completion_wins_over_the_exit_that_follows(world: HcsWorld) -> None:
    world.core.script("HcsStartComputeSystem", completion="never")
    system = await world.runtime().create("c1", world.spec("sleep"))
    starting = asyncio.create_task(system.start())
    await eventually(lambda: "HcsStartComputeSystem" in world.core.functions())
    world.core.notify("c1", 3)
    world.core.notify("c1", 1)
    await starting
    world.leaves_something = True
    await system.close()


async def test_create_completes_with_a_failure(world: HcsWorld) -> None:
    world.core.script("HcsCreateComputeSystem", status="0xC0370112")
    with pytest.raises(RuntimeFailed, match="layer's format"):
        await world.runtime().create("c1", world.spec("sleep"))


@pytest.mark.parametrize("function", ["HcsRegisterComputeSystemCallback", "HcsRegisterProcessCallback"])
async def test_failing_registration_leaves_nothing(function: str, world: HcsWorld) -> None:
    world.core.script(function, code="0x800705AA")
    with pytest.raises(RuntimeFailed):
        await world.started("sleep")
    if function == "HcsRegisterProcessCallback":
        world.leaves_something = True  # the system itself: that is the lifecycle's to end
        assert "std handle" not in world.core.leaks()
        assert "process" not in world.core.leaks()


# ---- notifications -----------------------------------------------------------------------------------------------


async def test_unknown_flagged_and_repeated_notifications(world: HcsWorld) -> None:
    system, init = await world.started("sleep")
    for kind in (0, 0x42, 0x7, 0xA, 0xE, 0x80000042):
        world.core.notify("c1", kind, data="{not json")
    for _ in range(3):
        world.core.notify("c1", 3)
        world.core.notify("c1", 0x10000)
    assert not init.has_ended
    await end(system, init)


async def test_exit_told_twice_ends_every_waiter_once(either: HcsWorld) -> None:
    system, init = await either.started("sleep")
    waiters = [asyncio.create_task(init.wait()) for _ in range(5)]
    systems = [asyncio.create_task(system.wait()) for _ in range(5)]
    with pytest.raises(OperationPending):
        await system.terminate()
    await asyncio.gather(*waiters, *systems)
    await asyncio.gather(init.wait(), system.wait())
    await end(system, init)


async def test_service_disconnect_fails_every_wait(world: HcsWorld) -> None:
    system, init = await world.started("sleep")
    waiting = [asyncio.create_task(each) for each in (system.wait(), init.wait())]
    world.core.notify("c1", DISCONNECT)
    world.core.notify("c1", DISCONNECT, pid=init.pid)
    for each in waiting:
        with pytest.raises(ServiceLost):
            await each
    with pytest.raises(ServiceLost):
        await init.exit_code()
    world.leaves_something = True
    await init.close()
    await system.close()


async def test_close_wakes_who_waits(either: HcsWorld) -> None:
    system, init = await either.started("sleep")
    waiting = [asyncio.create_task(each) for each in (system.wait(), init.wait())]
    await asyncio.sleep(0)
    either.leaves_something = True
    await init.close()
    await system.close()
    for each in waiting:
        with pytest.raises(AlreadyClosed):
            await each
    for call in (system.start, system.terminate, system.statistics, init.close_stdin):
        with pytest.raises(AlreadyClosed):
            await call()


async def test_close_waits_for_a_call_that_runs(world: HcsWorld) -> None:
    system, init = await world.started("exit", "0")
    await init.wait()
    world.core.script("HcsGetComputeSystemProperties", hang=1)
    asking = asyncio.create_task(system.statistics())
    await eventually(lambda: "HcsGetComputeSystemProperties" in world.core.functions())
    with pytest.raises(OperationPending):
        await system.terminate()
    await system.wait()
    closing = asyncio.create_task(system.close())
    await eventually(lambda: system._closed)
    assert "HcsCloseComputeSystem" not in world.core.functions()
    world.core.release("HcsGetComputeSystemProperties")
    await closing
    with pytest.raises(AlreadyStopped):
        await asking
    await init.close()


async def test_pause_slots_are_used_again(world: HcsWorld) -> None:
    runtime = world.runtime(hyper_v=True)
    system, init = await world.started("sleep", runtime=runtime, hyper_v=True)
    for _ in range(3):
        await system.pause()
        await system.resume()
    world.core.script("HcsPauseComputeSystem", status="0xC0370105")
    with pytest.raises(InvalidState):
        await system.pause()
    await end(system, init)


# ---- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 3, 255, 256, 0x80000000, 0xC000013A, 0xFFFFFFFF])
@pytest.mark.parametrize("told", [True, False])
async def test_exit_codes_have_32_bits(code: int, told: bool, world: HcsWorld) -> None:
    if not told:
        world.core.set("no_exit_data", 1)
    system, init = await world.started("exit", str(code))
    await init.wait()
    assert (await init.exit_code()).code == code
    assert ("HcsGetProcessProperties" in world.core.functions()) is not told
    await end(system, init)


async def test_failed_wait_of_the_service_is_an_unknown_code(either: HcsWorld) -> None:
    either.core.set("last_wait", -1)
    system, init = await either.started("exit", "0")
    await init.wait()
    with pytest.raises(NotFound, match="not known"):
        await init.exit_code()
    await end(system, init)


async def test_malformed_status_in_the_notice_is_asked_for_again(world: HcsWorld) -> None:
    world.core.set("no_process_exit", 1)
    system, init = await world.started("exit", "5")
    await eventually(lambda: world.core.console("c1", init.pid)[0] == -1)
    world.core.notify("c1", 0x10000, pid=init.pid, data="{broken")
    await init.wait()
    assert (await init.exit_code()).code == 5
    await end(system, init)


async def test_malformed_status_everywhere_is_an_unknown_code(world: HcsWorld) -> None:
    world.core.set("no_exit_data", 1)
    world.core.script("HcsGetProcessProperties", out="{broken")
    system, init = await world.started("exit", "5")
    with pytest.raises(RuntimeFailed, match="can't be read"):
        await init.wait()
    with pytest.raises(RuntimeFailed):
        await init.exit_code()
    await end(system, init)


async def test_crash_of_the_utility_vm_is_a_broken_pipe(either: HcsWorld) -> None:
    system, init = await either.started("sleep")
    await asyncio.to_thread(either.core.crash, "c1")
    with pytest.raises(BrokenPipe):
        await init.wait()
    with pytest.raises(BrokenPipe):
        await init.exit_code()
    with pytest.raises(UnexpectedExit):
        await system.wait()
    with pytest.raises(AlreadyStopped):
        await system.terminate()
    await init.close()
    await system.close()


@pytest.mark.parametrize("code", ["0x8007006D"])
async def test_broken_pipe_of_the_property_query(code: str, world: HcsWorld) -> None:
    world.core.set("no_exit_data", 1)
    world.core.script("HcsGetProcessProperties", code=code)
    system, init = await world.started("exit", "5")
    with pytest.raises(BrokenPipe):
        await init.wait()
    await end(system, init)


@pytest.mark.parametrize("code", ["0xC0370110", "0x80370110", "0x80070490", "0xC037010E", "0x8037010E"])
@pytest.mark.parametrize("verb", ["Shutdown", "Terminate"])
async def test_already_stopped_in_every_form(verb: str, code: str, world: HcsWorld) -> None:
    system, init = await world.started("sleep")
    world.core.script(f"Hcs{verb}ComputeSystem", code=code, times=1)
    with pytest.raises(AlreadyStopped):
        await (system.shutdown() if verb == "Shutdown" else system.terminate())
    await end(system, init)


async def test_procedure_not_found_is_no_already_stopped(world: HcsWorld) -> None:
    system, init = await world.started("sleep")
    world.core.script("HcsShutdownComputeSystem", code="0x8007007F")
    with pytest.raises(RuntimeFailed) as raised:
        await system.shutdown()
    assert not isinstance(raised.value, AlreadyStopped)
    await end(system, init)


@pytest.mark.parametrize("code", ["0x80070490", "0x8037011F", "0x80070005", "0xC037010E"])
async def test_kill_of_what_has_ended_is_no_error(code: str, world: HcsWorld) -> None:
    system, init = await world.started("sleep")
    world.core.script("HcsTerminateProcess", code=code, act=1)
    await init.kill(9)
    await init.wait()
    await end(system, init)


async def test_kill_whose_end_is_never_told(world: HcsWorld) -> None:
    world.core.set("no_process_exit", 1)
    system, init = await world.started("sleep")
    world.core.script("HcsTerminateProcess", code="0xC0370105", act=1)
    with pytest.raises(InvalidState):
        await init.kill(9)
    await init.wait()
    with pytest.raises(NotFound):
        await init.exit_code()
    await end(system, init)


async def test_kill_goes_through_a_handle_of_its_own(world: HcsWorld) -> None:
    system, init = await world.started("sleep")
    await init.kill(9)
    await init.kill(9)
    await init.wait()
    names = world.core.functions()
    assert names.count("HcsTerminateProcess") == 1
    assert names.index("HcsOpenComputeSystem") < names.index("HcsOpenProcess") < names.index("HcsTerminateProcess")
    await end(system, init)


async def test_kill_falls_back_on_its_own_handle(world: HcsWorld) -> None:
    system, init = await world.started("sleep")
    world.core.script("HcsOpenComputeSystem", code="0x80070005")
    await init.kill(9)
    await init.wait()
    await end(system, init)


async def test_process_list_while_it_is_being_stopped(either: HcsWorld) -> None:
    system, init = await either.started("sleep")
    code = {"code": "0x80070006"}
    either.core.script("HcsGetComputeSystemProperties", **code)
    with pytest.raises(RuntimeFailed, match="being stopped"):
        await system.process_list()
    await end(system, init)


# ---- codes and documents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0xC0370105, InvalidState),
        (0x80370105, InvalidState),
        (0xC037010B, NotSupported),
        (0xC037010D, NotSupported),
        (0x8007000D, NotSupported),
        (0x80070032, NotSupported),
        (0xC037010E, NotFound),
        (0x80070490, EndedOrUnknown),
        (0xC037010F, AlreadyExists),
        (0x8007006D, BrokenPipe),
        (0xC0370106, UnexpectedExit),
        (0x8037011C, UnexpectedExit),
        (0x8037011E, ServiceLost),
        (0x800706BA, ServiceLost),
        (0x800706BE, ServiceLost),
        (0x80370118, OperationTimeout),
        (0x80004005, RuntimeFailed),
        (0xC0370101, RuntimeFailed),
    ],
)
async def test_classes_by_number(code: int, kind: type[LightermanError], world: HcsWorld) -> None:
    # The text lies; only the number counts.
    world.core.script("HcsStartComputeSystem", code=hex(code), result='{"ErrorMessage":"already_stopped_not_found"}')
    system = await world.runtime().create("c1", world.spec("sleep"))
    with pytest.raises(kind) as raised:
        await system.start()
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("container c1 encountered an error during start: failure in a Windows system")
    await system.close()


async def test_error_events_stay_on_the_exception(world: HcsWorld) -> None:
    event = '{"Message":"the_guest_is_gone","Provider":"p-1","EventId":2001,"Flags":0,"Source":"onecore","Data":[{}]}'
    document = '{"Error":-1070137082,"ErrorMessage":"it_ended.","ErrorEvents":[' + event + '],"Attribution":[]}'
    world.core.script("HcsStartComputeSystem", code="0xC0370106", result=document)
    system = await world.runtime().create("c1", world.spec("sleep"))
    with pytest.raises(UnexpectedExit) as raised:
        await system.start()
    assert code_behind(raised.value) == UNEXPECTED_EXIT
    assert [(one.message, one.event_id) for one in raised.value.events] == [("the_guest_is_gone", 2001)]  # type: ignore[attr-defined]
    assert "the_guest_is_gone" in raised.value.last_words
    await system.close()


@pytest.mark.parametrize("document", ["{broken", "[]", "7", '{"ErrorEvents":7,"ErrorMessage":[]}'])
async def test_result_document_that_is_none(document: str, world: HcsWorld) -> None:
    world.core.script("HcsStartComputeSystem", code="0xC0370106", result=document)
    system = await world.runtime().create("c1", world.spec("sleep"))
    with pytest.raises(UnexpectedExit):
        await system.start()
    await system.close()


@pytest.mark.parametrize(
    ("code", "kind", "status"), [("0x80070002", CommandNotFound, 127), ("0x80070005", CommandNotExecutable, 126)]
)
async def test_program_that_can_not_be_run(code: str, kind: type[RuntimeFailed], status: int, either: HcsWorld) -> None:
    either.core.script("HcsCreateProcess", code=code)
    system = await either.runtime().create("c1", either.spec("sleep"))
    await system.start()
    with pytest.raises(kind) as raised:
        await system.create_process(either.spec("sleep").process)
    assert raised.value.exit_status == status
    await end(system)


async def test_bad_working_directory(either: HcsWorld) -> None:
    system = await either.runtime().create("c1", either.spec("sleep"))
    await system.start()
    with pytest.raises(RuntimeFailed, match="directory"):
        await system.create_process(process("sleep", cwd="C:\\missing"))
    await end(system)


@pytest.mark.parametrize("out", ["{broken", "[]", "null", "7"])
async def test_malformed_answers_of_the_service(out: str, either: HcsWorld) -> None:
    runtime = either.runtime()
    system, init = await either.started("sleep", runtime=runtime)
    either.core.script("HcsGetComputeSystemProperties", out=out)
    with pytest.raises(RuntimeFailed, match="can't be read"):
        await system.statistics()
    if out not in ("[]", "null"):
        either.core.script("HcsEnumerateComputeSystems", out=out)
        with pytest.raises(RuntimeFailed, match="can't be read"):
            await runtime.list()
    await end(system, init)


# ---- streams -----------------------------------------------------------------------------------------------------


async def test_only_the_request_closes_stdin(either: HcsWorld) -> None:
    system, init = await either.started("cat", stdin=True)
    stdio = await init.stdio()
    assert stdio.stdin is not None
    await stdio.stdin.write(b"abc")
    await stdio.stdin.close()
    assert not init.has_ended
    await init.close_stdin()
    assert await all_of(stdio.stdout) == b"abc"
    await init.wait()
    with pytest.raises(NotFound):
        await init.close_stdin()
    await end(system, init)


async def test_flood_is_whole(either: HcsWorld) -> None:
    system, init = await either.started("flood", "20000")
    assert await all_of((await init.stdio()).stdout) == b"".join(b"line %07d of the flood\n" % n for n in range(20000))
    await init.wait()
    await end(system, init)


async def test_streams_that_nobody_asked_for_are_closed_with_the_process(either: HcsWorld) -> None:
    system, init = await either.started("exit", "0")
    await init.wait()
    await end(system, init)


async def test_second_handle_has_streams_of_its_own(either: HcsWorld) -> None:
    system, init = await either.started("cat", stdin=True)
    again = await system.open_process("init")
    assert again.pid == init.pid
    stdin, stdout = (await again.stdio()).stdin, (await init.stdio()).stdout
    assert stdin is not None
    assert stdout is not None
    await stdin.write(b"abc")
    assert await stdout.read(3) == b"abc"
    await init.kill(9)
    await asyncio.gather(init.wait(), again.wait())
    await again.close()
    await end(system, init)


async def test_console_is_height_first_and_named(either: HcsWorld) -> None:
    system, init = await either.started("sleep", terminal=True, size=(30, 120))
    assert either.core.console("c1", init.pid) == (30, 120)
    await init.resize_console(50, 132)
    assert either.core.console("c1", init.pid) == (50, 132)
    assert (await init.stdio()).stderr is None
    await end(system, init)


async def test_last_callback_failure_is_none() -> None:
    assert callbacks.last_failure() is None
