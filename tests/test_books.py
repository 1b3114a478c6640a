"""The books on a disk that refuses: no record is written down without the facts that it shows, and no fact twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from lighterman import limits
from lighterman.books import Books
from lighterman.entry import Entry
from lighterman.errors import StoreError
from lighterman.journal import Event
from lighterman.lifecycle.status import Status
from lighterman.logs.pump import OutputPump
from lighterman.record import Record
from lighterman.spec import ContainerSpec
from lighterman.store.base import Change
from lighterman.store.memory import MemoryStore
from lighterman.supervisor.tasks import OwnedTasks
from lighterman.testing import FakeClock
from support import eventually


class Disk(MemoryStore):
    """A store whose disk can be full, and slow; `rows` is what was written of records, beside which event."""

    never_waits = False

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.asked = 0
        self.rows: list[tuple[str, str | None]] = []

    async def commit(self, change: Change) -> int:
        self.asked += 1
        await self.may_go_on.wait()
        if self.full:
            raise StoreError("the disk is full")
        if change.save is not None:
            record = msgspec.json.decode(change.save[1], type=Record)
            kind = msgspec.json.decode(change.event[1])["kind"] if change.event is not None else None
            self.rows.append((record.status, kind))
        return await super().commit(change)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def books(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Books]:
    monkeypatch.setattr(limits, "STORE_RETRY_S", 0.001)
    tasks = OwnedTasks()
    yield Books(disk, FakeClock(), tasks.watch)
    await tasks.close(0)


@pytest.fixture
async def entry(books: Books, tmp_path: Path) -> AsyncIterator[Entry]:
    pump = OutputPump(asyncio.get_running_loop())
    record = Record(id="a" * 32, name="box", spec=ContainerSpec(image="busybox", argv=("true",)), created_at=1.0)
    made = Entry(record, pump, tmp_path)
    books.enter(made)
    yield made
    await pump.close()


def end_of(entry: Entry) -> Event:
    return Event(kind="exit", container=entry.record.id, name=entry.record.name, generation=1)


async def kinds(books: Books) -> list[str]:
    return [event.kind async for event in books.journal.events(after=0, follow=False)]


async def test_saved_record_takes_the_untold_fact_along(books: Books, entry: Entry, disk: Disk) -> None:
    disk.full = True
    entry.record.status = Status.EXITED
    telling = await books.tell_fact(entry, end_of(entry))
    assert telling is not None
    with pytest.raises(StoreError):
        await books.save(entry)
    assert disk.rows == []
    disk.full = False
    await books.save(entry)
    await telling
    assert disk.rows[0] == ("exited", "exit")
    assert await kinds(books) == ["exit"]


async def test_fact_is_told_once_though_who_tells_it_is_cancelled(books: Books, entry: Entry, disk: Disk) -> None:
    disk.may_go_on.clear()
    telling = asyncio.ensure_future(books.tell_fact(entry, end_of(entry)))
    await eventually(lambda: disk.asked)
    telling.cancel()
    saving = asyncio.ensure_future(books.save(entry))
    await asyncio.sleep(0)
    disk.may_go_on.set()
    await asyncio.wait((telling, saving))
    assert telling.cancelled()
    assert await kinds(books) == ["exit"]


async def test_fact_comes_before_the_removal(books: Books, entry: Entry, disk: Disk) -> None:
    disk.full = True
    telling = await books.tell_fact(entry, end_of(entry))
    assert telling is not None
    books.strike(entry)
    with pytest.raises(StoreError):
        await books.bury(entry)
    disk.full = False
    await books.bury(entry)
    await telling
    assert await kinds(books) == ["exit", "remove"]
    # Killed between the two, the next engine finds a removal to go on with.
    assert disk.rows == [("removing", "exit")]


async def test_facts_that_waited_are_written_together(books: Books, entry: Entry, disk: Disk) -> None:
    """The record shows what all of them led to: an engine killed between two would leave an end that is never told."""
    disk.full = True
    telling = [await books.tell_fact(entry, Event(kind=kind, container=entry.record.id)) for kind in ("start", "exit")]
    await eventually(lambda: disk.asked >= 4)
    entry.record.status = Status.EXITED
    disk.full = False
    await asyncio.gather(*(told for told in telling if told is not None))
    assert disk.rows == [("exited", "exit")]
    assert await kinds(books) == ["start", "exit"]


async def test_what_is_told_after_the_removal_brings_no_row_back(books: Books, entry: Entry, disk: Disk) -> None:
    books.strike(entry)
    await books.bury(entry)
    await books.tell_fact(entry, end_of(entry))
    assert await kinds(books) == ["remove"]
    assert disk.rows == []


async def test_facts_keep_their_order(books: Books, entry: Entry, disk: Disk) -> None:
    disk.full = True
    order = ["exit-process", "exit", "restart"]
    telling = [await books.tell_fact(entry, Event(kind=kind, container=entry.record.id)) for kind in order]
    await eventually(lambda: disk.asked >= 6)
    assert not any(told is None or told.done() for told in telling)
    disk.full = False
    await asyncio.gather(*(told for told in telling if told is not None))
    assert await kinds(books) == order


async def test_who_waits_for_a_fact_hears_at_once_that_somebody_has_written_it(
    books: Books, entry: Entry, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STORE_RETRY_S", 3600)
    disk.full = True
    telling = await books.tell_fact(entry, end_of(entry))
    assert telling is not None
    await asyncio.sleep(0)
    disk.full = False
    books.strike(entry)
    await books.bury(entry)
    await asyncio.wait_for(asyncio.shield(telling), 60)
    assert await kinds(books) == ["exit", "remove"]


async def test_fact_that_waits_is_tried_once_more_at_the_close(
    books: Books, entry: Entry, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STORE_RETRY_S", 1000)
    disk.full = True
    telling = await books.tell_fact(entry, end_of(entry))
    assert telling is not None
    await asyncio.sleep(0)
    disk.full = False
    telling.cancel()
    await asyncio.wait((telling,))
    assert await kinds(books) == ["exit"]
