"""Events: in order, with numbers, for readers who are slow, late, or come back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from lighterman import limits
from lighterman.errors import InvalidSpec, InvalidState, StoreError
from lighterman.journal import KINDS, Event, Journal
from lighterman.store.base import StoredEvent
from lighterman.store.memory import MemoryStore
from lighterman.store.sqlite import SqliteStore
from lighterman.testing import FakeClock
from support import eventually


@pytest.fixture
def journal() -> Journal:
    return Journal(MemoryStore(), FakeClock())


async def told(journal: Journal, count: int, kind: str = "start", container: str = "c") -> None:
    for i in range(count):
        await journal.commit(Event(kind=kind, container=container, name=str(i)))


async def test_P11_reader_that_comes_back_goes_on_after_what_it_had(journal: Journal) -> None:
    await told(journal, 5)
    seen = [event async for event in journal.events(after=2, follow=False)]
    assert [(event.seq, event.name) for event in seen] == [(3, "2"), (4, "3"), (5, "4")]


async def test_P11_slow_reader_is_never_dropped(journal: Journal) -> None:
    events = journal.events(after=0)
    first = asyncio.ensure_future(anext(events))
    await told(journal, 5000)
    assert (await first).seq == 1
    assert [(await anext(events)).seq for _ in range(4999)] == list(range(2, 5001))
    await events.aclose()


async def test_P11_what_was_let_go_is_told_as_a_gap(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_KEPT", 20)
    await told(journal, 100)
    await journal.trim()
    seen = [event async for event in journal.events(after=10, follow=False)]
    assert seen[0].kind == "gap"
    assert seen[0].lost == 70
    assert [event.seq for event in seen[1:]] == list(range(81, 101))


async def test_follower_hears_of_what_comes_and_nothing_of_what_was(journal: Journal) -> None:
    await told(journal, 3)
    events = journal.events()
    waiting = asyncio.ensure_future(anext(events))
    while not waiting.done():
        await told(journal, 1, kind="exit")
        await asyncio.sleep(0)
    assert waiting.result().kind == "exit"
    assert waiting.result().seq > 3
    await events.aclose()


async def test_filters_leave_out_other_kinds_and_containers(journal: Journal) -> None:
    await told(journal, 2, kind="start", container="a")
    await told(journal, 2, kind="exit", container="a")
    await told(journal, 2, kind="exit", container="b")
    seen = [event async for event in journal.events(after=0, kinds=["exit"], container="a", follow=False)]
    assert [event.seq for event in seen] == [3, 4]


# ---- what is let go ----


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(str(tmp_path / "state.db"))
    await store.open()
    yield store
    await store.close()


async def test_clock_that_was_set_back_leaves_no_hole(sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_KEPT_S", 1000.0)
    clock = FakeClock(wall=1_000_000.0)
    journal = Journal(sqlite, clock)
    await told(journal, 3)
    clock.set_wall(0.0)
    await told(journal, 3)
    clock.set_wall(1_000_100.0)
    await told(journal, 3)
    await journal.trim()
    assert [event.seq for event in [event async for event in journal.events(after=0, follow=False)]] == [*range(1, 10)]
    clock.set_wall(1_001_050.0)
    await journal.trim()
    seen = [(event.kind, event.seq, event.lost) async for event in journal.events(after=0, follow=False)]
    assert seen == [("gap", 6, 6), ("start", 7, 0), ("start", 8, 0), ("start", 9, 0)]


async def test_hole_between_two_events_is_told_as_a_gap(sqlite: SqliteStore) -> None:
    journal = Journal(sqlite, FakeClock())
    await told(journal, 9)
    await sqlite._in_thread(lambda: sqlite._db.execute("DELETE FROM events WHERE seq BETWEEN 4 AND 6"))
    seen = [(event.kind, event.seq, event.lost) async for event in journal.events(after=0, follow=False)]
    assert seen[2:5] == [("start", 3, 0), ("gap", 6, 3), ("start", 7, 0)]


async def test_bounds_are_kept_from_the_beginning_on_by_number_and_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_KEPT", 100)
    monkeypatch.setattr(limits, "EVENTS_KEPT_S", 5000.0)
    store, clock = MemoryStore(), FakeClock()
    journal = Journal(store, clock)

    async def kept() -> list[int]:
        return [row.seq for row in (await store.events(0, 10_000))[0]]

    async def keeps(wanted: Sequence[int]) -> None:
        async def so() -> bool:
            return await kept() == list(wanted)

        await eventually(so)

    await told(journal, 300)
    keeping = asyncio.ensure_future(journal.keep_within_bounds())
    await keeps(range(201, 301))
    await told(journal, 10)
    await keeps(range(211, 311))
    await clock.advance(4000.0)
    await told(journal, 5)
    await clock.advance(4000.0)
    await keeps(range(311, 316))
    keeping.cancel()
    await asyncio.wait((keeping,))


async def test_events_that_can_t_be_let_go_are_let_go_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "EVENTS_KEPT", 10)
    store = MemoryStore()
    trim, full = store.trim, True

    async def sometimes(now: float, keep_s: float, keep: int) -> bool:
        if full:
            raise StoreError("disk full")
        return await trim(now, keep_s, keep)

    monkeypatch.setattr(store, "trim", sometimes)
    journal = Journal(store, FakeClock())
    keeping = asyncio.ensure_future(journal.keep_within_bounds())
    await told(journal, 20)
    await eventually(lambda: "disk full" in caplog.text)
    full = False
    await told(journal, 1)

    async def ten() -> bool:
        return (await store.events(0, 100))[1] == 12

    await eventually(ten)
    keeping.cancel()
    await asyncio.wait((keeping,))


# ---- places ----


async def test_follower_s_place_is_that_of_its_call(journal: Journal) -> None:
    await told(journal, 3)
    events = journal.events()
    await told(journal, 1, kind="exit")
    assert (await anext(events)).seq == 4
    await events.aclose()


async def test_place_beyond_the_newest_event_is_refused(journal: Journal) -> None:
    await told(journal, 3)
    assert [event async for event in journal.events(after=3, follow=False)] == []
    with pytest.raises(InvalidSpec, match=r"after 4: the newest event is 3.*after=0"):
        journal.events(after=4)


async def test_newest_event_is_known_after_a_reopening(tmp_path: Path) -> None:
    for last in (2, 4):
        store = SqliteStore(str(tmp_path / "state.db"))
        await store.open()
        await told(Journal(store, FakeClock()), 2)
        assert store.newest == last
        await store.close()


async def test_commit_whose_asker_was_cancelled_is_told(sqlite: SqliteStore) -> None:
    journal = Journal(sqlite, FakeClock())
    events = journal.events()
    waiting = asyncio.ensure_future(anext(events))
    await eventually(lambda: journal._reading)
    committing = asyncio.ensure_future(journal.commit(Event(kind="create")))
    await asyncio.sleep(0)
    committing.cancel()
    assert (await asyncio.wait_for(waiting, 30)).kind == "create"
    assert committing.cancelled()
    await events.aclose()


# ---- filters ----


async def test_container_is_chosen_by_its_name_too(journal: Journal) -> None:
    for id, name in (("1" * 32, "web"), ("2" * 32, "db"), ("3" * 32, "web")):
        await journal.commit(Event(kind="create", container=id, name=name))
    for asked, seqs in (("web", [1, 3]), ("2" * 32, [2]), ("other", [])):
        assert [event.seq async for event in journal.events(after=0, container=asked, follow=False)] == seqs


def test_kind_that_there_is_not_is_refused_at_once(journal: Journal) -> None:
    with pytest.raises(InvalidSpec, match="'exits': there is no such kind"):
        journal.events(kinds=["start", "exits"])
    with pytest.raises(InvalidSpec, match="must be a list"):
        journal.events(kinds="exit")
    with pytest.raises(InvalidSpec, match="container 5"):
        journal.events(container=5)  # type: ignore[arg-type]


def test_every_kind_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "events.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {kind for row in rows for kind in re.findall(r"`([a-z-]+)`", row)} == KINDS


# ---- the end ----


async def test_follower_ends_with_the_journal_after_the_last_event(sqlite: SqliteStore) -> None:
    journal = Journal(sqlite, FakeClock())

    async def follow() -> list[int]:
        return [event.seq async for event in journal.events(after=0)]

    following = asyncio.ensure_future(follow())
    await told(journal, 3)
    await journal.close()
    await sqlite.close()
    assert await asyncio.wait_for(following, 30) == [1, 2, 3]


async def test_slow_follower_that_has_not_read_all_is_told_so(sqlite: SqliteStore) -> None:
    journal = Journal(sqlite, FakeClock())
    await told(journal, 300)
    events = journal.events(after=0)
    assert (await anext(events)).seq == 1
    await journal.close()
    await sqlite.close()
    assert [(await anext(events)).seq for _ in range(255)] == [*range(2, 257)]
    with pytest.raises(InvalidState, match="go on after 256"):
        await anext(events)


async def test_store_that_fails_is_no_end(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(after: int, limit: int) -> tuple[Sequence[StoredEvent], int]:
        raise StoreError("disk I/O error")

    monkeypatch.setattr(journal._store, "events", broken)
    with pytest.raises(StoreError):
        await anext(journal.events())
