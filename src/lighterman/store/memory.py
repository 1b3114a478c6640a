"""The store of a private root: it ends with its engine, and so does everything in it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MemoryStore"]


class MemoryStore:
    """A dictionary behind the face of `Store`."""

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}

    async def load(self) -> Sequence[bytes]:
        return tuple(self._records.values())

    async def save(self, id: str, record: bytes) -> None:
        self._records[id] = record

    async def delete(self, id: str) -> None:
        self._records.pop(id, None)

    async def close(self) -> None:
        return
