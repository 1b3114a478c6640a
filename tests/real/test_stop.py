"""Stopping and signalling."""

from __future__ import annotations

import asyncio
import time

import pytest
from real_support import process_is_there

from lighterman import Engine, InvalidSpec
from lighterman.lifecycle.status import Status
from support import eventually

pytestmark = pytest.mark.real

LOOP = "while :; do sleep 0.05; done"


async def test_stop_program_ends_by_itself_with_its_code(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", f"trap 'exit 5' TERM; echo ready; {LOOP}"]) as box:
        await box.stdout.readline()
        exit = await box.stop(grace_s=60)
        assert exit is not None
        assert (exit.code, exit.signal, exit.reason) == (5, None, "stop")
        assert box.exit == exit


async def test_stop_term_ignored_is_killed_after_the_grace(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", f"trap '' TERM; echo ready; {LOOP}"]) as box:
        await box.stdout.readline()
        begun = time.monotonic()
        exit = await box.stop(grace_s=0.3)
        assert time.monotonic() - begun >= 0.3
        assert exit is not None
        assert (exit.code, exit.signal, exit.reason) == (None, 9, "stop")


async def test_stop_grace_zero_kills_at_once(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", f"trap 'echo term' TERM; echo ready; {LOOP}"]) as box:
        await box.stdout.readline()
        exit = await box.stop(grace_s=0)
        assert exit is not None
        assert exit.signal == 9
        assert await box.stdout.read() == b""


async def test_stop_own_stop_signal_is_sent(engine: Engine) -> None:
    script = f"trap 'exit 7' USR1; trap 'exit 8' TERM; echo ready; {LOOP}"
    async with engine.container("busybox", ["sh", "-c", script], stop_signal=10) as box:
        await box.stdout.readline()
        exit = await box.stop(grace_s=60)
        assert exit is not None
        assert exit.code == 7


async def test_stop_with_init_signal_is_passed_on(engine: Engine) -> None:
    script = f"trap 'exit 6' TERM; echo ready; {LOOP}"
    async with engine.container("busybox", ["sh", "-c", script], init=True) as box:
        await box.stdout.readline()
        exit = await box.stop(grace_s=60)
        assert exit is not None
        assert exit.code == 6


async def test_stop_twice_at_once_one_end_for_both(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        one, other = await asyncio.gather(box.stop(grace_s=0.2), box.stop(grace_s=0.1))
        assert one == other == box.exit
        assert await box.stop() == one


async def test_stop_of_ended_is_no_error_and_keeps_its_end(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "exit 3"]) as box:
        exit = await box.wait()
        assert await box.stop() == exit
        await box.kill()
        assert box.exit == exit
        assert exit.reason is None


async def test_stop_negative_grace_is_invalid(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        for grace in (-1, float("nan")):
            with pytest.raises(InvalidSpec):
                await box.stop(grace_s=grace)
        assert box.status is Status.RUNNING


async def test_stop_whole_tree_is_gone(engine: Engine) -> None:
    script = "for i in 1 2 3; do sh -c 'trap \"\" TERM; sleep 1000' & done; echo ready; wait"
    async with engine.container("busybox", ["sh", "-c", script]) as box:
        await box.stdout.readline()
        pids = [one.pid for one in await box.top()]
        assert len(pids) >= 4
        await box.stop(grace_s=0.1)
        assert not any(map(process_is_there, pids))


async def test_stop_cancelled_it_is_stopped_all_the_same(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", f"trap '' TERM; echo ready; {LOOP}"]) as box:
        await box.stdout.readline()
        stopping = asyncio.create_task(box.stop(grace_s=0.3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert (await asyncio.wait_for(box.wait(), 60)).signal == 9


async def test_stop_during_the_start_ends_it(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"])
    starting = asyncio.create_task(box.start())
    await asyncio.sleep(0)
    await box.stop(grace_s=0)
    await asyncio.gather(starting, return_exceptions=True)
    await box.stop(grace_s=0)
    assert box.status in (Status.EXITED, Status.CREATED)
    await box.remove()


# ---- kill --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["USR1", "SIGUSR1", "sigusr1", 10])
async def test_kill_signal_by_name_or_number_arrives(engine: Engine, signal: str | int) -> None:
    async with engine.container("busybox", ["sh", "-c", f"trap 'exit 9' USR1; echo ready; {LOOP}"]) as box:
        await box.stdout.readline()
        await box.kill(signal)
        exit = await box.wait()
        assert (exit.code, exit.reason) == (9, None)


@pytest.mark.parametrize("signal", ["NOPE", "", 0, -1, 65, 1000, True])
async def test_kill_what_is_no_signal_is_invalid(engine: Engine, signal: str | int) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        with pytest.raises(InvalidSpec, match="signal"):
            await box.kill(signal)
        assert box.status is Status.RUNNING


async def test_kill_is_exact_and_says_who(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        await box.kill()
        exit = await box.wait()
        assert (exit.code, exit.signal, exit.reason, exit.shell_code) == (None, 9, "kill", 137)


async def test_kill_signal_that_changes_nothing_is_not_the_reason_of_a_later_end(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "read x; exit 3"], stdin=True) as box:
        # The init of a pid namespace does not get what it does not handle.
        await box.kill("USR2")
        box.stdin.write_eof()
        exit = await box.wait()
        assert (exit.code, exit.reason) == (3, None)


# ---- frozen ------------------------------------------------------------------------------------------------------


async def test_kill_frozen_container_dies(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        await box.pause()
        await box.kill()
        assert (await asyncio.wait_for(box.wait(), 60)).signal == 9


async def test_stop_frozen_container_gets_its_signal(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", f"trap 'exit 5' TERM; echo ready; {LOOP}"]) as box:
        await box.stdout.readline()
        await box.pause()
        exit = await asyncio.wait_for(box.stop(grace_s=50), 60)
        assert exit is not None
        assert exit.code == 5


async def test_remove_frozen_container_is_gone(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"])
    await box.start()
    await box.pause()
    pid = box.pid
    await asyncio.wait_for(box.remove(force=True), 60)
    assert not process_is_there(pid)


async def test_run_timeout_of_a_container_frozen_meanwhile(engine: Engine) -> None:
    running = asyncio.create_task(engine.run("busybox", ["sleep", "1000"], name="box", timeout_s=1))

    async def runs() -> bool:
        return any(box.status is Status.RUNNING for box in await engine.containers())

    await eventually(runs)
    await (await engine.get("box")).pause()
    assert (await asyncio.wait_for(running, 60)).exit.reason == "timeout"
