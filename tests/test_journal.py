"""Events: in order, with numbers, for readers who are slow, late, or come back."""

from __future__ import annotations

import asyncio

import pytest

from lighterman import limits
from lighterman.journal import Event, Journal
from lighterman.store.memory import MemoryStore
from lighterman.testing import FakeClock


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
    await events.aclose()  # type: ignore[attr-defined]


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
    await events.aclose()  # type: ignore[attr-defined]


async def test_filters_leave_out_other_kinds_and_containers(journal: Journal) -> None:
    await told(journal, 2, kind="start", container="a")
    await told(journal, 2, kind="exit", container="a")
    await told(journal, 2, kind="exit", container="b")
    seen = [event async for event in journal.events(after=0, kinds=["exit"], container="a", follow=False)]
    assert [event.seq for event in seen] == [3, 4]
