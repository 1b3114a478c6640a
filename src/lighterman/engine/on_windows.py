"""Windows: the Host Compute Service. There is no keeper, and output is read from its streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from lighterman import windows_recovery
from lighterman.books import Books
from lighterman.entry import Entry, read_output
from lighterman.errors import InvalidState
from lighterman.logs.reading import ReadingPump
from lighterman.logs.sink import OutputSink
from lighterman.roots import StateRoot
from lighterman.store.base import Store
from lighterman.supervisor.streams import Streams
from lighterman.supervisor.tasks import OwnedTasks
from lighterman.windows_host import Loader, WindowsHost, load, open_host
from lighterman.windows_leases import WindowsLeases

if TYPE_CHECKING:
    from lighterman.engine.engine import Engine

__all__ = ["OnWindows"]


class OnWindows:
    """See `Platform`. Args: load: how the service's runtime is found; a test has a double."""

    def __init__(self, load: Loader = load) -> None:
        self._load = load
        self._opened: WindowsHost | None = None

    def check(self) -> None:
        """Whether the service is there, and lets us, is known once it was asked."""

    def leases(
        self,
        tasks: OwnedTasks,
        books: Callable[[], Books],
        end: Callable[[Entry], Awaitable[None]],
        remove: Callable[[Entry], Awaitable[None]],
    ) -> WindowsLeases:
        return WindowsLeases(tasks, books, end)

    async def open(self, root: StateRoot, runtime: str | None) -> WindowsHost:
        self._opened = await open_host(root, runtime, self._load)
        return self._opened

    async def begin(self, tasks: OwnedTasks) -> None:
        """The service itself ends what is tied to us, with our last handle."""

    def pump(self, loop: asyncio.AbstractEventLoop) -> ReadingPump:
        return ReadingPump(loop)

    async def take_output(self, streams: Streams, sink: OutputSink) -> None:
        read_output(streams, sink)

    async def take_up(self, engine: Engine, books: Books, store: Store) -> None:
        if self._opened is None:
            raise InvalidState("the engine is not running: use `async with Engine() as engine`")
        await windows_recovery.take_up(engine, self._opened, books, store)
