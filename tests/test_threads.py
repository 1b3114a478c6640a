"""Threads of our own: whoever fills asyncio's, and whatever hangs, holds up nobody else."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from lighterman import limits
from lighterman.errors import LimitExceeded, OperationPending, OperationTimeout
from lighterman.threads import OneThread, in_own_thread, in_removing_thread, in_thread, let_go, look_at_files
from support import eventually


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What waits for it hangs until the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def test_full_default_pool_holds_nothing_up(gate: threading.Event) -> None:
    hanging = [asyncio.ensure_future(asyncio.to_thread(gate.wait)) for _ in range(64)]
    assert await asyncio.wait_for(in_thread(os.getpid), 20) == os.getpid()
    gate.set()
    await asyncio.gather(*hanging)


async def test_error_is_raised_where_it_is_waited_for() -> None:
    for call in (in_thread(os.stat, "/no/such"), look_at_files("it", lambda: os.stat("/no/such"))):
        with pytest.raises(FileNotFoundError):
            await call


async def test_hung_file_system_is_given_up_and_what_comes_late_is_discarded(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HOST_FILES_S", 0.01)
    late: list[int] = []

    def hang() -> int:
        gate.wait()
        return 42

    with pytest.raises(OperationTimeout, match=r"the mounts of box: no answer for 0\.01 s"):
        await look_at_files("the mounts of box", hang, late.append)
    gate.set()
    await eventually(lambda: late == [42])


async def test_hung_threads_are_bounded(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HUNG_THREADS_KEPT", 3)
    hanging = [asyncio.ensure_future(look_at_files("it", gate.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(LimitExceeded, match="3 threads wait"):
        await look_at_files("it", os.getpid)
    gate.set()
    await asyncio.gather(*hanging)
    await eventually(lambda: not [one for one in threading.enumerate() if one.name == "lighterman-alone"])
    assert await look_at_files("it", os.getpid) == os.getpid()


async def test_who_asks_again_and_again_has_one_thread(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HUNG_THREADS_KEPT", 1)
    one, asked = OneThread(), 0

    def hang() -> int:
        nonlocal asked
        asked += 1
        gate.wait()
        return asked

    for _ in range(20):
        waiting = asyncio.ensure_future(one(hang))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
    assert (asked, one.is_busy) == (1, True)
    with pytest.raises(OperationPending):
        await one(hang)
    # Nor does it count for who looks at files of the host.
    assert await look_at_files("it", os.getpid) == os.getpid()
    gate.set()
    await eventually(lambda: not one.is_busy)
    assert await one(hang) == 2


async def test_result_that_came_before_the_cancellation_is_discarded_too() -> None:
    discarded: list[int] = []
    for turns in range(1, 8):
        came = threading.Event()

        def act(came: threading.Event = came) -> int:
            came.set()
            return 42

        waiting = asyncio.ensure_future(in_own_thread(act, discarded.append))
        for _ in range(turns):
            await asyncio.sleep(0)
        came.wait(20)
        waiting.cancel()
        await asyncio.wait((waiting,))
        if waiting.cancelled():
            await eventually(lambda: discarded == [42])
            discarded.clear()
        assert discarded == []


async def test_huge_removals_hold_nobody_else_up(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "THREADS_KEPT", 1)
    monkeypatch.setattr(limits, "REMOVING_THREADS_KEPT", 2)
    let_go()
    removing = [asyncio.ensure_future(in_removing_thread(gate.wait)) for _ in range(40)]
    assert await asyncio.wait_for(in_thread(os.getpid), 20) == os.getpid()
    names = [one.name for one in threading.enumerate() if one.name.startswith("lighterman-remove")]
    assert len(names) == 2
    gate.set()
    await asyncio.gather(*removing)
    let_go()


async def test_idle_threads_end_and_come_again() -> None:
    await in_thread(os.getpid)
    let_go()
    await eventually(lambda: not [one for one in threading.enumerate() if one.name.startswith("lighterman-work")])
    assert await in_thread(os.getpid) == os.getpid()


async def test_child_that_was_forked_has_threads_of_its_own() -> None:
    await in_thread(os.getpid)
    child = os.fork()
    if child == 0:
        try:
            ours = asyncio.new_event_loop()
            asyncio._set_running_loop(None)
            os._exit(0 if ours.run_until_complete(asyncio.wait_for(in_thread(os.getpid), 20)) == os.getpid() else 1)
        finally:
            os._exit(2)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
