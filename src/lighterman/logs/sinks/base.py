"""What a sink is to whoever feeds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from lighterman.logs.reader import LogRecord

__all__ = ["LogSource", "Outlet", "SinkFailed", "text_of"]


class LogSource(NamedTuple):
    """Whose log it is."""

    id: str
    name: str
    image: str


class SinkFailed(Exception):
    """It took nothing. What was not taken is offered again later."""


class Outlet(Protocol):
    """One open sink. One call at a time.

    Attributes: refused: records that it can never take and that were left out.
    """

    kind: str
    refused: int

    async def send(self, records: Sequence[LogRecord]) -> int:
        """Deliver the first ones; returns how many, 1 or more. Raises: SinkFailed."""
        ...

    async def close(self) -> None:
        """Let go of it. Again is nothing."""
        ...


def text_of(record: LogRecord) -> bytes:
    """What a line says to a sink that knows only messages."""
    if record.data:
        return record.data[:-1] if record.data.endswith(b"\n") else record.data
    return b"%d bytes of output were not kept" % record.lost
