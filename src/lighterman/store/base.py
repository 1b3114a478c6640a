"""What the engine asks of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Store"]


class Store(Protocol):
    """Encoded records by id. A method that returns has happened for good; one that raises StoreError has not."""

    async def load(self) -> Sequence[bytes]:
        """All records, in the order of their first saving."""

    async def save(self, id: str, record: bytes) -> None:
        """Insert or replace. Raises: StoreError."""

    async def delete(self, id: str) -> None:
        """Remove; an unknown id is fine. Raises: StoreError."""

    async def close(self) -> None:
        """Finish what was asked for and give everything back."""
