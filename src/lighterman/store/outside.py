"""A store that nobody has open, looked at without changing it: for `lighterman doctor`. Blocking."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from urllib.parse import quote

import msgspec

from lighterman.errors import StoreError
from lighterman.store.migrations import check_version

__all__ = ["Outside", "look_into"]


class Outside(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in it.

    Attributes:
        records: id and encoded record, in the order of their first saving.
        known: the ids of all containers that it tells anything of, removed ones too.
        boot_id: of the host when the store was last opened, None for a new one.
    """

    records: tuple[tuple[str, bytes], ...] = ()
    known: frozenset[str] = frozenset()
    boot_id: str | None = None


class _Event(msgspec.Struct):
    container: str = ""


_EVENT = msgspec.json.Decoder(_Event)  # at import, see `recovery`


def look_into(path: str) -> Outside:
    """Nothing if there is no such file. Raises: StoreError. The caller holds the root's lock."""
    index = f"{path}-shm"
    had_index = os.path.exists(index)
    try:
        connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)
        try:
            return _read(connection, path)
        finally:
            connection.close()
            if not had_index:
                # Made by SQLite, for the log that a killed engine has left.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(index)
    except sqlite3.Error as failed:
        if not os.path.exists(path):
            return Outside()
        raise StoreError(f"{path}: {failed}") from failed


def _read(connection: sqlite3.Connection, path: str) -> Outside:
    check_version(connection, path)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "containers" not in tables:
        return Outside()
    records = tuple(connection.execute("SELECT id, record FROM containers ORDER BY rowid"))
    known = {id for id, _ in records}
    boot_id = None
    if "events" in tables:
        known.update(id for (id,) in connection.execute("SELECT id FROM tombstones"))
        for (body,) in connection.execute("SELECT body FROM events"):
            with contextlib.suppress(msgspec.MsgspecError):
                known.add(_EVENT.decode(body).container)
        found = connection.execute("SELECT value FROM facts WHERE name = 'boot_id'").fetchone()
        boot_id = found[0] if found else None
    return Outside(records=records, known=frozenset(known - {""}), boot_id=boot_id)
