"""What a user of the lifecycle implements."""

from __future__ import annotations

import asyncio
from typing import Protocol

from lighterman.lifecycle.events import StateInfo
from lighterman.supervisor.streams import Streams

__all__ = ["AttachFailed", "Backend"]


class Backend(Protocol):
    """Whoever uses the lifecycle: our engine, or a program that embeds `Client` alone.

    Both methods may call back into the client. Events of one container come one after the other.
    """

    async def attach_streams(self, container_id: str, process_id: str, streams: Streams) -> None:
        """Take the streams of a process that was just made; return soon. Raising ends the container [L14]."""

    async def state_changed(self, info: StateInfo) -> asyncio.Future[None] | None:
        """Hear of a change. What it raises is logged and stops nothing [L26].

        Returns: None: whoever keeps an end for us (the keeper) may forget it. A future: not before that is done; the
            next change is told meanwhile.
        """


class AttachFailed(Exception):
    """The backend did not take the streams; its own error is the cause [L14]. Never leaves the supervisor."""
