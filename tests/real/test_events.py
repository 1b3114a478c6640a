"""Events through the engine: readers who are slow, late, or there when it is closed; and the bounds of the journal."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from lighterman import Engine, InvalidSpec, NotFound, StoreError, limits
from lighterman.journal import Event
from support import eventually

pytestmark = pytest.mark.real


def kept(root: Path) -> int:
    connection = sqlite3.connect(root / "state.db")
    try:
        (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
    finally:
        connection.close()
    return int(count)


def fill(root: Path, count: int, at: float, tombstones: int = 0) -> None:
    """As earlier engines have left it."""
    connection = sqlite3.connect(root / "state.db")
    with connection:
        body = b'{"kind":"start","container":"c","name":"old"}'
        connection.executemany("INSERT INTO events (at, body) VALUES (?, ?)", [(at, body)] * count)
        stones = [(f"{number:032x}", f"gone-{number}", 2e10, b"not even a record") for number in range(tombstones)]
        connection.executemany("INSERT INTO tombstones VALUES (?, ?, ?, ?)", stones)
    connection.close()


async def test_P11_journal_of_many_short_engines_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_KEPT", 40)
    async with Engine(root=root):
        pass
    for _ in range(5):
        fill(root, 100, at=2e10)
        async with Engine(root=root) as engine:
            seen = [event async for event in engine.events(after=0, follow=False)]
        assert len(seen) <= 140 + 1
    assert kept(root) <= 40


async def test_P11_gap_of_old_events_and_slow_follower(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Engine(root=root):
        pass
    fill(root, 30, at=1.0)
    fill(root, 600, at=2e10)
    async with Engine(root=root) as engine:

        async def let_go() -> bool:
            return (await anext(engine.events(after=0))).kind == "gap"

        await eventually(let_go)
        events = engine.events(after=10)
        gap = await anext(events)
        assert (gap.kind, gap.lost, gap.seq) == ("gap", 20, 30)
        # What it has not read yet is let go meanwhile: a further gap, and then all that is there and comes.
        assert (await anext(events)).seq == 31
        monkeypatch.setattr(limits, "EVENTS_KEPT", 50)
        box = await engine.create("busybox", ["true"], name="new")
        for _ in range(3):
            await box.start()
            await box.wait()

        async def fifty() -> bool:
            return len([event async for event in engine.events(after=0, follow=False)]) <= 60

        await eventually(fifty)
        seen: list[Event] = []
        async for event in events:
            seen.append(event)
            await asyncio.sleep(0)
            if event.name == "new" and event.kind == "exit" and event.generation == 3:
                break
        place = 31
        for event in seen:
            assert event.seq == place + (event.lost or 1), event
            place = event.seq
        assert [event.kind for event in seen if event.name == "new"] == ["create", *["start", "exit"] * 3]
        assert [event.kind for event in seen].count("gap") == 1
        by_name = [event.kind async for event in engine.events(after=0, container="new", follow=False)]
        assert by_name == ["gap", "create", *["start", "exit"] * 3]
        with pytest.raises(InvalidSpec, match="no such kind"):
            engine.events(kinds=["exited"])
        with pytest.raises(InvalidSpec, match="after=0"):
            engine.events(after=10**6)
        await box.remove()


async def test_iteration_ends_with_its_engine(root: Path) -> None:
    engine = Engine(root=root)
    await engine.start()

    async def follow() -> list[str]:
        return [event.kind async for event in engine.events()]

    following = asyncio.ensure_future(follow())
    await asyncio.sleep(0)
    box = await engine.create("busybox", ["sleep", "1000"])  # which ends and goes with the engine
    await box.start()
    await engine.close()
    assert await asyncio.wait_for(following, 30) == ["create", "start", "exit", "remove"]


async def test_iteration_of_a_private_engine_ends_with_it(engine: Engine) -> None:
    events = engine.events()
    await engine.run("busybox", ["true"])
    await engine.close()
    assert [event.kind async for event in events] == ["create", "start", "exit", "remove"]


async def test_removed_ones_are_remembered_within_a_bound_and_read_when_asked_for(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sh", "-c", "exit 3"], name="real", lease=None)
        await box.start()
        await box.wait()
    fill(root, 0, at=0.0, tombstones=3000)
    async with Engine(root=root) as engine:
        assert len(engine.inside.books._removed) == limits.TOMBSTONES
        await (await engine.get("real")).remove()
    async with Engine(root=root) as engine:
        removed = await engine.get("real")
        assert (removed.status, (await removed.wait()).code) == ("removed", 3)
        with pytest.raises(NotFound):
            await engine.get("gone-1000")
        with pytest.raises(StoreError, match="can't be read"):
            await engine.get("gone-2999")
