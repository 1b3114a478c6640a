"""Starts that fail: what is known of them is written down, who waits hears of it, and a refused one changes nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import msgspec
import pytest

from lighterman import Engine
from lighterman.checks import Exec, HealthCheck, Port
from lighterman.errors import CommandNotFound, InvalidState, StoreError
from lighterman.record import Record
from lighterman.store.base import Change
from lighterman.store.sqlite import SqliteStore

pytestmark = pytest.mark.real

LIMIT_S = 60


def stored(root: Path, id: str) -> Record:
    """The row of a root that no engine has open."""
    connection = sqlite3.connect(root / "state.db")
    try:
        (row,) = connection.execute("SELECT record FROM containers WHERE id = ?", (id,)).fetchone()
    finally:
        connection.close()
    return msgspec.json.decode(row, type=Record)


class Disk:
    """Refuses every commit while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        commit = SqliteStore.commit

        async def sometimes(store: SqliteStore, change: Change) -> int:
            if self.full:
                raise StoreError("database or disk is full: the change did not happen")
            return await commit(store, change)

        monkeypatch.setattr(SqliteStore, "commit", sometimes)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


# ---- on a full disk ----------------------------------------------------------------------------------------------


async def test_P06_refused_start_does_not_hide_how_the_last_run_ended(root: Path, disk: Disk) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sh", "-c", "exit 3"], lease=None)
        await box.start()
        await box.wait()
        disk.full = True
        with pytest.raises(StoreError):
            await box.start()
        disk.full = False
        assert ((await box.wait()).code, box.generation) == (3, 1)
        await box.set_restart_policy("no")  # the next that is stored
        row = stored_now(engine, box.id)
        assert (row.exit and row.exit.code, row.starting) == (3, 0)


async def test_P06_refused_start_of_a_stopped_container_leaves_it_stopped(root: Path, disk: Disk) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], lease=None, restart="unless-stopped")
        await box.start()
        await box.stop(grace_s=0)
        history = box._entry.restarts = b'{"restarts":2}'
        disk.full = True
        with pytest.raises(StoreError):
            await box.start()
        disk.full = False
        await box.set_restart_policy("unless-stopped")
        assert stored_now(engine, box.id).manually_stopped
        assert box._entry.restarts == history


async def test_P06_refused_first_start_leaves_it_as_never_started(root: Path, disk: Disk) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["true"], lease=None)
        disk.full = True
        with pytest.raises(StoreError):
            await box.start()
        disk.full = False
        assert (box.status, box.exit, box.generation) == ("created", None, 0)
        with pytest.raises(InvalidState, match="never started"):
            await box.wait()
        await box.start()
        assert (await box.wait()).ok


def stored_now(engine: Engine, id: str) -> Record:
    """The row as the engine has it in its store."""
    store = engine.inside.store
    assert isinstance(store, SqliteStore)
    (row,) = store._db.execute("SELECT record FROM containers WHERE id = ?", (id,)).fetchone()
    return msgspec.json.decode(row, type=Record)


# ---- written down ------------------------------------------------------------------------------------------------


async def test_P02_failed_start_is_known_to_the_next_engine(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["no-such-program"], name="box", lease=None, restart="always")
        with pytest.raises(CommandNotFound):
            await box.start()
        assert box.exit is not None
        told = box.exit
    row = stored(root, box.id)
    assert (row.starting, row.exit) == (0, told)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert await box.wait(timeout_s=LIMIT_S) == told
        events = [event async for event in engine.events(after=0, container=box.id, follow=False)]
        assert [(event.kind, event.generation) for event in events] == [("create", 0), ("exit", 1)]
        assert events[-1].exit == told
        with pytest.raises(CommandNotFound):
            await box.start()
        assert box.exit is not None
        assert (box.exit.generation, box.status) == (2, "created")


async def test_failed_start_after_a_run_is_another_generation(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sh", "-c", "rm /bin/sh"], lease=None)
        await box.start()
        assert (await box.wait()).ok
        with pytest.raises(CommandNotFound):
            await box.start()
        events = [event async for event in engine.events(after=0, container=box.id, follow=False)]
        assert [(event.kind, event.generation) for event in events[1:]] == [("start", 1), ("exit", 1), ("exit", 2)]
        assert events[-1].exit == await box.wait()
        assert events[-1].exit is not None
        assert (events[-1].exit.not_started is not None, events[-1].exit.cpu_s) == (True, None)


async def test_cancelled_start_leaves_no_start_under_way_in_the_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], lease=None)
        written = asyncio.Event()
        save = engine.inside.books.save

        async def noted(entry: object) -> None:
            await save(entry)  # type: ignore[arg-type]
            written.set()

        monkeypatch.setattr(engine.inside.books, "save", noted)
        starting = asyncio.ensure_future(box.start())
        await written.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert stored(root, box.id).starting == 0


# ---- who waits for health or readiness ---------------------------------------------------------------------------


async def test_wait_for_health_ends_when_the_first_start_fails(engine: Engine) -> None:
    box = await engine.create("busybox", ["no-such-program"], health=HealthCheck(Exec(["true"])))
    waiting = asyncio.ensure_future(box.wait(until="healthy"))
    await asyncio.sleep(0)
    with pytest.raises(CommandNotFound):
        await box.start()
    with pytest.raises(InvalidState, match="ended before it was healthy: not started"):
        await asyncio.wait_for(waiting, LIMIT_S)


async def test_wait_for_health_ends_when_a_later_start_fails(engine: Engine) -> None:
    box = await engine.create("busybox", ["sh", "-c", "rm /bin/sh"], health=HealthCheck(Exec(["true"])))
    await box.start()
    await box.wait()
    starting = asyncio.ensure_future(box.start())
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(box.wait(until="healthy"))
    with pytest.raises(CommandNotFound):
        await starting
    with pytest.raises(InvalidState, match="ended before it was healthy"):
        await asyncio.wait_for(waiting, LIMIT_S)


async def test_wait_for_readiness_ends_with_the_engine(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["true"], ready=Port(80), lease=None)
        waiting = asyncio.ensure_future(box.wait(until="ready"))
        await asyncio.sleep(0)
    with pytest.raises(InvalidState, match="before the engine was closed"):
        await asyncio.wait_for(waiting, LIMIT_S)
    with pytest.raises(InvalidState, match="not running"):
        await asyncio.wait_for(box.wait(until="ready"), LIMIT_S)


# ---- a restart that can't be made --------------------------------------------------------------------------------


async def test_restart_that_can_not_be_made_has_nothing_of_the_run_before(engine: Engine) -> None:
    script = "echo bye >&2; rm -f /bin/sh; exit 7"
    async with engine.container("busybox", ["sh", "-c", script], restart="on-failure:2") as box:
        exit = await asyncio.wait_for(box.wait(), LIMIT_S)
        assert exit.not_started is not None
        assert (exit.generation, box.generation) == (3, 3)
        assert (exit.last_words, exit.started_at, exit.duration_s) == (b"", None, None)
        assert (exit.cpu_s, exit.memory_peak_bytes, exit.oom_kills, exit.reason) == (None, None, None, None)
        assert exit.finished_at is not None
        await box.stop()
