"""The store of a root that outlives its engine: SQLite in one thread, so that no commit blocks the loop.

Group commit: all changes that wait when the thread comes round go into one transaction.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lighterman import limits
from lighterman.disks import refusal
from lighterman.errors import StoreError
from lighterman.keeper.files import OURS
from lighterman.store.base import Change, Loaded, StoredEvent, Tombstone
from lighterman.store.migrations import migrate

__all__ = ["SqliteStore"]

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


# What a full disk must not refuse (ends, stops, removals) is written in place: room for it is in the file and in the
# write-ahead log beforehand. 1 MiB is about 500 frames of the log, which is begun anew before they are used up.
_RESERVE_BYTES = 1 << 20
_CHECKPOINT_PAGES = 400
_RESERVE_AFTER_S = 1.0  # it takes some 25 ms, which nobody who has just begun should wait for
_RESERVE_COMMITS = 500
_TRIM_ROWS = 500  # let go of at a time, for which a commit may have to wait: some milliseconds

# By the rows' own order, which is that of the removals: no row has to be read for it.
_LAST_TOMBSTONES = """
    SELECT id, name, until, record FROM tombstones
    WHERE rowid IN (SELECT rowid FROM tombstones WHERE until > ? ORDER BY rowid DESC LIMIT ?) ORDER BY rowid
"""
_TOO_MANY_TOMBSTONES = "DELETE FROM tombstones WHERE rowid IN (SELECT rowid FROM tombstones ORDER BY rowid LIMIT ?)"
_OLD_TOMBSTONES = "DELETE FROM tombstones WHERE rowid IN (SELECT rowid FROM tombstones WHERE until <= ? LIMIT ?)"


class SqliteStore:
    """WAL and `synchronous=NORMAL`: safe against the death of any of our processes, not against loss of power.

    The file is locked while it is open: nobody else has business there, and so the index of the log needs no file.
    """

    never_waits = False

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lighterman-store")
        self._connection: sqlite3.Connection | None = None
        self._waiting: deque[tuple[Change, asyncio.Future[int]]] = deque()
        self._lock = threading.Lock()
        self._since_reserve = 0
        self._reserving: asyncio.TimerHandle | None = None
        self._told = 0  # the newest event that was there at the opening, or was answered with

    async def open(self) -> None:
        """Open or make the file and bring it to this version's schema.

        Raises: StoreError, also for a file that a newer version has written.
        """
        try:
            self._told = await self._in_thread(self._open)
        except BaseException:
            await self.close()
            raise
        loop = asyncio.get_running_loop()
        self._reserving = loop.call_later(_RESERVE_AFTER_S, lambda: self._thread.submit(self._reserve))

    @property
    def newest(self) -> int:
        return self._told

    def _open(self) -> int:
        # Environments with secrets are in it; its -wal and -shm get the same mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | OURS, 0o600))
        os.chmod(self._path, 0o600)
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._connection = connection
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        # What was killed has left its log: begun anew, it has room.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        migrate(connection, self._path)
        return self._newest()

    def _reserve(self) -> None:
        """Make room that no other file can take; where there is none, the next time."""
        if self._connection is None:
            return
        self._since_reserve = 0
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        (page_bytes,) = self._connection.execute("PRAGMA page_size").fetchone()
        if free * page_bytes >= _RESERVE_BYTES // 2 and os.path.getsize(f"{self._path}-wal") >= _RESERVE_BYTES:
            return
        try:
            self._connection.execute("CREATE TABLE IF NOT EXISTS reserve (content BLOB)")
            self._connection.execute("INSERT INTO reserve VALUES (zeroblob(?))", (_RESERVE_BYTES,))
            self._connection.execute("DROP TABLE reserve")
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as failed:
            log.debug("%s: no reserve for a full disk: %s", self._path, failed)

    async def load(self, boot_id: str, now: float) -> Loaded:
        return await self._in_thread(lambda: self._load(boot_id, now))

    def _load(self, boot_id: str, now: float) -> Loaded:
        found = self._db.execute("SELECT value FROM facts WHERE name = 'boot_id'").fetchone()
        rows = self._db.execute("SELECT id, record FROM containers ORDER BY rowid").fetchall()
        execs: dict[str, list[bytes]] = {}
        for container, record in self._db.execute("SELECT container, record FROM execs ORDER BY rowid"):
            execs.setdefault(container, []).append(record)
        loaded = Loaded(
            records=tuple(row[1] for row in rows),
            ids=tuple(row[0] for row in rows),
            tombstones=tuple(Tombstone(*row) for row in self._db.execute(_LAST_TOMBSTONES, (now, limits.TOMBSTONES))),
            restarts=dict(self._db.execute("SELECT container, history FROM restarts")),
            execs=execs,
            boot_id=found[0] if found else None,
        )
        # Another one is kept only when all that the reboot has ended is told: who is killed before has told nothing.
        self._db.execute("INSERT OR IGNORE INTO facts VALUES ('boot_id', ?)", (boot_id,))
        return loaded

    async def keep_boot_id(self, boot_id: str) -> None:
        await self._in_thread(lambda: self._keep_boot_id(boot_id))

    def _keep_boot_id(self, boot_id: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES ('boot_id', ?)", (boot_id,))

    async def commit(self, change: Change) -> int:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with self._lock:
            first = not self._waiting
            self._waiting.append((change, done))
        if first:
            self._submit(asyncio.get_running_loop())
        # What was asked for happens, whether or not who asked still waits.
        return await asyncio.shield(done)

    def _submit(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._thread.submit(self._commit_waiting, loop)
        except RuntimeError as closed:
            self._waiting.clear()
            raise StoreError(f"{self._path} is closed") from closed

    def _commit_waiting(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            batch = list(self._waiting)
            self._waiting.clear()
        outcome: list[int] | StoreError
        try:
            outcome = self._commit_all([change for change, _ in batch])
        except BaseException as failed:  # noqa: BLE001  whatever it is, everyone in the batch waits for an answer
            outcome = StoreError(f"{refusal(self._path, failed)}: the change did not happen")
            outcome.__cause__ = failed
        loop.call_soon_threadsafe(self._answer, [done for _, done in batch], outcome)
        self._since_reserve += len(batch)
        if self._since_reserve >= _RESERVE_COMMITS:
            self._reserve()

    def _answer(self, waiting: Sequence[asyncio.Future[int]], outcome: list[int] | StoreError) -> None:
        if not isinstance(outcome, StoreError):
            self._told = max([self._told, *outcome])
        for index, done in enumerate(waiting):
            if done.done():
                continue
            if isinstance(outcome, StoreError):
                done.set_exception(outcome)
                done.exception()  # who asked may have been cancelled meanwhile
            else:
                done.set_result(outcome[index])

    def _commit_all(self, changes: Sequence[Change]) -> list[int]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            numbers = [self._apply(change) for change in changes]
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return numbers

    def _apply(self, change: Change) -> int:
        if change.save is not None:
            self._db.execute(
                "INSERT INTO containers VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                change.save,
            )
        self._apply_details(change)
        if change.delete is not None:
            self._db.execute("DELETE FROM containers WHERE id = ?", (change.delete,))
            self._db.execute("DELETE FROM restarts WHERE container = ?", (change.delete,))
            self._db.execute("DELETE FROM execs WHERE container = ?", (change.delete,))
        if change.tombstone is not None:
            stone = change.tombstone
            self._db.execute(
                "INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?, ?)",
                (stone.id, stone.name, stone.until, stone.record),
            )
        if change.event is None:
            return 0
        for event in change.earlier:
            self._db.execute("INSERT INTO events (at, body) VALUES (?, ?)", event)
        number = self._db.execute("INSERT INTO events (at, body) VALUES (?, ?)", change.event).lastrowid
        assert number is not None
        return number

    def _apply_details(self, change: Change) -> None:
        if change.restarts is not None and change.restarts[1]:
            self._db.execute("INSERT OR REPLACE INTO restarts VALUES (?, ?)", change.restarts)
        elif change.restarts is not None:
            self._db.execute("DELETE FROM restarts WHERE container = ?", change.restarts[:1])
        for container, name, record in change.execs:
            if record is None:
                self._db.execute("DELETE FROM execs WHERE container = ? AND id = ?", (container, name))
                continue
            self._db.execute(
                "INSERT INTO execs VALUES (?, ?, ?) ON CONFLICT (container, id) DO UPDATE SET record = excluded.record",
                (container, name, record),
            )

    async def events(self, after: int, limit: int) -> tuple[Sequence[StoredEvent], int]:
        return await self._in_thread(lambda: self._read_events(after, limit))

    def _read_events(self, after: int, limit: int) -> tuple[Sequence[StoredEvent], int]:
        rows = self._db.execute("SELECT seq, at, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        events = [StoredEvent(*row) for row in rows]
        (oldest,) = self._db.execute("SELECT min(seq) FROM events").fetchone()
        return events, oldest if oldest is not None else self._newest() + 1

    async def last_event(self) -> int:
        return await self._in_thread(self._newest)

    def _newest(self) -> int:
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        return int(row[0]) if row else 0

    async def trim(self, now: float, keep_s: float, keep: int) -> bool:
        return await self._in_thread(lambda: self._trim(now, keep_s, keep))

    def _trim(self, now: float, keep_s: float, keep: int) -> bool:
        (stones,) = self._db.execute("SELECT count(*) FROM tombstones").fetchone()
        if stones > limits.TOMBSTONES:
            gone = self._db.execute(_TOO_MANY_TOMBSTONES, (min(stones - limits.TOMBSTONES, _TRIM_ROWS),)).rowcount
        else:
            gone = self._db.execute(_OLD_TOMBSTONES, (now, _TRIM_ROWS)).rowcount
        oldest = self._db.execute("SELECT seq, at FROM events ORDER BY seq LIMIT ?", (_TRIM_ROWS,)).fetchall()
        upto, dispensable = 0, self._newest() - keep
        for seq, at in oldest:
            # Only from the beginning on: a clock that was set back for a while makes no hole in the middle.
            if at >= now - keep_s and seq > dispensable:
                break
            upto = seq
        gone_too = self._db.execute("DELETE FROM events WHERE seq <= ?", (upto,)).rowcount if upto else 0
        return gone > 0 or gone_too == _TRIM_ROWS

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        if self._reserving is not None:
            self._reserving.cancel()
        if self._connection is not None:
            # After all that was asked for before: what nobody waits for any more would fail with nobody to hear of it.
            await loop.run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self._path} is closed")
        return self._connection

    async def _in_thread(self, act: Callable[[], _Result]) -> _Result:
        try:
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._tried, act)
        except RuntimeError as closed:
            raise StoreError(f"{self._path} is closed") from closed
        return await asyncio.shield(work)

    def _tried(self, act: Callable[[], _Result]) -> _Result:
        try:
            return act()
        except (sqlite3.Error, OSError) as failed:
            raise StoreError(refusal(self._path, failed)) from failed
