"""What has happened, in order and durable: each event has a number, and a reader goes on after the one it had last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from lighterman import limits
from lighterman.arguments import check_at_most, items_of
from lighterman.clock import Clock
from lighterman.errors import StoreError
from lighterman.spec import ExitRecord
from lighterman.store.base import Change, Store, StoredEvent

__all__ = ["Event", "Journal"]

log = logging.getLogger(__name__)

_PAGE = 256


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event. The JSON form of all but `seq` and `time` is what the store keeps.

    Attributes:
        seq: greater than that of every earlier event of this root; numbers are never given twice.
        time: Unix, seconds.
        kind: `create`, `start`, `restore`, `pause`, `resume`, `oom`, `start-process`, `exit-process`, `exit`,
            `restart`, `remove`, `checkpoint` (`reason` is its name), `health` (`reason` says how it is), `ready`; `gap`
            stands for `lost` events that were let go before they were read.
        oom_kills: for `oom`: how many processes of this run were killed for memory so far, while it goes on.
        process: `init` or the exec's id. exit: for `exit`, `restart` and `exit-process`.
    """

    kind: str
    container: str = ""
    name: str = ""
    generation: int = 0
    process: str = "init"
    pid: int = 0
    exit: ExitRecord | None = None
    reason: str | None = None
    oom_kills: int = 0
    lost: int = 0
    seq: int = 0
    time: float = 0.0


class Journal:
    """The events of one engine's root; written together with the change that each tells of."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._news: asyncio.Event = asyncio.Event()
        self._since_trim = 0

    async def commit(self, event: Event, change: Change | None = None, *, earlier: Sequence[Event] = ()) -> int:
        """Store an event, those before it and what they led to in one transaction; its number. Raises: StoreError."""
        *before, last = [(self._clock.wall(), msgspec.json.encode(each)) for each in (*earlier, event)]
        change = msgspec.structs.replace(change or Change(), event=last, earlier=tuple(before))
        number = await self._store.commit(change)
        news, self._news = self._news, asyncio.Event()
        news.set()
        self._since_trim += 1 + len(before)
        if self._since_trim >= limits.EVENTS_KEPT // 10:
            self._since_trim = 0
            try:
                await self.trim()
            except StoreError as failed:
                # The change has happened; whoever was told otherwise would do it again.
                log.error("old events can't be let go: %s", failed)
        return number

    async def trim(self) -> None:
        """Let go of what is over the bounds."""
        await self._store.trim(self._clock.wall() - limits.EVENTS_KEPT_S, limits.EVENTS_KEPT)

    async def last(self) -> int:
        """The number of the newest event, 0 before the first."""
        return await self._store.last_event()

    async def events(
        self, after: int | None = None, *, kinds: Iterable[str] = (), container: str | None = None, follow: bool = True
    ) -> AsyncIterator[Event]:
        """Events in order, each once. A slow reader reads from the store and is never dropped.

        Args:
            after: the last number that was read; 0 begins with the oldest kept, None with what comes from now on.
            kinds, container: only these; a `gap` is always told.
            follow: wait for what comes; without it the end is reached.
        """
        wanted = frozenset(items_of("kinds", kinds))
        if after is not None:
            check_at_most("after", after)
        place = await self.last() if after is None else after
        while True:
            news = self._news
            stored, oldest = await self._store.events(place, _PAGE)
            if place + 1 < oldest:
                yield Event(kind="gap", lost=oldest - place - 1, seq=oldest - 1, time=self._clock.wall())
                place = oldest - 1
            for row in stored:
                place = row.seq
                event = _decoded(row)
                if (not wanted or event.kind in wanted) and container in (None, event.container):
                    yield event
            if stored:
                continue
            if not follow:
                return
            await news.wait()


_EVENT = msgspec.json.Decoder(Event)  # at import, see `recovery`


def _decoded(row: StoredEvent) -> Event:
    event = _EVENT.decode(row.body)
    return msgspec.structs.replace(event, seq=row.seq, time=row.at)
