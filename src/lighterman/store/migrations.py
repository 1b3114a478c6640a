"""The schema, step by step; a step that was released is never changed, a further one is added."""

from __future__ import annotations

import sqlite3

from lighterman.errors import StoreError

__all__ = ["MIGRATIONS", "SCHEMA", "check_version", "migrate"]

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: ("CREATE TABLE containers (id TEXT PRIMARY KEY, record BLOB NOT NULL) STRICT",),
    2: (
        # AUTOINCREMENT: a number is never given twice, even when the newest rows were let go.
        "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, body BLOB NOT NULL) STRICT",
        "CREATE TABLE tombstones (id TEXT PRIMARY KEY, name TEXT NOT NULL, until REAL NOT NULL, record BLOB NOT NULL)"
        " STRICT",
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    ),
    3: (
        "CREATE TABLE restarts (container TEXT PRIMARY KEY, history BLOB NOT NULL) STRICT",
        "CREATE TABLE execs_due (container TEXT NOT NULL, id TEXT NOT NULL, due REAL NOT NULL,"
        " PRIMARY KEY (container, id)) STRICT",
    ),
    4: (
        "CREATE TABLE execs (container TEXT NOT NULL, id TEXT NOT NULL, record BLOB NOT NULL,"
        " PRIMARY KEY (container, id)) STRICT",
        # Ids are hexadecimal digits, and a number is written as JSON has it: no function that a build may lack.
        """INSERT INTO execs SELECT container, id, CAST('{"id":"' || id || '","due":' || due || '}' AS BLOB)"""
        " FROM execs_due ORDER BY rowid",
        "DROP TABLE execs_due",
    ),
}
SCHEMA = max(MIGRATIONS)


def check_version(connection: sqlite3.Connection, path: str) -> int:
    """The schema of a database. Raises: StoreError for one of a newer version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise StoreError(
            f"{path} was written by a newer version (schema {version}, this one knows {SCHEMA}): upgrade lighterman"
        )
    return int(version)


def migrate(connection: sqlite3.Connection, path: str, upto: int = SCHEMA) -> None:
    """Bring a database to a schema, one transaction a step. Raises: StoreError for one of a newer version."""
    version = check_version(connection, path)
    for number in range(version + 1, upto + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in MIGRATIONS[number]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={number}")
        connection.execute("COMMIT")
