"""Restart options at work: delays on the clock, the rate over all containers, ends that are no stop by request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from lighterman.errors import InvalidState
from lighterman.lifecycle.events import State
from lighterman.lifecycle.restart import RestartRate, RunEnd
from lighterman.runtimes.options import WithRestartPolicy
from lighterman.spec import RestartPolicy
from lighterman.supervisor.client import Client
from supervisor.world import World, policy


def delays(world: World, id: str = "c1") -> list[float]:
    ends = [info.finished_mono or 0 for info in world.backend.of(id, State.RESTART)]
    starts = [info.started_mono or 0 for info in world.backend.of(id, State.START)][1:]
    return [round(start - end, 6) for start, end in zip(starts, ends, strict=False)]


async def test_delays_are_the_policys(world: World) -> None:
    wanted = RestartPolicy(name="always", initial_delay_s=2, multiplier=3, max_delay_s=20, burst=5, interval_s=1000)
    await world.create("false", options=(WithRestartPolicy(wanted),))
    await world.client.wait("c1")
    await world.clock.settle()
    assert delays(world) == [2, 6, 18, 20]


async def test_jitter_is_drawn_for_each_delay(world: World) -> None:
    draws = iter([1.0, -1.0, 0.5])
    world.client = Client(world.runtime, world.backend, clock=world.clock, jitter=lambda: next(draws))
    wanted = RestartPolicy(name="on-failure", max_retries=2, jitter=0.5)
    await world.create("false", options=(WithRestartPolicy(wanted),))
    await world.client.wait("c1")
    await world.clock.settle()
    assert delays(world) == pytest.approx([0.15, 0.1])


async def test_policy_as_code_sees_each_end(world: World) -> None:
    seen: list[RunEnd] = []

    def rule(history: Sequence[RunEnd]) -> float | None:
        seen.append(history[-1])
        return 3.0 if len(history) < 3 else None

    await world.create("false", options=(WithRestartPolicy(rule),))
    await world.client.wait("c1")
    await world.clock.settle()
    assert delays(world) == [3, 3]
    assert [end.exit_code for end in seen] == [1, 1, 1]
    assert all(end.finished_at > 0 for end in seen)


async def test_policy_as_code_that_raises_leaves_it_down(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def rule(_: Sequence[RunEnd]) -> float | None:
        raise LookupError("mistake")

    await world.create("false", options=(WithRestartPolicy(rule),))
    await world.client.wait("c1")
    assert world.states() == ["start", "exit"]
    assert "mistake" in caplog.text


@pytest.mark.parametrize("failure", [asyncio.CancelledError("mistake"), SystemExit("mistake")])
async def test_policy_as_code_that_raises_what_ends_tasks_hides_no_exit(
    world: World, caplog: pytest.LogCaptureFixture, failure: BaseException
) -> None:
    def rule(_: Sequence[RunEnd]) -> float | None:
        raise failure

    await world.create("false", options=(WithRestartPolicy(rule),))
    await world.client.wait("c1")
    assert world.states() == ["start", "exit"]
    assert "mistake" in caplog.text


async def test_decision_that_fails_hides_no_exit(world: World, caplog: pytest.LogCaptureFixture) -> None:
    policy = RestartPolicy(name="always")
    msgspec.structs.force_setattr(policy, "name", "sometimes")  # as one of another version might be
    await world.create("false", options=(WithRestartPolicy(policy),))
    await world.client.wait("c1")
    assert world.states() == ["start", "exit"]
    assert "the decision failed" in caplog.text


async def test_policy_as_code_can_be_set_while_it_runs(world: World) -> None:
    system = await world.create("sleep")
    world.client.set_restart_policy("c1", lambda history: 1.0 if len(history) == 1 else None)
    system.init.exit(0)
    await world.backend.wait_for("c1", State.START, count=2)
    world.system().init.exit(0)
    await world.client.wait("c1")


async def test_restarts_of_all_containers_together_are_limited(world: World) -> None:
    rate = RestartRate(2)
    world.client = Client(world.runtime, world.backend, clock=world.clock, restart_rate=rate, jitter=lambda: 0.0)
    ids = [f"c{n}" for n in range(10)]
    for id in ids:
        await world.create("sleep", id=id, options=(policy("always"),))
    for id in ids:
        world.system(id).init.exit(1)
    for id in ids:
        await world.backend.wait_for(id, State.START, count=2)
    begun = sorted(world.backend.of(id, State.START)[1].started_mono or 0 for id in ids)
    assert [round(at - begun[0], 6) for at in begun] == [0, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]


async def test_L34_a_restart_held_by_the_rate_is_cancelled_by_a_stop(still: World) -> None:
    rate = RestartRate(0.001)
    rate.take(still.clock.mono())
    still.client = Client(still.runtime, still.backend, clock=still.clock, restart_rate=rate)
    system = await still.create("sleep", options=(policy("always"),))
    system.init.exit(1)
    await still.backend.wait_for("c1", State.RESTART)
    await still.clock.advance(500)
    assert still.states() == ["start", "restart"]
    await still.client.stop("c1")
    await still.clock.advance(5000)
    assert still.states() == ["start", "restart", "exit"]


# ---- ends that are no stop by request ----------------------------------------------------------------------------


async def test_end_run_leaves_it_to_the_policy(world: World) -> None:
    await world.create("sleep", id="a")
    await world.create("sleep", id="b", options=(policy("on-failure"),))
    for id in ("a", "b"):
        await world.client.end_run(id, grace_s=0)
    await world.backend.wait_for("a", State.EXIT)
    await world.backend.wait_for("b", State.START, count=2)
    await world.clock.settle()
    assert world.states("a") == ["start", "exit"]
    assert world.states("b") == ["start", "restart", "start"]


async def test_end_run_with_a_restart_needs_no_policy(world: World) -> None:
    await world.create("sleep")
    await world.client.end_run("c1", grace_s=5, restart="unhealthy")
    told = await world.backend.wait_for("c1", State.RESTART)
    await world.backend.wait_for("c1", State.START, count=2)
    assert told.reason == "unhealthy"
    # Only the one run was meant.
    world.system().init.exit(0)
    await world.client.wait("c1")
    await world.clock.settle()
    assert world.states() == ["start", "restart", "start", "exit"]


async def test_end_run_kills_what_ignores_its_stop_signal(world: World) -> None:
    await world.create("ignore-term")
    began = world.clock.mono()
    await world.client.end_run("c1", grace_s=7, restart="unhealthy")
    told = await world.backend.wait_for("c1", State.RESTART)
    assert (told.signal, told.finished_mono) == (9, began + 7)
    await world.backend.wait_for("c1", State.START, count=2)


async def test_L34_a_stop_by_request_wins_over_a_restart_that_is_under_way(world: World) -> None:
    await world.create("ignore-term")
    ending = asyncio.create_task(world.client.end_run("c1", grace_s=7, restart="unhealthy"))
    await world.clock.sleep(1)
    await world.client.stop("c1", grace_s=1)
    await ending
    await world.backend.wait_for("c1", State.EXIT)
    await world.clock.sleep(100)
    assert world.states() == ["start", "exit"]


async def test_end_run_of_what_does_not_run(still: World) -> None:
    system = await still.create("sleep", options=(policy("always"),))
    system.init.exit(1)
    await still.backend.wait_for("c1", State.RESTART)
    await still.clock.settle()
    with pytest.raises(InvalidState):
        await still.client.end_run("c1", grace_s=1)


async def test_end_run_of_a_paused_container(world: World) -> None:
    await world.create("sleep")
    await world.client.pause("c1")
    await world.client.end_run("c1", grace_s=3, restart="unhealthy")
    await world.backend.wait_for("c1", State.START, count=2)
