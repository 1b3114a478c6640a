"""Taking containers away: what runs of one, its name, its files, its row; what an engine begins the next one ends."""

from __future__ import annotations

import asyncio
import logging

from lighterman import limits
from lighterman.engine.inside import Inside
from lighterman.engine.platform import HostLeases
from lighterman.engine.runs import Runs
from lighterman.entry import Entry
from lighterman.errors import InvalidState, LightermanError, NotFound, StoreError
from lighterman.lifecycle.status import Status
from lighterman.threads import in_removing_thread
from lighterman.trees import remove_tree

__all__ = ["Removal"]

log = logging.getLogger(__name__)


class Removal:
    """The removals of one engine."""

    def __init__(self, inside: Inside, runs: Runs, leases: HostLeases) -> None:
        self._inside = inside
        self._runs = runs
        self._leases = leases

    async def remove(self, entry: Entry, *, force: bool = False) -> None:
        """See `Container.remove`. If cancelled: it is removed all the same."""
        record = entry.record
        if entry not in self._inside.books:
            if entry.removed.is_set():
                if self._inside.is_open and entry.taking_away is not None:
                    # An attempt has failed: who asks again does not wait for the next one.
                    await self._inside.tasks.finish_and_wait(self._take_away_rest(entry), f"remove {record.name}")
                return
            raise NotFound(f"container {record.name} was removed", container=record.id)
        if (entry.starting or entry.is_registered) and not force:
            raise InvalidState(
                f"container {record.name} is {record.status}: stop it first, or remove it by force",
                operation="remove",
                container=record.id,
            )
        await self._inside.tasks.finish_and_wait(self._remove(entry), f"remove {record.name}")

    async def _remove(self, entry: Entry) -> None:
        record, books = entry.record, self._inside.books
        # A start that has not come to its runtime yet goes no further, and what it has made is there to be removed.
        entry.removing, ended = True, entry.ended
        try:
            if await self._runs.end(entry, "removed", 0):
                await ended.wait()
            await entry.start_over.wait()
        except BaseException:
            entry.removing = False
            raise
        # Two may have waited for the same end.
        if entry not in books:
            return
        before, record.status = record.status, Status.REMOVING
        try:
            # From here on it is removed, whoever dies: the next engine goes on with it.
            await books.save(entry)
        except StoreError:
            record.status, entry.removing = before, False
            raise
        # Nor may both of them get past this.
        if entry not in books:
            return
        books.strike(entry)
        await self.take_away(entry)

    async def take_away(self, entry: Entry) -> None:
        """All that one whose name is free again has left: its files, then its row.

        Raises: StoreError if its files can't be removed; that is tried again as long as this engine is open.
        """
        inside = self._inside
        entry.output_of.close()
        entry.log.end()
        await entry.end_feeds(limits.SINK_DRAIN_S)
        self._leases.removed(entry)
        if inside.watches is not None:
            inside.watches.forget(entry)
        inside.host.forget(entry.record.id)
        for life in entry.execs.values():
            life.output_of.close()
            life.let_go()
        await self._take_away_rest(entry)

    async def _take_away_rest(self, entry: Entry) -> None:
        """Its files, then its row; what can't be done now is tried again. Raises: StoreError for the files."""
        try:
            await self._try_to_take_away(entry)
        except StoreError as failed:
            log.error("container %s: its removal is not done yet: %s", entry.record.name, failed)
            if entry.taking_away is None or entry.taking_away.done():
                entry.taking_away = self._inside.tasks.watch(
                    self._take_away_later(entry), f"take {entry.record.name} away"
                )
            if not entry.has_no_files:
                raise

    async def _try_to_take_away(self, entry: Entry) -> None:
        async with entry.burying:
            if entry.buried:
                return
            if not entry.has_no_files:
                await self.remove_files(entry)
                entry.has_no_files = True
            await self._inside.books.bury(entry)

    async def undo(self, entry: Entry) -> None:
        """As `take_away`, of one that was not marked as being removed: its row must not have its name any more."""
        try:
            await self._inside.books.mark_struck(entry)
        except StoreError as failed:
            log.error("container %s: that it is being removed is not written down: %s", entry.record.name, failed)
        await self.take_away(entry)

    async def remove_files(self, entry: Entry) -> None:
        """Its directory with all that is in it, once no checkpoint is written there any more. Raises: StoreError."""
        async with entry.saving:
            pass
        path = self._inside.root.container(entry.record.id)
        await in_removing_thread(lambda: _remove_tree(path))

    async def _take_away_later(self, entry: Entry) -> None:
        """An engine that comes before this is done goes on with it."""
        delay_s = limits.STORE_RETRY_S
        while True:
            await asyncio.sleep(delay_s)
            try:
                await self._try_to_take_away(entry)
            except StoreError as failed:
                log.debug("container %s: its removal is not done yet: %s", entry.record.name, failed)
                # Files that can't be removed wait for somebody to do something; a disk may have room at any moment.
                delay_s = limits.STORE_RETRY_S if entry.has_no_files else min(2 * delay_s, limits.REMOVAL_RETRY_MAX_S)
            else:
                return

    async def remove_for_lease(self, entry: Entry) -> None:
        """Its owner has ended."""
        await self._runs.end_for_lease(entry)
        if entry in self._inside.books:
            await self.remove(entry, force=True)

    async def remove_quietly(self, entry: Entry) -> None:
        """End and remove one whose owner is gone."""
        try:
            await self.remove_for_lease(entry)
        except LightermanError as failed:
            log.error("container %s: removing it failed: %s", entry.record.name, failed)

    async def go_on(self, entry: Entry) -> None:
        """Go on with a removal that an earlier engine had begun."""
        try:
            await self.take_away(entry)
        except LightermanError as failed:
            log.error("container %s: removing it failed: %s", entry.record.name, failed)


def _remove_tree(path: str) -> None:
    try:
        remove_tree(path)
    except FileNotFoundError:
        return
    except OSError as failed:
        raise StoreError(f"{path} can't be removed: {failed}") from failed
