"""Restart policies on real processes."""

from __future__ import annotations

import asyncio

import pytest
from real_support import logged, process_is_there, runs

from lighterman import Engine, Resources
from lighterman.lifecycle.status import Status
from support import eventually

pytestmark = pytest.mark.real


async def test_no_policy_ended_stays_ended(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "echo run; exit 1"]) as box:
        assert ((await box.wait()).code, await logged(box)) == (1, b"run\n")


async def test_on_failure_is_tried_as_often_as_asked(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "echo run; exit 4"], restart="on-failure:2") as box:
        exit = await box.wait()
        assert (exit.code, exit.generation, await logged(box)) == (4, 3, b"run\n" * 3)
        assert box.status is Status.EXITED


async def test_on_failure_success_ends_it(engine: Engine) -> None:
    script = "echo x >> /runs; [ $(wc -l < /runs) -ge 3 ]"
    async with engine.container("busybox", ["sh", "-c", script], restart="on-failure") as box:
        exit = await box.wait()
        # What an earlier run wrote into its files is there for the next.
        assert (exit.code, exit.generation) == (0, 3)


async def test_on_failure_killed_from_outside_is_a_failure(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "kill -9 $$"], restart="on-failure:1", init=True) as box:
        assert (await box.wait()).generation == 2


async def test_always_goes_on_until_stopped(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "echo run"], restart="always") as box:

        async def thrice() -> bool:
            return (await logged(box)).count(b"run") >= 3

        await eventually(thrice)
        exit = await box.stop(grace_s=1)
        assert exit is not None
        runs = await logged(box)
        assert box.status is Status.EXITED
        await asyncio.sleep(0)
        assert box.exit == await box.wait()
        assert await logged(box) == runs


@pytest.mark.parametrize("policy", ["always", "unless-stopped", "on-failure"])
async def test_stop_ends_it_whatever_the_policy(engine: Engine, policy: str) -> None:
    async with engine.container("busybox", ["sleep", "1000"], restart=policy) as box:
        # A runc that is not the program yet has an exit status of its own for the stop signal.
        await eventually(lambda: runs(box.pid, b"sleep"))
        exit = await box.stop(grace_s=0.1)
        assert exit is not None
        assert (exit.signal, exit.reason, exit.generation) == (9, "stop", 1)
        assert (box.status, box.pid) == (Status.EXITED, 0)


@pytest.mark.parametrize("policy", ["always", "unless-stopped", "on-failure"])
async def test_kill_ends_it_whatever_the_policy(engine: Engine, policy: str) -> None:
    async with engine.container("busybox", ["sleep", "1000"], restart=policy) as box:
        await box.kill()
        exit = await asyncio.wait_for(box.wait(), 60)
        assert (exit.signal, exit.generation) == (9, 1)


async def test_stop_while_it_waits_ends_the_back_off_at_once(engine: Engine) -> None:
    async with engine.container("busybox", ["false"], restart="always") as box:
        # After some failures the back-off is long enough to be met.
        await eventually(
            lambda: box.status is Status.RESTARTING and (box.exit is not None and box.exit.generation >= 4)
        )
        exit = await asyncio.wait_for(box.stop(grace_s=100), 60)
        assert exit is not None
        assert (exit.code, box.status) == (1, Status.EXITED)


async def test_remove_while_it_waits_takes_it_away(engine: Engine) -> None:
    box = await engine.create("busybox", ["false"], restart="always")
    await box.start()
    await eventually(lambda: box.status is Status.RESTARTING)
    await asyncio.wait_for(box.remove(force=True), 60)
    assert await engine.containers() == []


async def test_block_left_while_it_waits_ends_it(engine: Engine) -> None:
    async with engine.container("busybox", ["false"], restart="always") as box:
        await eventually(lambda: box.status is Status.RESTARTING)
    assert box.status is Status.REMOVED


async def test_restarted_has_fresh_streams_pid_and_no_old_exec(engine: Engine) -> None:
    async with engine.container(
        "busybox", ["sh", "-c", "echo hi; read x; exit 3"], stdin=True, restart="always"
    ) as box:
        first = box.pid
        process = await box.start_exec(["sleep", "1000"])
        old = box.stdin
        old.write(b"\n")
        assert (await process.wait()).signal == 9
        await eventually(lambda: box.status is Status.RUNNING and box.pid not in (0, first))
        assert not process_is_there(process.pid)
        assert box.stdin is not old
        assert await box.stdout.readline() == b"hi\n"
        assert (await box.exec(["echo", "new"])).stdout == b"new\n"
        await box.stop(grace_s=0)


async def test_restarted_run_that_can_not_start_is_given_up(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "rm -f /bin/sh; exit 1"], restart="on-failure:2") as box:
        exit = await asyncio.wait_for(box.wait(), 60)
        assert exit.not_started
        assert exit.shell_code == 125
        assert box.status is Status.EXITED


async def test_restarted_has_the_limits_of_an_update(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "read x"], stdin=True, memory="64M", restart="always") as box:
        await box.update(Resources(memory_bytes=96 << 20))
        first = box.pid
        box.stdin.write(b"\n")
        await eventually(lambda: box.status is Status.RUNNING and box.pid not in (0, first))
        assert (await box.stats()).memory_limit_bytes == 96 << 20
        await box.stop(grace_s=0)


async def test_stdout_of_a_run_is_read_to_its_end_though_the_next_one_has_begun(engine: Engine) -> None:
    script = "seq 1 100000; exit 1"
    async with engine.container("busybox", ["sh", "-c", script], restart="on-failure:1") as box:
        stdout = box.stdout
        lines = [await stdout.readline()]
        assert (await box.wait()).generation == 2
        lines += [line async for line in stdout]
        assert lines == [b"%d\n" % number for number in range(1, 100_001)]
        # Asked for again it is that of the last run.
        assert await box.stdout.readline() == b"1\n"
