"""What ends a container that nobody ends: the death of its owner, or its time. The keeper enforces it, engine or no
engine; here is what the engine adds: the store, a keeper that was lost, what waits for a restart, and the removal.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from lighterman.books import Books
from lighterman.entry import Entry
from lighterman.errors import InvalidSpec, InvalidState, KeeperLost, LightermanError, NotFound, StoreError
from lighterman.keeper.client import KeeperClient
from lighterman.linux_host import OWNER, LinuxHost
from lighterman.record import Record
from lighterman.runtimes.oci.processes import open_pidfd_checked, read_start_time, wait_pidfd
from lighterman.runtimes.oci.runtime import CGROUP_PARENT
from lighterman.supervisor.tasks import OwnedTasks

__all__ = ["Lease", "Leases", "asked_lease", "check_ttl"]

log = logging.getLogger(__name__)

_LOOK_S = 5.0  # the loop's clock stands still while the host is suspended, CLOCK_BOOTTIME goes on


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What ends a container.

    Attributes:
        kind: `scope` (a block of this program), `process` (this program), `owner` (another process), None: it lives on.
        owner: the pid of the process that it is held against.
        ttl_s: how long it may run after its start, or after the last renewal. left_s: what of that is left.
    """

    kind: str | None
    owner: int | None = None
    ttl_s: float | None = None
    left_s: float | None = None


def asked_lease(lease: str | int | None, ttl_s: float | None) -> dict[str, object]:
    """The fields of a record for what was asked. Raises: InvalidSpec."""
    fields: dict[str, object] = {"ttl_s": check_ttl(ttl_s) if ttl_s is not None else None}
    if isinstance(lease, int) and not isinstance(lease, bool):
        started = _started(lease)
        return {**fields, "lease": "owner", "owner": lease, "owner_started": started}
    if lease not in ("process", "scope", None):
        raise InvalidSpec(f"lease {lease!r:.80}: must be 'process', 'scope', the pid of its owner, or None")
    return {**fields, "lease": lease}


def check_ttl(ttl_s: float) -> float:
    """Raises: InvalidSpec."""
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not ttl_s > 0 or math.isinf(ttl_s):
        raise InvalidSpec(f"ttl_s {ttl_s!r:.80}: must be more than 0 seconds, or None for no limit")
    return float(ttl_s)


def _started(pid: int) -> int:
    try:
        os.close(os.pidfd_open(pid))
        started = read_start_time(pid)
    except (OSError, OverflowError):
        started = None
    if started is None:
        raise InvalidSpec(f"lease {pid}: there is no such process")
    return started


class Leases:
    """The leases of one engine's containers.

    Args:
        books, host: asked for at each use. end: ends what runs, as the lease's doing. remove: and takes it away.
    """

    def __init__(
        self,
        tasks: OwnedTasks,
        books: Callable[[], Books],
        host: Callable[[], LinuxHost],
        end: Callable[[Entry], Awaitable[None]],
        remove: Callable[[Entry], Awaitable[None]],
    ) -> None:
        self._tasks = tasks
        self._books = books
        self._host = host
        self._end = end
        self._remove = remove
        self._timers: dict[str, asyncio.Task[None]] = {}
        self._owners: dict[str, asyncio.Task[None]] = {}

    # ---- what you may ask ----

    def of(self, record: Record) -> Lease:
        """See `Container.lease`."""
        owner = record.owner if record.lease == "owner" else os.getpid() if record.lease else None
        left_s = max(0.0, record.until - _boottime()) if record.until is not None else None
        return Lease(kind=record.lease, owner=owner, ttl_s=record.ttl_s, left_s=left_s)

    def job_lease(self, record: Record) -> str | None:
        """The keeper's name of the lease that binds what runs of a container."""
        if record.lease == "owner" or record.ttl_s is not None:
            return f"container:{record.id}"
        return OWNER if record.lease is not None else None

    async def renew(self, entry: Entry, ttl_s: float) -> None:
        """See `Container.renew`."""
        record, ttl_s = entry.record, check_ttl(ttl_s)
        if record.ttl_s is None:
            raise InvalidState(f"container {record.name} has no ttl_s to renew", container=record.id)
        if entry not in self._books():
            raise NotFound(f"container {record.name} was removed", container=record.id)
        before = record.ttl_s, record.until
        until = _boottime() + ttl_s if record.until is not None else None
        record.ttl_s, record.until = ttl_s, until
        try:
            await self._books().save(entry)
            if until is not None:
                await self._renew(record, until)
        except (StoreError, InvalidState):
            record.ttl_s, record.until = before
            raise

    async def _renew(self, record: Record, until: float) -> None:
        try:
            await self._host().keeper.renew_lease(f"container:{record.id}", until)
        except InvalidState as over:
            raise InvalidState(f"the lease of container {record.name} is over", container=record.id) from over
        except KeeperLost:
            # The next keeper is told what stands in the record.
            log.debug("container %s: its lease is renewed with the next keeper", record.name)

    # ---- a container's life ----

    def made(self, entry: Entry) -> None:
        """It is there, though it may not run: its owner's end takes it away."""
        if entry.record.lease == "owner":
            work = self._watch_owner(entry)
            self._owners[entry.record.id] = self._tasks.watch(work, f"watch the owner of {entry.record.name}")

    async def begin(self, entry: Entry) -> None:
        """It is about to be started: its time begins, or goes on if a policy starts it.

        Raises: InvalidState (its owner has ended), LimitExceeded, KeeperLost.
        """
        record = entry.record
        if record.ttl_s is not None and record.until is None:
            record.until = _boottime() + record.ttl_s
        await self._grant(self._host().keeper, record)
        self._begin_timer(entry)

    async def take_up(self, entry: Entry) -> None:
        """It runs since an earlier engine: its time goes on. Raises: KeeperLost."""
        self.made(entry)
        if not entry.is_registered:
            # It has ended meanwhile, or was never started to the end.
            if self.job_lease(entry.record) not in (None, OWNER):
                await self._release(entry.record)
            return
        try:
            await self._grant(self._host().keeper, entry.record, [_group(entry.record)])
        except InvalidState:
            log.info("container %s: its owner ended while there was no engine", entry.record.name)
        self._begin_timer(entry)

    def ended(self, entry: Entry) -> None:
        """Nothing of it runs any more, and no policy starts it again."""
        record, record.until = entry.record, None
        timer = self._timers.pop(record.id, None)
        if timer is not None:
            timer.cancel()
        if self.job_lease(record) not in (None, OWNER):
            self._tasks.finish(self._release(record), f"release the lease of {record.name}")

    def removed(self, entry: Entry) -> None:
        """It is no longer there."""
        owner = self._owners.pop(entry.record.id, None)
        if owner is not None:
            owner.cancel()

    async def grant_again(self, keeper: KeeperClient) -> None:
        """Tell a new keeper what the lost one knew; it ends what the lost one had started by its control group.

        Raises: KeeperLost.
        """
        running = [entry.record for entry in self._books() if entry.is_registered]
        await self._host().lease_on(keeper, [_group(one) for one in running if self.job_lease(one) == OWNER])
        for record in running:
            try:
                await self._grant(keeper, record, [_group(record)])
            except InvalidState:
                log.debug("container %s: its owner ended with the keeper", record.name)

    # ---- inside ----

    async def _grant(self, keeper: KeeperClient, record: Record, groups: Sequence[str] = ()) -> None:
        name = self.job_lease(record)
        if name in (None, OWNER):
            return
        assert name is not None
        pidfd = self._owner_of(record)
        if pidfd is None and record.until is None:
            return  # it has just ended
        try:
            await keeper.lease(name, pidfd, until=record.until, groups=groups)
        finally:
            if pidfd is not None:
                os.close(pidfd)

    def _owner_of(self, record: Record) -> int | None:
        if record.lease is None:
            return None
        if record.lease != "owner":
            return os.pidfd_open(os.getpid())
        try:
            return open_pidfd_checked(record.owner, record.owner_started)
        except NotFound as gone:
            raise InvalidState(
                f"container {record.name}: its owner, process {record.owner}, has ended", container=record.id
            ) from gone

    async def _release(self, record: Record) -> None:
        try:
            await self._host().keeper.release_lease(f"container:{record.id}")
        except KeeperLost:
            log.debug("container %s: its lease went with the keeper", record.name)

    def _begin_timer(self, entry: Entry) -> None:
        if entry.record.until is not None:
            timer = self._tasks.watch(self._watch_time(entry), f"watch the time of {entry.record.name}")
            self._timers[entry.record.id] = timer

    async def _watch_time(self, entry: Entry) -> None:
        """The keeper is faster with what runs; what waits for a restart, or lost its keeper, is ended here."""
        record = entry.record
        while record.until is not None and (left_s := record.until - _boottime()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(left_s, _LOOK_S))  # no event tells that the host was suspended
        if record.until is not None:
            self._timers.pop(record.id, None)
            self._tasks.finish(self._quietly(self._end(entry), entry), f"end {record.name}")

    async def _watch_owner(self, entry: Entry) -> None:
        record = entry.record
        try:
            pidfd = open_pidfd_checked(record.owner, record.owner_started)
        except NotFound:
            log.debug("the owner of container %s has ended", record.name)
        else:
            try:
                await wait_pidfd(pidfd)
            finally:
                os.close(pidfd)
        self._owners.pop(record.id, None)
        self._tasks.finish(self._quietly(self._remove(entry), entry), f"remove {record.name}")

    @staticmethod
    async def _quietly(work: Awaitable[None], entry: Entry) -> None:
        try:
            await work
        except LightermanError as failed:
            log.error("container %s: its lease is over, and it can't be ended: %s", entry.record.name, failed)


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _group(record: Record) -> str:
    return f"{CGROUP_PARENT}/{record.id}"
