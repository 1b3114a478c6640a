"""Linux: an OCI runtime, a keeper that outlives us, a thread that moves output."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from lighterman import recovery
from lighterman.books import Books
from lighterman.entry import Entry, take_output
from lighterman.errors import InvalidState, LightermanError, NotSupported
from lighterman.leases import Leases
from lighterman.linux_host import LinuxHost, open_host
from lighterman.logs.pump import OutputPump
from lighterman.logs.sink import OutputSink
from lighterman.roots import StateRoot
from lighterman.store.base import Store
from lighterman.supervisor.streams import Streams
from lighterman.supervisor.tasks import OwnedTasks
from lighterman.threads import in_thread

if TYPE_CHECKING:
    from lighterman.engine.engine import Engine

__all__ = ["OnLinux"]

log = logging.getLogger(__name__)


class OnLinux:
    """See `Platform`."""

    def __init__(self) -> None:
        self._opened: LinuxHost | None = None
        self._leases: Leases | None = None

    @property
    def _host(self) -> LinuxHost:
        if self._opened is None:
            raise InvalidState("the engine is not running: use `async with Engine() as engine`")
        return self._opened

    def check(self) -> None:
        if os.geteuid() != 0:
            raise NotSupported("running containers without root is not supported in this version: run it as root")

    def leases(
        self,
        tasks: OwnedTasks,
        books: Callable[[], Books],
        end: Callable[[Entry], Awaitable[None]],
        remove: Callable[[Entry], Awaitable[None]],
    ) -> Leases:
        self._leases = Leases(tasks, books, lambda: self._host, end, remove)
        return self._leases

    async def open(self, root: StateRoot, runtime: str | None) -> LinuxHost:
        self._opened = await open_host(root, runtime)
        return self._opened

    async def begin(self, tasks: OwnedTasks) -> None:
        assert self._leases is not None
        await self._host.lease_ourselves()
        tasks.watch(self._host.watch_keeper(self._leases.grant_again), "watch the keeper")

    def pump(self, loop: asyncio.AbstractEventLoop) -> OutputPump:
        return OutputPump(loop)

    async def take_output(self, streams: Streams, sink: OutputSink) -> None:
        if sink.policy != "block":
            await self._count_drops(sink)
        take_output(streams, sink)

    async def _count_drops(self, sink: OutputSink) -> None:
        try:
            drains = await self._host.keeper.drains(sink.directory)
        except LightermanError as failed:
            log.debug("%s: what is dropped in the moment of a kill may be counted too much: %s", sink.directory, failed)
            return
        await in_thread(sink.writer.drop_into, drains)

    async def take_up(self, engine: Engine, books: Books, store: Store) -> None:
        await recovery.take_up(engine, self._host, books, store)
