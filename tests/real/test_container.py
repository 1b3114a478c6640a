"""A container from `create` to `remove`, and the block form."""

from __future__ import annotations

import asyncio

import pytest
from real_support import logged, process_is_there

from lighterman import Engine, InvalidState, NotFound, UsageError
from lighterman.lifecycle.status import Status
from support import eventually

pytestmark = pytest.mark.real


async def test_create_not_started_has_status_created_and_no_process(engine: Engine) -> None:
    box = await engine.create("busybox", ["true"])
    assert (box.status, box.pid, box.exit) == (Status.CREATED, 0, None)
    with pytest.raises(InvalidState):
        await box.wait()
    for verb in (box.pause, box.resume, box.stats, box.top):
        with pytest.raises(InvalidState):
            await verb()
    with pytest.raises(InvalidState):
        await box.exec(["true"])
    assert await box.stop() is None
    await box.kill()
    await box.remove()
    assert box.status is Status.REMOVED
    # The tombstone has no end to tell, but it tells that.
    assert (await engine.get(box.id)).status is Status.REMOVED
    assert await engine.containers() == []


async def test_start_then_exit_status_and_record_are_there(engine: Engine) -> None:
    box = await engine.create("busybox", ["sh", "-c", "echo hi; exit 6"])
    await box.start()
    exit = await box.wait()
    assert (exit.code, exit.generation) == (6, 1)
    assert (box.status, box.pid, box.exit) == (Status.EXITED, 0, exit)
    assert await logged(box) == b"hi\n"
    await box.remove()


async def test_start_again_after_the_exit_keeps_files_and_counts_runs(engine: Engine) -> None:
    box = await engine.create("busybox", ["sh", "-c", "echo x >> /seen; wc -l < /seen"])
    for run in (1, 2, 3):
        await box.start()
        assert (await box.wait()).generation == run
    assert await logged(box) == b"1\n2\n3\n"
    await box.remove()


async def test_start_while_running_is_invalid_and_harms_nothing(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        pid = box.pid
        with pytest.raises(InvalidState):
            await box.start()
        assert box.status is Status.RUNNING
        assert (box.pid, process_is_there(pid)) == (pid, True)


async def test_start_twice_at_once_one_wins(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"])
    ends = await asyncio.gather(box.start(), box.start(), return_exceptions=True)
    assert [type(end) for end in ends if end is not None] == [InvalidState]
    assert box.status is Status.RUNNING
    await box.remove(force=True)


async def test_start_failed_can_be_tried_again(engine: Engine) -> None:
    box = await engine.create("busybox", ["no-such-program"])
    for _ in range(2):
        with pytest.raises(Exception, match="no-such-program"):
            await box.start()
    assert box.exit is not None
    assert box.exit.not_started
    assert box.exit.shell_code == 125
    await box.remove()


async def test_remove_running_needs_force(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"])
    await box.start()
    pid = box.pid
    with pytest.raises(InvalidState):
        await box.remove()
    assert process_is_there(pid)
    await box.remove(force=True)
    assert not process_is_there(pid)
    assert box.status is Status.REMOVED
    exit = await box.wait()
    assert (exit.signal, exit.reason) == (9, "removed")


async def test_remove_twice_and_at_once_is_no_error(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"])
    await box.start()
    await asyncio.gather(box.remove(force=True), box.remove(force=True), box.stop(grace_s=0))
    await box.remove()


async def test_wait_after_remove_still_answers(engine: Engine) -> None:
    box = await engine.create("busybox", ["sh", "-c", "exit 3"])
    await box.start()
    await box.wait()
    await box.remove()
    assert (await box.wait()).code == 3


async def test_wait_by_many_at_once_all_are_answered(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "read x; exit 5"], stdin=True) as box:
        waiting = [asyncio.create_task(box.wait()) for _ in range(20)]
        cancelled = asyncio.create_task(box.wait())
        await asyncio.sleep(0)
        cancelled.cancel()
        box.stdin.write_eof()
        assert {exit.code for exit in await asyncio.gather(*waiting)} == {5}
        with pytest.raises(asyncio.CancelledError):
            await cancelled


async def test_block_left_container_is_gone(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], name="box") as box:
        pid = box.pid
        assert process_is_there(pid)
    assert not process_is_there(pid)
    assert await engine.containers() == []


async def test_block_left_by_an_error_container_is_gone_and_error_comes_out(engine: Engine) -> None:
    pids = []

    async def block() -> None:
        async with engine.container("busybox", ["sleep", "1000"]) as box:
            pids.append(box.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await block()
    assert not process_is_there(pids[0])


async def test_engine_closed_with_running_containers_they_end(real_runtime: str) -> None:
    async with Engine(runtime=real_runtime) as engine:
        boxes = [await engine.create("busybox", ["sleep", "1000"]) for _ in range(3)]
        for box in boxes:
            await box.start()
        pids = [box.pid for box in boxes]
        waiting = asyncio.create_task(boxes[0].wait())
        await asyncio.sleep(0)
    assert not any(map(process_is_there, pids))
    assert (await waiting).signal == 9


async def test_engine_closed_verbs_say_so(real_runtime: str) -> None:
    async with Engine(runtime=real_runtime) as engine:
        box = await engine.create("busybox", ["true"])
    with pytest.raises(InvalidState):
        await engine.run("busybox", ["true"])
    with pytest.raises((InvalidState, NotFound)):
        await box.start()
    await engine.close()


async def test_create_lease_none_without_a_root_is_a_usage_error(engine: Engine) -> None:
    with pytest.raises(UsageError):
        await engine.create("busybox", ["true"], lease=None)


async def test_running_status_follows_the_program(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "read x"], stdin=True) as box:
        assert (str(box.status), box.exit) == ("running", None)
        assert process_is_there(box.pid)
        box.stdin.write(b"x\n")
        await eventually(lambda: box.status is Status.EXITED)
        with pytest.raises(InvalidState):
            await box.exec(["true"])


async def test_containers_are_listed_oldest_first(engine: Engine) -> None:
    made = [await engine.create("busybox", ["true"], name=f"c{number}") for number in (3, 1, 2)]
    assert [box.name for box in await engine.containers()] == ["c3", "c1", "c2"]
    for box in made:
        await box.remove()


async def test_restart_verb_gives_a_new_run(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "echo $$ run; exec sleep 1000"]) as box:
        first = box.pid
        await box.restart(grace_s=0.1)
        assert box.pid not in (0, first)
        assert not process_is_there(first)
        await eventually(lambda: logged(box))
        assert (await box.stop(grace_s=0)) is not None
        assert await logged(box) == b"1 run\n1 run\n"
