"""One state change written down: record and event in one transaction of the store that a root with a name has."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable

import msgspec

from bench.interleave import Contender, take_turns
from bench.setting import Setting
from lighterman.journal import Event
from lighterman.record import Record
from lighterman.spec import ContainerSpec
from lighterman.store.base import Change
from lighterman.store.sqlite import SqliteStore

__all__ = ["measure"]

ROUNDS = 7
AT_ONCE = 50
OURS = "lighterman's store"
BARE = "sqlite3 by itself, the same rows"
APPEND = "append both to a file, no sync"
SYNCED = "append both to a file, fdatasync"


async def measure(setting: Setting) -> None:
    directory, changes = setting.workspace.directory("store"), setting.effort.state_changes
    store = SqliteStore(f"{directory}/state.db")
    await store.open()
    bare = _bare(f"{directory}/bare.db")
    fd = os.open(f"{directory}/appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    change = _change()
    try:
        contenders = [
            Contender(OURS, _per_change(lambda: store.commit(change), changes)),
            Contender(f"{OURS}, {AT_ONCE} at once", _per_change_at_once(lambda: store.commit(change), changes)),
            Contender(BARE, _blocking(lambda: _commit(bare, change), changes)),
            Contender(APPEND, _blocking(lambda: _append(fd, change, sync=False), changes)),
            Contender(SYNCED, _blocking(lambda: _append(fd, change, sync=True), changes // 20)),
        ]
        await take_turns(contenders, ROUNDS)
    finally:
        os.close(fd)
        bare.close()
        await store.close()
    report = setting.report
    section = "state change written down, each"
    for contender in sorted(contenders, key=lambda one: one.name != BARE):
        samples = contender.samples
        if samples is None:
            report.absent[f"{section}: {contender.name}"] = contender.failed or "not measured"
        else:
            against = "" if contender.name == BARE else BARE
            report.row(section, contender.name, samples, unit="us", scale=1e6, against=against)


def _change() -> Change:
    """As one of a container: about 300 bytes of record and 150 of event."""
    id = os.urandom(16).hex()
    record = Record(id=id, name="bench", spec=ContainerSpec(image="busybox", argv=("sleep", "inf")), created_at=0.0)
    event = Event(kind="start", container=id, name="bench", generation=1, pid=4242)
    return Change(save=(id, msgspec.json.encode(record)), event=(time.time(), msgspec.json.encode(event)))


def _per_change(commit: Callable[[], Awaitable[int]], changes: int) -> Callable[[], Awaitable[float]]:
    async def once() -> float:
        began = time.perf_counter()
        for _ in range(changes):
            await commit()
        return (time.perf_counter() - began) / changes

    return once


def _per_change_at_once(commit: Callable[[], Awaitable[int]], changes: int) -> Callable[[], Awaitable[float]]:
    async def worker(numbers: itertools.islice[int]) -> None:
        for _ in numbers:
            await commit()

    async def once() -> float:
        numbers = itertools.islice(itertools.count(), changes)
        began = time.perf_counter()
        await asyncio.gather(*(worker(numbers) for _ in range(AT_ONCE)))
        return (time.perf_counter() - began) / changes

    return once


def _blocking(act: Callable[[], None], changes: int) -> Callable[[], Awaitable[float]]:
    async def once() -> float:
        began = time.perf_counter()
        for _ in range(changes):
            act()
        return (time.perf_counter() - began) / changes

    return once


def _bare(path: str) -> sqlite3.Connection:
    """With the journal mode and the durability that ours has."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE containers (id TEXT PRIMARY KEY, record BLOB)")
    connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, body BLOB)")
    return connection


def _commit(connection: sqlite3.Connection, change: Change) -> None:
    assert change.save is not None
    assert change.event is not None
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT OR REPLACE INTO containers VALUES (?, ?)", change.save)
    connection.execute("INSERT INTO events (at, body) VALUES (?, ?)", change.event)
    connection.execute("COMMIT")


def _append(fd: int, change: Change, *, sync: bool) -> None:
    assert change.save is not None
    assert change.event is not None
    os.write(fd, change.save[1] + change.event[1])
    if sync:
        os.fdatasync(fd)
