"""The store of a root that outlives its engine: SQLite in one thread, so that no commit blocks the loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lighterman.errors import StoreError

__all__ = ["SCHEMA", "SqliteStore"]

SCHEMA = 1
_Result = TypeVar("_Result")

_MIGRATIONS = {
    1: "CREATE TABLE containers (id TEXT PRIMARY KEY, record BLOB NOT NULL) STRICT",
}


class SqliteStore:
    """WAL and `synchronous=NORMAL`: safe against the death of any of our processes, not against loss of power."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lighterman-store")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open or make the file and bring it to this version's schema.

        Raises: StoreError, also for a file that a newer version has written.
        """
        try:
            await self._in_thread(self._open)
        except BaseException:
            await self.close()
            raise

    def _open(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._connection = connection
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise StoreError(
                f"{self._path} was written by a newer version (schema {version}, this one knows {SCHEMA}): "
                "upgrade lighterman"
            )
        for number in range(version + 1, SCHEMA + 1):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_MIGRATIONS[number])
            connection.execute(f"PRAGMA user_version={number}")
            connection.execute("COMMIT")

    async def load(self) -> Sequence[bytes]:
        return await self._in_thread(
            lambda: [row[0] for row in self._db.execute("SELECT record FROM containers ORDER BY rowid")]
        )

    async def save(self, id: str, record: bytes) -> None:
        await self._in_thread(
            lambda: self._db.execute(
                "INSERT INTO containers VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                (id, record),
            )
        )

    async def delete(self, id: str) -> None:
        await self._in_thread(lambda: self._db.execute("DELETE FROM containers WHERE id = ?", (id,)))

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, connection.close)
        self._thread.shutdown(wait=False)

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self._path} is closed")
        return self._connection

    async def _in_thread(self, act: Callable[[], _Result]) -> _Result:
        work = asyncio.get_running_loop().run_in_executor(self._thread, act)
        try:
            # What was asked for happens, whether or not who asked still waits.
            return await asyncio.shield(work)
        except sqlite3.Error as failed:
            raise StoreError(f"{self._path}: {failed}: the change did not happen") from failed
