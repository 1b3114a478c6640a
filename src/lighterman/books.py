"""The books of an engine: which containers there are, under which names, and what was written down of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

import msgspec

from lighterman import limits
from lighterman.clock import Clock
from lighterman.ends import to_its_end
from lighterman.entry import Entry
from lighterman.errors import AlreadyExists, InvalidSpec, NotFound, StoreError
from lighterman.flag import Flag
from lighterman.journal import Event, Journal
from lighterman.lifecycle.status import Status
from lighterman.store.base import Change, Store, Tombstone
from lighterman.supervisor.delivery import Spawn

__all__ = ["Books"]

log = logging.getLogger(__name__)


class Books:
    """Entries by id and name, tombstones of removed ones, and every commit to the store.

    Args: watch: starts a task that is cancelled when the engine closes.
    """

    def __init__(self, store: Store, clock: Clock, watch: Spawn) -> None:
        self.journal = Journal(store, clock)
        self._store = store
        self._clock = clock
        self._watch = watch
        self._entries: dict[str, Entry] = {}
        self._names: dict[str, Entry] = {}
        self._removed: dict[str, tuple[float, Entry | Tombstone]] = {}  # the oldest first
        self._made_of: Callable[[Tombstone], Entry] | None = None

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def __contains__(self, entry: Entry) -> bool:
        return self._entries.get(entry.record.id) is entry

    # ---- finding ----

    def by_id(self, id: str) -> Entry | None:
        """The entry of that id, unless it was removed."""
        return self._entries.get(id)

    def find(self, name_or_id: str) -> Entry:
        """By name, id, or an unambiguous beginning of an id; a removed one only while its tombstone stands.

        Raises: NotFound, InvalidSpec if a beginning is ambiguous, StoreError if its tombstone can't be read.
        """
        if not isinstance(name_or_id, str):
            raise InvalidSpec(f"container {name_or_id!r:.80}: must be a name or an id, as text")
        entry = self._names.get(name_or_id) or self._entries.get(name_or_id)
        if entry is None and len(name_or_id) >= 4:
            found = [entry for id, entry in self._entries.items() if id.startswith(name_or_id)]
            if len(found) > 1:
                raise InvalidSpec(f"container id {name_or_id!r}: {len(found)} containers begin so, give more of it")
            entry = found[0] if found else None
        entry = entry or self._nameless(name_or_id) or self._tombstone(name_or_id)
        if entry is None:
            raise NotFound(f"no container {name_or_id!r:.140} in this engine")
        return entry

    def _nameless(self, name: str) -> Entry | None:
        """One of an earlier engine that is about to be removed: its name is free, and nobody has taken it yet."""
        return next((entry for entry in self._entries.values() if entry.record.name == name), None)

    def _tombstone(self, name_or_id: str) -> Entry | None:
        self._clear_tombstones()
        for until, gone in reversed(self._removed.values()):
            id, name = (gone.id, gone.name) if isinstance(gone, Tombstone) else (gone.record.id, gone.record.name)
            if name_or_id in (id, name):
                entry = self._unearthed(gone) if isinstance(gone, Tombstone) else gone
                self._removed[id] = until, entry
                return entry
        return None

    def _unearthed(self, stone: Tombstone) -> Entry:
        """Made when it is asked for: hardly any is."""
        assert self._made_of is not None
        entry = self._made_of(stone)
        entry.record.status = Status.REMOVED
        entry.buried = True
        entry.removed.set()
        entry.ended.set()
        return entry

    def _clear_tombstones(self) -> None:
        now = self._clock.wall()
        while self._removed:
            id, (until, _) = next(iter(self._removed.items()))
            if until > now and len(self._removed) <= limits.TOMBSTONES:
                return
            del self._removed[id]

    # ---- writing down ----

    def enter(self, entry: Entry) -> None:
        """Take an id and a name. Raises: AlreadyExists."""
        name = entry.record.name
        if name in self._names:
            raise AlreadyExists(f"a container named {name!r} exists already: remove it, or use another name")
        self._entries[entry.record.id] = self._names[name] = entry

    def enter_again(self, entry: Entry, *, by_name: bool) -> None:
        """Take the id of a container of an earlier engine, and if `by_name` its name where nobody has it."""
        record = entry.record
        self._entries[record.id] = entry
        if by_name and self._names.setdefault(record.name, entry) is not entry:
            log.error("container %s: another one has the name %s too: ask for it by its id", record.id, record.name)

    def strike(self, entry: Entry) -> None:
        """Give id and name back at once; a tombstone keeps them for who asks late."""
        record = entry.record
        if self._entries.pop(record.id, None) is None:
            return
        if self._names.get(record.name) is entry:
            del self._names[record.name]
        record.status = Status.REMOVED
        entry.removed.set()
        self._removed[record.id] = (self._clock.wall() + limits.TOMBSTONE_S, entry)
        self._clear_tombstones()

    def unenter(self, entry: Entry) -> None:
        """As if it had never been: its making failed."""
        self._entries.pop(entry.record.id, None)
        if self._names.get(entry.record.name) is entry:
            del self._names[entry.record.name]

    async def save(self, entry: Entry) -> None:
        """Write the record down. Raises: StoreError; then nothing has changed."""
        async with entry.writing:
            if entry not in self:
                return  # it was removed meanwhile: its row must not come back
            await self._whole(self._write(entry))

    async def tell(self, entry: Entry, event: Event) -> None:
        """Write the record and an event down, in one transaction. Raises: StoreError."""
        async with entry.writing:
            await self._whole(self._write(entry, event))

    async def tell_fact(self, entry: Entry, event: Event) -> asyncio.Future[None] | None:
        """As `tell`, for what has happened and can't be refused: tried again until the disk takes it.

        Returns: None if it is written down; else what is done once it is: nobody is held up by a full disk who need
            not know.
        """
        entry.untold.append(event)
        if await self._has_told(entry):
            return None
        if entry.telling is None or entry.telling.done():
            entry.telling = self._watch(self._tell_later(entry), f"tell of {entry.record.name}")
        return entry.telling

    async def _tell_later(self, entry: Entry) -> None:
        """Whoever else writes of it takes along what waits, and so there is one of these for an entry."""
        entry.all_told = Flag()
        while entry.untold:
            entry.all_told.clear()
            try:
                async with asyncio.timeout(limits.STORE_RETRY_S):
                    await entry.all_told.wait()
            except TimeoutError:
                pass
            except asyncio.CancelledError:
                await self._has_told(entry)  # the engine closes: this once more
                raise
            await self._has_told(entry)

    async def _has_told(self, entry: Entry) -> bool:
        try:
            async with entry.writing:
                await self._whole(self._write_untold(entry))
        except StoreError as failed:
            kinds = ", ".join(event.kind for event in entry.untold)
            log.error("container %s: not written down yet: %s: %s", entry.record.name, kinds, failed)
            return False
        return True

    async def save_fact(self, entry: Entry, *, late: Callable[[], None] | None = None) -> None:
        """As `save`, for what can't be refused: tried again until the disk takes it.

        Args: late: called after each try that fails.
        """
        while True:
            try:
                await self.save(entry)
            except StoreError as failed:
                log.error("container %s is not written down yet: %s", entry.record.name, failed)
                if late is not None:
                    late()
                await asyncio.sleep(limits.STORE_RETRY_S)
            else:
                return

    async def mark_struck(self, entry: Entry) -> None:
        """Write down that one which was struck is being removed: its name may be another's. Raises: StoreError."""
        async with entry.writing:
            await self._whole(self._write(entry))

    async def bury(self, entry: Entry) -> None:
        """Take the record out of the store, and put a tombstone there. Raises: StoreError."""
        async with entry.writing:
            await self._whole(self._bury(entry))

    async def _whole(self, writing: Coroutine[Any, Any, None]) -> None:
        """All of it, however often who asked is cancelled."""
        # A task takes three turns of the loop, and every start and end writes several times.
        await (writing if self._store.never_waits else to_its_end(writing))

    async def _write(self, entry: Entry, event: Event | None = None) -> None:
        if entry.buried:
            # Nobody can ask for it any more, and its row must not come back.
            entry.untold.clear()
        # The record has the state that all of them led to: none of them may be missing where it is written.
        waited = len(entry.untold)
        events = [*entry.untold, *([event] if event is not None else [])]
        change = _change(entry)
        if events:
            await self.journal.commit(events[-1], change, earlier=events[:-1])
        else:
            await self._store.commit(change)
        entry.stored = True
        for _ in range(waited):
            entry.untold.popleft()
        if entry.all_told is not None and not entry.untold:
            entry.all_told.set()
        _written(entry, change)

    async def _write_untold(self, entry: Entry) -> None:
        if entry.buried:
            entry.untold.clear()
        if entry.untold:
            await self._write(entry)

    async def _bury(self, entry: Entry) -> None:
        await self._write_untold(entry)
        record = entry.record
        stone = Tombstone(record.id, record.name, self._clock.wall() + limits.TOMBSTONE_S, msgspec.json.encode(record))
        event = Event(kind="remove", container=record.id, name=record.name, generation=record.generation)
        await self.journal.commit(event, Change(delete=record.id, tombstone=stone))
        entry.buried = True

    def remember(self, stones: Iterable[Tombstone], made_of: Callable[[Tombstone], Entry]) -> None:
        """Tombstones from the store, the oldest first. Args: made_of: makes the entry of one that is asked for."""
        self._made_of = made_of
        self._removed.update((stone.id, (stone.until, stone)) for stone in stones)


def _change(entry: Entry) -> Change:
    """The record, and what has changed of that which stands beside it."""
    record = entry.record
    if entry.removed.is_set():
        # Nobody finds it any more, and something of it is left: the next engine goes on with its removal.
        record = msgspec.structs.replace(record, status=Status.REMOVING)
    id = record.id
    return Change(
        save=(id, msgspec.json.encode(record)),
        restarts=(id, entry.restarts) if entry.restarts != entry.restarts_saved else None,
        execs=tuple((id, name, encoded) for name, encoded in entry.execs_unsaved.items()),
    )


def _written(entry: Entry, change: Change) -> None:
    if change.restarts is not None:
        entry.restarts_saved = change.restarts[1]
    for _, name, encoded in change.execs:
        # What has changed since is still to be written.
        if entry.execs_unsaved.get(name, b"") is encoded:
            del entry.execs_unsaved[name]
