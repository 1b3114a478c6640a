"""What every store does, and what only SQLite can do wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lighterman import limits
from lighterman.errors import StoreError
from lighterman.record import ExecRecord, decode_exec
from lighterman.store.base import Change, Store, Tombstone
from lighterman.store.memory import MemoryStore
from lighterman.store.migrations import MIGRATIONS, SCHEMA, migrate
from lighterman.store.outside import look_into
from lighterman.store.sqlite import SqliteStore


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore()
    else:
        made = sqlite = SqliteStore(str(tmp_path / "state.db"))
        await sqlite.open()
    yield made
    await made.close()


async def test_events_are_numbered_in_the_order_of_their_commits(store: Store) -> None:
    numbers = [await store.commit(Change(event=(float(i), b"%d" % i))) for i in range(5)]
    assert numbers == [1, 2, 3, 4, 5]
    events, oldest = await store.events(2, 100)
    assert [(event.seq, event.at, event.body) for event in events] == [(3, 2.0, b"2"), (4, 3.0, b"3"), (5, 4.0, b"4")]
    assert oldest == 1
    assert await store.last_event() == 5


async def test_events_read_page_by_page(store: Store) -> None:
    for i in range(7):
        await store.commit(Change(event=(0.0, b"%d" % i)))
    place, read = 0, []
    while page := (await store.events(place, 3))[0]:
        read += [event.body for event in page]
        place = page[-1].seq
    assert read == [b"%d" % i for i in range(7)]


async def test_trim_lets_the_oldest_go_and_never_gives_a_number_twice(store: Store) -> None:
    for i in range(10):
        await store.commit(Change(event=(float(i), b"")))
    assert not await store.trim(now=104.0, keep_s=100.0, keep=3)
    events, oldest = await store.events(0, 100)
    assert [event.seq for event in events] == [8, 9, 10]
    assert oldest == 8
    assert store.newest == 10
    await store.trim(now=1e18, keep_s=0.0, keep=0)
    assert (await store.events(0, 100))[1] == 11
    assert await store.commit(Change(event=(0.0, b""))) == 11


async def test_many_commits_at_once_all_happen(store: Store) -> None:
    numbers = await asyncio.gather(*(store.commit(Change(event=(0.0, b"%d" % i))) for i in range(200)))
    assert sorted(numbers) == list(range(1, 201))


async def open_at(path: Path) -> SqliteStore:
    store = SqliteStore(str(path))
    await store.open()
    return store


async def test_records_and_tombstones_are_there_after_a_reopening(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = await open_at(path)
    await store.commit(Change(save=("a", b"1")))
    await store.commit(Change(save=("b", b"2")))
    await store.commit(Change(save=("a", b"3")))
    await store.commit(Change(delete="b", tombstone=Tombstone("b", "name", 100.0, b"2")))
    await store.close()
    assert look_into(str(path)).records == (("a", b"3"),)
    store = await open_at(path)
    loaded = await store.load("boot-1", now=50.0)
    assert loaded.records == (b"3",)
    assert loaded.tombstones == (Tombstone("b", "name", 100.0, b"2"),)
    assert loaded.boot_id is None
    assert (await store.load("boot-2", now=100.0)).tombstones == ()
    await store.close()


async def test_P01_boot_is_another_one_until_it_is_said_that_all_was_settled(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = await open_at(path)
    assert (await store.load("boot-1", now=0.0)).boot_id is None
    for _ in range(2):
        # An engine that is killed before it has said so, and the next one.
        assert (await store.load("boot-2", now=0.0)).boot_id == "boot-1"
        await store.close()
        store = await open_at(path)
    await store.keep_boot_id("boot-2")
    await store.close()
    store = await open_at(path)
    assert (await store.load("boot-3", now=0.0)).boot_id == "boot-2"
    await store.close()


async def test_what_belongs_to_a_container_is_kept_and_goes_with_it(tmp_path: Path) -> None:
    store = await open_at(tmp_path / "state.db")
    await store.commit(Change(save=("a", b"1"), restarts=("a", b"h"), execs=(("a", "x", b"1"), ("a", "y", b"2"))))
    await store.commit(Change(save=("b", b"2"), restarts=("b", b"i"), execs=(("b", "x", b"3"),)))
    await store.commit(Change(restarts=("a", b"j"), execs=(("a", "x", None), ("a", "a", b"4"), ("a", "y", b"5"))))
    loaded = await store.load("boot", now=0.0)
    assert loaded.restarts == {"a": b"j", "b": b"i"}
    # In the order of their first saving.
    assert loaded.execs == {"a": [b"5", b"4"], "b": [b"3"]}
    await store.commit(Change(restarts=("b", b"")))
    await store.commit(Change(delete="a"))
    loaded = await store.load("boot", now=0.0)
    assert (loaded.restarts, loaded.execs) == ({}, {"b": [b"3"]})
    await store.close()


async def test_trim_lets_tombstones_go_whose_time_is_over(tmp_path: Path) -> None:
    store = await open_at(tmp_path / "state.db")
    for id, until in (("over", 50.0), ("stands", 150.0)):
        await store.commit(Change(tombstone=Tombstone(id, id, until, b"")))
    while await store.trim(now=100.0, keep_s=100.0, keep=10):
        continue
    assert [stone.id for stone in (await store.load("boot", now=0.0)).tombstones] == ["stands"]
    await store.close()


async def test_last_tombstones_are_loaded_and_no_more_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TOMBSTONES", 3)
    store = await open_at(tmp_path / "state.db")
    for number in range(2000):
        await store.commit(Change(tombstone=Tombstone(f"{number}", "name", 100.0 + number, b"")))
    assert [stone.id for stone in (await store.load("boot", now=0.0)).tombstones] == ["1997", "1998", "1999"]
    pieces = 1
    while await store.trim(now=0.0, keep_s=1.0, keep=10):
        pieces += 1
    assert pieces >= 4  # no commit waits for all of it
    count = await store._in_thread(lambda: store._db.execute("SELECT count(*) FROM tombstones").fetchone())
    assert count == (3,)
    assert [stone.id for stone in (await store.load("boot", now=0.0)).tombstones] == ["1997", "1998", "1999"]
    await store.close()


async def test_events_are_let_go_in_pieces(tmp_path: Path) -> None:
    store = await open_at(tmp_path / "state.db")
    for _ in range(40):
        await store.commit(Change(event=(0.0, b""), earlier=((0.0, b""),) * 49))
    pieces = 1
    while await store.trim(now=0.0, keep_s=1.0, keep=10):
        pieces += 1
    assert pieces >= 4
    assert (await store.events(0, 1))[1] == 1991
    await store.close()


@pytest.mark.parametrize("version", range(SCHEMA))
async def test_every_older_schema_is_brought_up_with_what_is_in_it(tmp_path: Path, version: int) -> None:
    path = tmp_path / "state.db"
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, str(path), upto=version)
    if version >= 1:
        connection.execute("INSERT INTO containers VALUES ('old', x'31')")
    if version >= 2:
        connection.execute("INSERT INTO events (at, body) VALUES (1.0, x'32')")
        connection.execute("INSERT INTO tombstones VALUES ('gone', 'name', 9.0, x'33')")
    if version == 3:
        connection.execute("INSERT INTO restarts VALUES ('old', x'34')")
        for id, due in (("ff00", 1.5), ("0a", 1234567.875), ("00", 1e300)):
            connection.execute("INSERT INTO execs_due VALUES ('old', ?, ?)", (id, due))
    connection.close()
    store = await open_at(path)
    loaded = await store.load("boot", now=0.0)
    assert loaded.records == ((b"1",) if version >= 1 else ())
    assert loaded.tombstones == ((Tombstone("gone", "name", 9.0, b"3"),) if version >= 2 else ())
    assert loaded.restarts == ({"old": b"4"} if version == 3 else {})
    assert [decode_exec(row) for row in loaded.execs.get("old", ())] == (
        [ExecRecord(id="ff00", due=1.5), ExecRecord(id="0a", due=1234567.875), ExecRecord(id="00", due=1e300)]
        if version == 3
        else []
    )
    change = Change(event=(0.0, b"e"), restarts=("old", b"h"), execs=(("old", "x", b"5"),))
    assert await store.commit(change) == (2 if version >= 2 else 1)
    loaded = await store.load("boot", now=0.0)
    assert (loaded.restarts, loaded.execs["old"][-1]) == ({"old": b"h"}, b"5")
    await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
    connection.close()


def test_migrations_are_numbered_without_a_gap() -> None:
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA + 1))


async def test_newer_schema_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={SCHEMA + 1}")
    connection.close()
    with pytest.raises(StoreError, match="newer version") as refused:
        await open_at(path)
    assert "\n" not in str(refused.value)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"not a database at all, and long enough to be looked at " * 100)
    with pytest.raises(StoreError):
        await open_at(path)


async def test_commit_that_fails_has_not_happened_and_the_next_one_does(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = await open_at(path)
    await store._in_thread(lambda: store._db.execute("DROP TABLE events"))
    with pytest.raises(StoreError, match="did not happen"):
        await store.commit(Change(save=("a", b"1"), event=(0.0, b"")))
    assert (await store.load("boot", 0.0)).records == ()
    await store.commit(Change(save=("a", b"1")))
    assert (await store.load("boot", 0.0)).records == (b"1",)
    await store.close()


async def test_file_is_nobody_elses_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = await open_at(path)
    with pytest.raises(StoreError, match="locked"):
        look_into(str(path))
    await store.close()
    assert look_into(str(path)).records == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], check=True)
    yield small
    subprocess.run(["umount", str(small)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


async def test_P01_full_disk_takes_what_is_small_all_the_same(small_disk: Path) -> None:
    """Ends and stops have room that no other file can take: here some thousand of them."""
    path = small_disk / "state.db"
    store = await open_at(path)
    await store._in_thread(store._reserve)
    with pytest.raises(OSError, match="No space"):
        fill(small_disk / "filler")
    for number in range(1, 2001):
        assert await store.commit(Change(save=("a", b"x" * 300), event=(0.0, b"x" * 300))) == number
    assert os.statvfs(small_disk).f_bavail == 0
    # As a kill of the engine leaves it: with its log, and with the disk as full as before.
    shutil.copytree(small_disk, small_disk.parent / "killed", ignore=shutil.ignore_patterns("filler"))
    await store.close()
    store = await open_at(small_disk.parent / "killed" / "state.db")
    assert (await store.events(1990, 100))[0][-1].seq == 2000
    await store.close()


async def test_P01_killed_on_a_full_disk_it_is_opened_on_a_full_disk(small_disk: Path) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from lighterman.store.base import Change\n"
        "from lighterman.store.sqlite import SqliteStore\n"
        "async def main():\n"
        "    store = SqliteStore(sys.argv[1])\n"
        "    await store.open()\n"
        "    await store._in_thread(store._reserve)\n"
        "    for number in range(700):\n"
        "        await store.commit(Change(save=('a', b'x' * 300), event=(0.0, b'x' * 300)))\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program, str(small_disk / "state.db")], timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(OSError, match="No space"):
        fill(small_disk / "filler")
    store = await open_at(small_disk / "state.db")
    assert await store.last_event() == 700
    for number in range(701, 1201):
        assert await store.commit(Change(save=("a", b"x" * 300), event=(0.0, b"x" * 300))) == number
    await store.close()


async def test_full_disk_refuses_a_commit_and_takes_it_when_there_is_room(small_disk: Path) -> None:
    store = await open_at(small_disk / "state.db")
    with pytest.raises(OSError, match="No space"):
        fill(small_disk / "filler")
    with pytest.raises(StoreError):
        await store.commit(Change(save=("a", b"x" * 4_000_000), event=(0.0, b"")))
    (small_disk / "filler").unlink()
    assert await store.commit(Change(save=("a", b"x" * 1_000_000), event=(0.0, b""))) == 1
    await store.close()


async def test_closed_store_says_so(tmp_path: Path) -> None:
    store = await open_at(tmp_path / "state.db")
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.commit(Change(save=("a", b"")))
    with pytest.raises(StoreError, match="closed"):
        await store.events(0, 1)


async def test_failure_of_any_kind_is_answered_to_all_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(change: Change) -> int:
        raise LookupError("mistake")

    store = SqliteStore(str(tmp_path / "state.db"))
    await store.open()
    with monkeypatch.context() as patch:
        patch.setattr(store, "_apply", mistaken)
        asked = [asyncio.ensure_future(store.commit(Change(save=(id, b"{}")))) for id in ("a", "b")]
        done, waiting = await asyncio.wait(asked, timeout=60)
    assert not waiting
    assert all(isinstance(one.exception(), StoreError) for one in done)
    await store.commit(Change(save=("a", b"{}")))
    await store.close()
