"""Verbs of one container at the same time: whoever wins, nothing is left half done."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lighterman import Engine, InvalidState, LightermanError, NotFound
from lighterman.entry import Entry
from lighterman.journal import Event
from lighterman.lifecycle.status import Status
from lighterman.runtimes.oci.runtime import OciRuntime


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 16, 64])
async def test_removed_while_it_starts_nothing_is_left_of_it(root: Path, turns: int) -> None:
    async with Engine(root=root) as engine:
        for _ in range(3):
            container = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
            starting = asyncio.ensure_future(container.start())
            for _ in range(turns):
                await asyncio.sleep(0)
            await container.remove(force=True)
            with pytest.raises((InvalidState, NotFound)):
                await starting
            with pytest.raises(LightermanError):
                await container.start()
            assert await engine.containers() == []
        assert list((root / "containers").glob("*")) == []
    async with Engine(root=root) as engine:
        assert await engine.containers() == []


async def test_start_cancelled_while_it_is_written_down_is_undone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, may_go_on = asyncio.Event(), asyncio.Event()
    books = engine.inside.books
    tell_fact = books.tell_fact

    async def slow(entry: Entry, event: Event) -> asyncio.Future[None] | None:
        if event.kind == "start":
            written.set()
            await may_go_on.wait()
        return await tell_fact(entry, event)

    monkeypatch.setattr(books, "tell_fact", slow)
    container = await engine.create("busybox", ["sleep", "1000"])
    starting = asyncio.ensure_future(container.start())
    await written.wait()
    starting.cancel()
    await asyncio.wait((starting,), timeout=0.05)
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert container.status is Status.EXITED
    assert (await container.wait()).signal == 9


async def test_start_while_the_end_before_it_is_written_down_begins_a_run_of_its_own(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, may_go_on, told = asyncio.Event(), asyncio.Event(), list[str]()
    books = engine.inside.books
    tell_fact = books.tell_fact

    async def slow(entry: Entry, event: Event) -> asyncio.Future[None] | None:
        if event.kind == "exit":
            written.set()
            await may_go_on.wait()
        later = await tell_fact(entry, event)
        told.append(event.kind)
        return later

    monkeypatch.setattr(books, "tell_fact", slow)
    container = await engine.create("busybox", ["sleep", "1000"])
    await container.start()
    await container.kill(9)
    await written.wait()
    assert container.status is Status.EXITED
    starting = [asyncio.ensure_future(container.start()) for _ in range(2)]
    await asyncio.sleep(0)
    may_go_on.set()
    await starting[0]
    with pytest.raises(InvalidState):
        await starting[1]
    assert told == ["start", "exit", "start"]
    waiting = asyncio.ensure_future(container.wait())
    stopped = await container.stop(grace_s=0)
    assert stopped is not None
    assert stopped.generation == 2
    assert await waiting == stopped


async def test_stop_waits_for_the_run_that_it_ended_and_for_no_other(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await engine.create("busybox", ["sleep", "1000"])
    end = engine.runs.end

    async def overtaken(entry: Entry, reason: str, grace_s: float) -> bool:
        monkeypatch.undo()
        ran = await end(entry, reason, grace_s)
        await container.wait()
        await container.start()
        return ran

    await container.start()
    monkeypatch.setattr(engine.runs, "end", overtaken)
    await asyncio.wait_for(container.stop(grace_s=0), 30)
    assert container.status is Status.RUNNING
    await container.remove(force=True)


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 16, 64, 256])
async def test_what_a_lost_keepers_calls_have_left_is_not_taken_from_under_a_new_run(
    engine: Engine, turns: int
) -> None:
    runtime = await engine.host.runtime(None)
    assert isinstance(runtime, OciRuntime)
    container = await engine.create("busybox", ["sleep", "1000"])
    for _ in range(2):
        starting = asyncio.ensure_future(container.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        await runtime.remove_remains_of_ended(container.id)
        await starting
        await runtime.remove_remains_of_ended(container.id)
        assert runtime.is_open(container.id)
        assert (await container.exec(["echo", "here"])).stdout == b"here\n"
        await container.stop(grace_s=0)
    await container.remove()
