"""OOM kills are told while a container runs on: in order, once, also over a restart of the engine [L39]."""

from __future__ import annotations

from lighterman.lifecycle.events import State
from lighterman.runtimes.options import FirstRun
from supervisor.world import World, policy


def counts(world: World) -> list[int | None]:
    return [info.oom_kills for info in world.backend.of("c1") if info.state is State.OOM]


async def test_a_kill_is_told_with_the_count_so_far(world: World) -> None:
    system = await world.create("sleep")
    system.oom_kill()
    await world.client.pause("c1")
    system.oom_kill()
    await world.client.resume("c1")
    await world.clock.settle()
    assert world.states() == ["start", "oom", "pause", "oom", "resume"]
    assert counts(world) == [1, 2]
    system.init.exit(0)
    ended = await world.client.wait("c1")
    assert (ended.oom_kills, ended.oom_killed) == (2, True)


async def test_the_kill_of_the_init_is_told_by_its_end_alone(world: World) -> None:
    system = await world.create("sleep")
    system.init.die()
    system.oom_kill()
    ended = await world.client.wait("c1")
    await world.clock.settle()
    assert world.states() == ["start", "exit"]
    assert (ended.signal, ended.oom_killed) == (9, True)


async def test_what_was_told_to_an_earlier_engine_is_not_told_again(world: World) -> None:
    system = await world.create("sleep")
    system.oom_kill()
    await world.clock.settle()
    assert counts(world) == [1]
    await world.engine_dies()
    await world.client.restore("c1", FirstRun(1, oom_kills=1), spec=world.spec("sleep"))
    await world.clock.settle()
    assert world.states() == ["restore"]
    system.oom_kill()
    await world.clock.settle()
    assert counts(world) == [2]


async def test_what_happened_with_no_engine_there_is_told_by_the_next(world: World) -> None:
    system = await world.create("sleep")
    await world.engine_dies()
    system.oom_kill()
    system.oom_kill()
    await world.client.restore("c1", FirstRun(1, oom_kills=0), spec=world.spec("sleep"))
    await world.clock.settle()
    assert world.states() == ["restore", "oom"]
    assert counts(world) == [2]


async def test_each_run_counts_for_itself(world: World) -> None:
    system = await world.create("sleep", options=(policy("always"), FirstRun(1, oom_kills=7)))
    system.oom_kill()
    await world.clock.settle()
    system.init.exit(1)
    await world.backend.wait_for("c1", State.START, count=2)
    world.system().oom_kill()
    await world.clock.settle()
    assert counts(world) == [1, 1]
