"""What has happened, in order and durable: each event has a number, and a reader goes on after the one it had last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence

import msgspec

from lighterman import limits
from lighterman.arguments import check_at_most, items_of
from lighterman.clock import Clock
from lighterman.errors import InvalidSpec, InvalidState, StoreError
from lighterman.lifecycle.events import State
from lighterman.spec import ExitRecord
from lighterman.store.base import Change, Store, StoredEvent

__all__ = ["KINDS", "Event", "Journal"]

log = logging.getLogger(__name__)

_PAGE = 256

# Every kind that an event can have.
KINDS = frozenset({*(state.value for state in State), "remove", "checkpoint", "health", "ready", "gap"})


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
        self._news = asyncio.Event()
        self._too_many = asyncio.Event()  # it may be over its bounds
        self._since_trim = 0
        self._reading = 0  # readers that wait, for the store or for news
        self._none_reads = asyncio.Event()
        self._is_over = False

    async def commit(self, event: Event, change: Change | None = None, *, earlier: Sequence[Event] = ()) -> int:
        """Store an event, those before it and what they led to in one transaction; its number. Raises: StoreError."""
        *before, last = [(self._clock.wall(), msgspec.json.encode(each)) for each in (*earlier, event)]
        change = msgspec.structs.replace(change or Change(), event=last, earlier=tuple(before))
        try:
            return await self._store.commit(change)
        finally:
            # Also if cancelled: what was asked for happens all the same, and who reads from here on sees it.
            self._tell_news()
            self._since_trim += 1 + len(before)
            if self._since_trim >= limits.EVENTS_KEPT // 10:
                self._too_many.set()

    def _tell_news(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # ---- bounds ----

    async def keep_within_bounds(self) -> None:
        """Let go of what is over them: now, whenever many have come, and from time to time. Ends by cancellation."""
        while True:
            self._too_many.clear()
            self._since_trim = 0
            try:
                await self.trim()
            except StoreError as failed:
                log.error("old events can't be let go: %s", failed)
            try:
                async with self._clock.timeout(limits.EVENTS_TRIM_S):
                    await self._too_many.wait()
            except TimeoutError:
                continue

    async def trim(self) -> None:
        """Let go of what is over the bounds, piece by piece: no commit waits for more than one. Raises: StoreError."""
        more = True
        while more:
            more = await self._store.trim(self._clock.wall(), limits.EVENTS_KEPT_S, limits.EVENTS_KEPT)

    # ---- reading ----

    def events(
        self, after: int | None = None, *, kinds: Iterable[str] = (), container: str | None = None, follow: bool = True
    ) -> AsyncGenerator[Event, None]:
        """Events in order, each once. A slow reader reads from the store and is never dropped.

        Args:
            after: the last number that was read; 0 begins with the oldest kept, None with what comes from this call on.
            kinds, container: only these, of containers of this name or id; a `gap` is always told.
            follow: wait for what comes, until `close`; without it the end is reached.
        Raises: InvalidSpec; at the reading InvalidState, if the engine was closed before all was read.
        """
        wanted = frozenset(items_of("kinds", kinds))
        unknown = next((kind for kind in wanted if kind not in KINDS), None)
        if unknown is not None:
            raise InvalidSpec(f"kinds {unknown!r:.80}: there is no such kind of event: {', '.join(sorted(KINDS))}")
        if container is not None and not isinstance(container, str):
            raise InvalidSpec(f"container {container!r:.80}: must be a name or an id, as text")
        newest = self._store.newest
        if after is not None and check_at_most("after", after) > newest:
            raise InvalidSpec(
                f"after {after}: the newest event is {newest}, so that number is of another journal, or of events that "
                "were lost with the host's power: begin with after=0"
            )
        return self._events(newest if after is None else after, wanted, container, follow=follow)

    async def _events(
        self, place: int, kinds: frozenset[str], container: str | None, *, follow: bool
    ) -> AsyncGenerator[Event, None]:
        while True:
            stored, oldest = await self._next_page(place, follow=follow)
            for row in stored:
                if row.seq > place + 1:
                    yield self._gap(place, row.seq)
                place = row.seq
                event = _decoded(row)
                if (not kinds or event.kind in kinds) and container in (None, event.container, event.name):
                    yield event
            if not stored:
                if place + 1 < oldest:
                    yield self._gap(place, oldest)
                    place = oldest - 1
                    continue
                return

    async def _next_page(self, place: int, *, follow: bool) -> tuple[Sequence[StoredEvent], int]:
        """What comes after a place, and the number of the oldest kept; no rows at the end."""
        self._reading += 1
        try:
            while True:
                news, is_over = self._news, self._is_over
                if is_over and place >= self._store.newest:
                    return (), 0
                try:
                    stored, oldest = await self._store.events(place, _PAGE)
                except StoreError as failed:
                    if not self._is_over:
                        raise
                    raise InvalidState(
                        f"the engine was closed before all events were read: go on after {place} with the next one"
                    ) from failed
                if stored or place + 1 < oldest or is_over or not follow:
                    return stored, oldest
                await news.wait()
        finally:
            self._reading -= 1
            if not self._reading:
                self._none_reads.set()

    async def close(self) -> None:
        """No event comes any more: who follows is told of what is stored, and of the end. Again is nothing."""
        self._is_over = True
        self._tell_news()
        try:
            async with asyncio.timeout(limits.CANCEL_S):
                while self._reading:
                    self._none_reads.clear()
                    await self._none_reads.wait()
        except TimeoutError:
            log.error("%d readers of events do not come to their end: they are left alone", self._reading)

    def _gap(self, place: int, next: int) -> Event:
        return Event(kind="gap", lost=next - place - 1, seq=next - 1, time=self._clock.wall())


_EVENT = msgspec.json.Decoder(Event)  # at import, see `recovery`


def _decoded(row: StoredEvent) -> Event:
    event = _EVENT.decode(row.body)
    return msgspec.structs.replace(event, seq=row.seq, time=row.at)
