"""What the parts of one engine share: its root, host, books and store, and the tasks that it owns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lighterman.books import Books
from lighterman.clock import Clock
from lighterman.entry import Entry
from lighterman.errors import InvalidState
from lighterman.host import Host
from lighterman.lifecycle.restart import RestartRate
from lighterman.logs.sink import Pump
from lighterman.record import Record
from lighterman.roots import StateRoot
from lighterman.store.base import Store
from lighterman.store.memory import MemoryStore
from lighterman.supervisor.client import Client
from lighterman.supervisor.tasks import OwnedTasks

if TYPE_CHECKING:
    from lighterman.watches import Watches

__all__ = ["Inside"]


class Inside:
    """Filled and emptied by the engine.

    Attributes:
        clients: over each runtime that was asked for. watches: made at the first use.
        is_open: between the end of `start` and the beginning of `close`.
        is_true: all that runs is in the books.
    """

    def __init__(self, root: StateRoot, clock: Clock, restart_rate: RestartRate | None) -> None:
        self.root = root
        self.clock = clock
        self.restart_rate = restart_rate
        self.tasks = OwnedTasks()
        self.clients: dict[str, Client] = {}
        self.store: Store = MemoryStore()
        self.books = Books(self.store, clock, self.tasks.watch)
        self.host_if_any: Host | None = None
        self.pump: Pump | None = None
        self.watches: Watches | None = None
        self.is_open = False
        self.is_true = False

    @property
    def host(self) -> Host:
        """Raises: InvalidState before `start`."""
        if self.host_if_any is None:
            raise InvalidState("the engine is not running: use `async with Engine() as engine`")
        return self.host_if_any

    def must_be_open(self) -> None:
        """Raises: InvalidState."""
        if not self.is_open:
            raise InvalidState("the engine is not running: use `async with Engine() as engine`")

    def new_entry(self, record: Record) -> Entry:
        """What is held in memory of a container."""
        assert self.pump is not None
        return Entry(record, self.pump, Path(self.root.container(record.id)))

    @staticmethod
    def client_of(entry: Entry) -> Client:
        """The client that runs it. Raises: InvalidState if nothing of it runs."""
        if entry.client is None or not entry.is_registered:
            raise InvalidState(
                f"container {entry.record.name} is {entry.record.status}, not running", container=entry.record.id
            )
        return entry.client
