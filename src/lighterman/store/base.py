"""What the engine asks of a store: one transaction for a change and its event, and a journal to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

__all__ = ["Change", "Loaded", "Store", "StoredEvent", "Tombstone"]


class StoredEvent(msgspec.Struct, frozen=True):
    """One row of the journal: its sequence number, its time (Unix, seconds) and what the engine encoded."""

    seq: int
    at: float
    body: bytes


class Tombstone(msgspec.Struct, frozen=True):
    """What is kept of a removed container until `until` (Unix, seconds), so that a late `wait` has an answer."""

    id: str
    name: str
    until: float
    record: bytes


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What happens together or not at all.

    Attributes:
        save: container id and encoded record. delete: container id, with all that belongs to it. tombstone: instead of
            what is deleted.
        event: time (Unix, seconds) and body of a row for the journal. earlier: of those before it.
        restarts: container id and the history of its restarts; an empty one goes.
        execs: container id, exec id and encoded record of execs; None for one that goes.
    """

    save: tuple[str, bytes] | None = None
    restarts: tuple[str, bytes] | None = None
    execs: tuple[tuple[str, str, bytes | None], ...] = ()
    delete: str | None = None
    tombstone: Tombstone | None = None
    event: tuple[float, bytes] | None = None
    earlier: tuple[tuple[float, bytes], ...] = ()


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """All that was kept.

    Attributes:
        ids: of `records`, in the same order. restarts: by container id.
        execs: by container id, in the order of their first saving.
        boot_id: of the life of the host that the records are of, None for a new store.
    """

    records: tuple[bytes, ...] = ()
    ids: tuple[str, ...] = ()
    tombstones: tuple[Tombstone, ...] = ()
    restarts: dict[str, bytes] = {}
    execs: dict[str, list[bytes]] = {}
    boot_id: str | None = None


class Store(Protocol):
    """A method that returns has happened for good; one that raises StoreError has not happened.

    Attributes: never_waits: whether a commit is done in the turn of the loop that asks for it.
    """

    never_waits: bool

    @property
    def newest(self) -> int:
        """The number of the newest event whose commit has returned, 0 if there was none. Does not wait."""

    async def load(self, boot_id: str, now: float) -> Loaded:
        """Everything, records in the order of their first saving.

        Of tombstones the last limits.TOMBSTONES that stand, the oldest first.
        Args: boot_id: of the host's present life, which is kept if none was kept yet.
        """

    async def keep_boot_id(self, boot_id: str) -> None:
        """All records are of this life of the host now. Raises: StoreError."""

    async def commit(self, change: Change) -> int:
        """One transaction. Returns: the event's sequence number, 0 without one. Raises: StoreError."""

    async def events(self, after: int, limit: int) -> tuple[Sequence[StoredEvent], int]:
        """At most `limit` events with a greater number than `after`, in order, and the number of the oldest kept.

        What was asked to be committed before is among them, or never will be.
        """

    async def last_event(self) -> int:
        """The number of the newest event ever, 0 if there was none."""

    async def trim(self, now: float, keep_s: float, keep: int) -> bool:
        """Let some go, the oldest first: events older than that or beyond the newest `keep`; tombstones that are over.

        Returns: whether there are more to let go.
        """

    async def close(self) -> None:
        """Finish what was asked for and give everything back."""
