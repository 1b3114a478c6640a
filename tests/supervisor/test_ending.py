"""Shutdown and terminate of a compute system, on their own [L28-L31]."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import pytest_asyncio

from lighterman import limits
from lighterman.errors import AlreadyStopped, InvalidState, LightermanError, NotFound, OperationTimeout, RuntimeFailed
from lighterman.lifecycle.events import State
from lighterman.runtimes.fake.runtime import FakeComputeSystem
from lighterman.supervisor.ending import Ending
from supervisor.world import World

FIRST = RuntimeFailed("the first", runtime="fake", operation="shutdown")
SECOND = RuntimeFailed("the second", runtime="fake", operation="terminate")


class Subject:
    """A started compute system on the fake, and its ending."""

    def __init__(self, world: World, system: FakeComputeSystem) -> None:
        self.world = world
        self.port = system
        self.tasks: set[asyncio.Task[None]] = set()
        self.ending = self.make()

    def make(self, **limits_s: float) -> Ending:
        return Ending(self.port, self.world.clock, self.spawn, **limits_s)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        return task

    def count(self, operation: Any) -> int:
        return self.world.runtime.count(operation)


@pytest_asyncio.fixture
async def subject(world: World) -> AsyncIterator[Subject]:
    system = await world.runtime.create("c1", world.spec("ignore-term"))
    await system.start()
    process = await system.create_process(world.spec("ignore-term").process)
    await world.clock.settle()
    yield Subject(world, system)
    for fault in world.plan.faults:
        fault.nth = -1
    process.process.die()
    system.system.end()
    await process.close()
    if not system.closed:
        await system.close()


# ---- L28: shutdown -----------------------------------------------------------------------------------------------


async def test_L28_pending_is_waited_for(subject: Subject) -> None:
    subject.world.clock._call_at(subject.world.clock.mono() + 200, subject.port.system.end)
    before = subject.world.clock.mono()
    await subject.ending.shutdown()
    assert subject.world.clock.mono() - before == 200
    assert subject.count("terminate") == 0


async def test_L28_pending_longer_than_five_minutes_is_terminated(subject: Subject) -> None:
    before = subject.world.clock.mono()
    with pytest.raises(OperationTimeout):
        await subject.ending.shutdown()
    assert subject.world.clock.mono() - before == limits.SHUTDOWN_S == 300
    assert subject.count("terminate") == 1
    assert subject.port.system.ended.is_set()


async def test_L28_already_stopped_is_done(subject: Subject) -> None:
    subject.port.system.end()
    await subject.ending.shutdown()
    assert subject.count("terminate") == 0


async def test_L28_other_failure_terminates_and_raises_it(subject: Subject) -> None:
    subject.world.plan.at("shutdown", error=FIRST)
    with pytest.raises(RuntimeFailed) as raised:
        await subject.ending.shutdown()
    assert raised.value is FIRST
    assert subject.port.system.ended.is_set()


async def test_L28_terminates_failure_is_its_context(subject: Subject) -> None:
    subject.world.plan.at("shutdown", error=FIRST).at("terminate", error=SECOND)
    with pytest.raises(RuntimeFailed) as raised:
        await subject.ending.shutdown()
    assert raised.value is FIRST
    assert raised.value.__context__ is SECOND


async def test_L28_that_never_answers_is_a_timeout(subject: Subject) -> None:
    subject.world.plan.at("shutdown", hang=True)
    before = subject.world.clock.mono()
    with pytest.raises(OperationTimeout):
        await subject.ending.shutdown()
    assert subject.world.clock.mono() - before == limits.SHUTDOWN_S
    assert subject.port.system.ended.is_set()


async def test_L28_failing_wait_is_another_failure(subject: Subject) -> None:
    subject.world.plan.at("system.wait", error=FIRST, nth=1)
    with pytest.raises(RuntimeFailed) as raised:
        await subject.ending.shutdown()
    assert raised.value is FIRST
    assert subject.count("terminate") == 1


async def test_L28_wait_that_says_stopped_is_done(subject: Subject) -> None:
    subject.world.plan.at("system.wait", error=AlreadyStopped("x"))
    await subject.ending.shutdown()
    assert subject.count("terminate") == 0


@pytest.mark.parametrize("limit_s", [0.5, 40])
async def test_L28_timeout_is_a_parameter(subject: Subject, limit_s: float) -> None:
    before = subject.world.clock.mono()
    with pytest.raises(OperationTimeout):
        await subject.make(shutdown_s=limit_s).shutdown()
    assert subject.world.clock.mono() - before == limit_s


# ---- L29: terminate ----------------------------------------------------------------------------------------------


async def test_L29_done_at_once(subject: Subject) -> None:
    await subject.ending.terminate()
    assert subject.port.system.ended.is_set()


async def test_L29_pending_is_waited_for(subject: Subject) -> None:
    subject.world.plan.at("terminate", pending_s=250)
    before = subject.world.clock.mono()
    await subject.ending.terminate()
    assert subject.world.clock.mono() - before == 250


@pytest.mark.parametrize("fault", [{"pending_s": math.inf}, {"hang": True}])
async def test_L29_pending_longer_than_five_minutes_raises(subject: Subject, fault: dict[str, Any]) -> None:
    subject.world.plan.at("terminate", **fault)
    before = subject.world.clock.mono()
    with pytest.raises(OperationTimeout):
        await subject.ending.terminate()
    assert subject.world.clock.mono() - before == limits.TERMINATE_S == 300


async def test_L29_already_stopped_is_done(subject: Subject) -> None:
    subject.port.system.end()
    await subject.ending.terminate()


@pytest.mark.parametrize("error", [FIRST, InvalidState("x")], ids=repr)
async def test_L29_other_failures_raise(subject: Subject, error: LightermanError) -> None:
    subject.world.plan.at("terminate", error=error)
    with pytest.raises(type(error)) as raised:
        await subject.ending.terminate()
    assert raised.value is error


async def test_L29_failed_one_can_be_asked_again(subject: Subject) -> None:
    subject.world.plan.at("terminate", error=FIRST, nth=1)
    with pytest.raises(RuntimeFailed):
        await subject.ending.terminate()
    await subject.ending.terminate()
    assert subject.port.system.ended.is_set()


async def test_L29_timeout_is_a_parameter(subject: Subject) -> None:
    subject.world.plan.at("terminate", pending_s=math.inf)
    before = subject.world.clock.mono()
    with pytest.raises(OperationTimeout):
        await subject.make(terminate_s=3).terminate()
    assert subject.world.clock.mono() - before == 3


# ---- L30: shutdown after terminate -------------------------------------------------------------------------------


async def test_L30_shutdown_after_terminate_only_waits(subject: Subject) -> None:
    subject.world.plan.at("terminate", pending_s=20)
    terminating = asyncio.create_task(subject.ending.terminate())
    await subject.world.clock.settle()
    before = subject.world.clock.mono()
    await subject.ending.shutdown()
    assert subject.world.clock.mono() - before == 20
    await terminating
    assert (subject.count("terminate"), subject.count("shutdown")) == (1, 0)


async def test_L30_shutdown_after_a_finished_terminate_asks_nothing(subject: Subject) -> None:
    await subject.ending.terminate()
    await subject.ending.shutdown()
    assert (subject.count("terminate"), subject.count("shutdown")) == (1, 0)


# ---- L31: at any moment, twice, at the same time -----------------------------------------------------------------


async def test_L31_terminate_twice_at_once_asks_once(subject: Subject) -> None:
    await asyncio.gather(*(subject.ending.terminate() for _ in range(5)))
    assert subject.count("terminate") == 1


@pytest.mark.parametrize("delay_s", [0, 5])
async def test_L31_terminate_during_a_shutdown(subject: Subject, delay_s: float) -> None:
    subject.world.plan.at("terminate", delay_s=delay_s)
    shutting = asyncio.create_task(subject.ending.shutdown())
    await subject.world.clock.settle()
    await subject.ending.terminate()
    await shutting
    assert (subject.count("terminate"), subject.count("shutdown")) == (1, 1)


async def test_L31_shutdown_twice_has_no_error(subject: Subject) -> None:
    subject.world.clock._call_at(subject.world.clock.mono() + 20, subject.port.system.end)
    await asyncio.gather(subject.ending.shutdown(), subject.ending.shutdown())
    assert subject.count("terminate") == 0


@pytest.mark.parametrize("verb", ["shutdown", "terminate"])
async def test_L31_at_the_same_time_as_the_end(subject: Subject, verb: str) -> None:
    asking = asyncio.create_task(getattr(subject.ending, verb)())
    subject.port.system.end()
    await asking


async def test_L31_cancelled_terminate_goes_on(subject: Subject) -> None:
    subject.world.plan.at("terminate", delay_s=5)
    terminating = asyncio.create_task(subject.ending.terminate())
    await subject.world.clock.settle()
    terminating.cancel()
    await subject.port.system.ended.wait()


async def test_L31_client_terminate_at_the_same_time_as_an_exit(world: World) -> None:
    system = await world.create("sleep")
    terminating = asyncio.create_task(world.client.terminate("c1"))
    system.init.exit(7)
    ended = await world.client.wait("c1")
    await terminating
    await world.clock.settle()
    assert ended.exit_code == 7
    assert world.states() == ["start", "exit"]


@pytest.mark.parametrize("turns", range(12))
async def test_L31_client_terminate_at_every_moment_of_the_start(world: World, turns: int) -> None:
    creating = asyncio.create_task(world.create("sleep"))
    for _ in range(turns):
        await asyncio.sleep(0)
    if world.client.containers():
        await world.client.terminate("c1")
    await asyncio.wait([creating])
    assert creating.exception() is None or isinstance(creating.exception(), LightermanError)
    await world.clock.sleep(1)
    if turns > 0:
        assert world.client.containers() == ()
        assert not world.runtime.leftovers()


@pytest.mark.parametrize("turns", range(20))
async def test_L31_client_stop_and_terminate_at_every_moment_of_an_exit(world: World, turns: int) -> None:
    system = await world.create("sleep")
    await world.clock.settle()
    system.init.exit(7)
    for _ in range(turns):
        await asyncio.sleep(0)
    if world.client.containers():
        results = await asyncio.gather(world.client.stop("c1"), world.client.terminate("c1"), return_exceptions=True)
        # Its EXIT may have been told before they got their turn.
        assert all(result is None or isinstance(result, NotFound) for result in results)
    ended = await world.backend.wait_for("c1", State.EXIT)
    assert ended.exit_code == 7
    assert world.states() == ["start", "exit"]
