"""What differs from one platform to another; an engine has one of these and asks for nothing else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from lighterman.books import Books
from lighterman.entry import Entry
from lighterman.errors import NotSupported
from lighterman.host import Host
from lighterman.lease import ConnectionLease, Lease
from lighterman.logs.sink import OutputSink, Pump
from lighterman.record import Record
from lighterman.roots import StateRoot
from lighterman.store.base import Store
from lighterman.supervisor.streams import Streams
from lighterman.supervisor.tasks import OwnedTasks

if TYPE_CHECKING:
    from lighterman.engine.engine import Engine

__all__ = ["HostLeases", "Platform", "this_platform"]


class HostLeases(Protocol):
    """What ends containers that nobody ends; see `leases.Leases`."""

    def of(self, record: Record) -> Lease: ...
    def job_lease(self, record: Record) -> str | None: ...
    async def renew(self, entry: Entry, ttl_s: float | None, lease: ConnectionLease | None) -> None: ...
    def take(self, entry: Entry, lease: str | int | ConnectionLease | None) -> None: ...
    async def made(self, entry: Entry) -> None: ...
    async def begin(self, entry: Entry) -> None: ...
    async def take_up(self, entry: Entry) -> None: ...
    def ended(self, entry: Entry) -> None: ...
    def removed(self, entry: Entry) -> None: ...
    def close(self) -> None: ...


class Platform(Protocol):
    """Made for one engine."""

    def check(self) -> None:
        """Raises: NotSupported where no container can be run at all."""

    def leases(
        self,
        tasks: OwnedTasks,
        books: Callable[[], Books],
        end: Callable[[Entry], Awaitable[None]],
        remove: Callable[[Entry], Awaitable[None]],
    ) -> HostLeases:
        """Asked for once, before `open`."""

    async def open(self, root: StateRoot, runtime: str | None) -> Host:
        """Find out what this host has. Raises: RuntimeUnavailable, NotSupported, KeeperLost."""

    async def begin(self, tasks: OwnedTasks) -> None:
        """Tie what runs to this process, and watch what that hangs on. Raises: KeeperLost."""

    def pump(self, loop: asyncio.AbstractEventLoop) -> Pump:
        """What moves output into its segments."""

    async def take_output(self, streams: Streams, sink: OutputSink) -> None:
        """Give it a process's streams."""

    async def take_up(self, engine: Engine, books: Books, store: Store) -> None:
        """Make the books true again. Raises: StoreError, KeeperLost."""


def this_platform() -> Platform:
    """Raises: NotSupported."""
    if sys.platform == "linux":
        from lighterman.engine.on_linux import OnLinux

        return OnLinux()
    if sys.platform == "win32":
        from lighterman.engine.on_windows import OnWindows

        return OnWindows()
    raise NotSupported(f"no container runtime for {sys.platform}: use Linux or Windows")
