"""What ends a container that nobody ends: the death of its owner, or its time. The keeper enforces it, engine or no
engine; here is what the engine adds: the store, a keeper that was lost, what waits for a restart, and the removal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence

from lighterman import limits
from lighterman.books import Books
from lighterman.entry import Entry
from lighterman.errors import (
    InvalidSpec,
    InvalidState,
    KeeperLost,
    LightermanError,
    NotFound,
    StoreError,
)
from lighterman.keeper.client import KeeperClient
from lighterman.lease import ConnectionLease, Lease, check_ttl, own_connection
from lighterman.lifecycle.status import Status
from lighterman.linux_host import OWNER, LinuxHost
from lighterman.record import Record
from lighterman.runtimes.oci.processes import open_pidfd_checked, wait_pidfd
from lighterman.supervisor.tasks import OwnedTasks

__all__ = ["Leases"]

log = logging.getLogger(__name__)

_LOOK_S = 5.0  # the loop's clock stands still while the host is suspended, CLOCK_BOOTTIME goes on


class _Client:
    """The client of one container: our duplicate of its connection, and until when it may come back if it is away."""

    def __init__(self) -> None:
        self.connection: int | None = None
        self.gone_until: float | None = None
        self.heard = False  # from the keeper, which is newer than any answer that was asked for before

    def take(self, connection: int | None) -> None:
        older, self.connection = self.connection, connection
        if older is not None:
            os.close(older)


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
        self._clients: dict[str, _Client] = {}
        self._missed: set[str] = set()  # containers with a change that the lost keeper did not take

    # ---- what you may ask ----

    def of(self, record: Record) -> Lease:
        """See `Container.lease`."""
        owner = record.owner if record.lease == "owner" else None
        if record.lease in ("scope", "process"):
            owner = os.getpid()
        client = self._clients.get(record.id)
        gone_until = client.gone_until if client is not None else None
        ends = [at for at in (record.until, gone_until) if at is not None]
        return Lease(
            kind=record.lease,
            owner=owner,
            connected=client is not None and gone_until is None if record.lease == "connection" else None,
            ttl_s=record.ttl_s,
            left_s=max(0.0, min(ends) - _boottime()) if ends else None,
        )

    def job_lease(self, record: Record) -> str | None:
        """The keeper's name of the lease that binds what runs of a container."""
        if record.lease in ("owner", "connection") or record.ttl_s is not None:
            return _name(record)
        return OWNER if record.lease is not None else None

    async def renew(self, entry: Entry, ttl_s: float | None, lease: ConnectionLease | None) -> None:
        """See `Container.renew`."""
        record = entry.record
        ttl_s = check_ttl(ttl_s) if ttl_s is not None else None
        if ttl_s is None and lease is None:
            raise InvalidSpec(f"container {record.name}: nothing to renew: give ttl_s or lease")
        if ttl_s is not None and record.ttl_s is None:
            raise InvalidState(f"container {record.name} has no ttl_s to renew", container=record.id)
        if lease is not None and record.lease != "connection":
            raise InvalidState(f"container {record.name} has no lease of a connection", container=record.id)
        if entry not in self._books():
            raise NotFound(f"container {record.name} was removed", container=record.id)
        if lease is not None:
            await self._reconnect(record, lease)
        if ttl_s is not None:
            await self._renew_time(entry, ttl_s)

    async def _renew_time(self, entry: Entry, ttl_s: float) -> None:
        record = entry.record
        before = record.ttl_s, record.until
        until = _boottime() + ttl_s if record.until is not None else None
        record.ttl_s, record.until = ttl_s, until
        try:
            await self._books().save(entry)
            if until is not None:
                await self._renew(record, until)
        except (StoreError, InvalidState):
            if record.ttl_s == ttl_s:
                record.ttl_s = before[0]
            if record.until == until:  # else it has ended in this moment, or begun anew: its time is another one
                record.until = before[1]
            raise

    async def _reconnect(self, record: Record, lease: ConnectionLease) -> None:
        connection = own_connection(lease)
        try:
            await self._host().keeper.reconnect_lease(_name(record), connection)
        except KeeperLost:
            log.debug("container %s: its next connection is given to the next keeper", record.name)
            self._missed.add(record.id)
            if record.id in self._clients:
                self._clients[record.id].gone_until = None
        except BaseException as failed:
            os.close(connection)
            if isinstance(failed, InvalidState):
                raise InvalidState(f"the lease of container {record.name} is over", container=record.id) from failed
            raise
        client = self._clients.get(record.id)
        if client is None:  # removed in the same moment
            os.close(connection)
            return
        client.take(connection)

    async def _renew(self, record: Record, until: float | None) -> None:
        try:
            await self._host().keeper.renew_lease(_name(record), until)
        except InvalidState as over:
            raise InvalidState(f"the lease of container {record.name} is over", container=record.id) from over
        except KeeperLost:
            # The next keeper is told what stands in the record.
            log.debug("container %s: its lease is renewed with the next keeper", record.name)
            self._missed.add(record.id)

    # ---- a container's life ----

    def take(self, entry: Entry, lease: str | int | ConnectionLease | None) -> None:
        """What was asked for it may be closed by its owner from now on. Raises: InvalidSpec, LimitExceeded."""
        if isinstance(lease, ConnectionLease):
            client = self._clients[entry.record.id] = _Client()
            client.take(own_connection(lease))

    async def made(self, entry: Entry) -> None:
        """It is there, though it may not run: its owner's end takes it away. Raises: LimitExceeded."""
        if entry.record.lease == "connection":
            try:
                await self._grant_connection(self._host().keeper, entry)
            except KeeperLost:
                log.debug("container %s: its lease is given to the next keeper", entry.record.name)
                self._missed.add(entry.record.id)
        self._watch(entry)

    def _watch(self, entry: Entry) -> None:
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
        if record.lease == "connection":
            await self._renew(record, record.until)
        else:
            await self._grant(self._host().keeper, record)
        self._begin_timer(entry)

    async def take_up(self, entry: Entry) -> None:
        """It runs since an earlier engine: its time goes on. Raises: KeeperLost."""
        if entry.record.lease == "connection":
            await self._take_up_connection(entry)
            return
        self._watch(entry)
        if not entry.is_registered:
            # It has ended meanwhile, or was never started to the end.
            if self.job_lease(entry.record) not in (None, OWNER):
                await self._release(entry.record)
            # One that waits for a restart has a time that goes on.
            self._begin_timer(entry)
            return
        try:
            await self._grant(self._host().keeper, entry.record, [self._host().group_of(entry.record.id)])
        except InvalidState:
            log.info("container %s: its owner ended while there was no engine", entry.record.name)
        self._begin_timer(entry)

    def ended(self, entry: Entry) -> None:
        """Nothing of it runs any more, and no policy starts it again."""
        record, record.until = entry.record, None
        timer = self._timers.pop(record.id, None)
        if timer is not None:
            timer.cancel()
        if record.lease == "connection":
            if record.ttl_s is not None:
                self._tasks.finish(self._stop_time(record), f"stop the time of {record.name}")
        elif self.job_lease(record) not in (None, OWNER):
            self._tasks.finish(self._release(record), f"release the lease of {record.name}")

    def removed(self, entry: Entry) -> None:
        """It is no longer there; again is nothing."""
        record = entry.record
        owner = self._owners.pop(record.id, None)
        if owner is not None:
            owner.cancel()
        if record.lease == "connection":
            self._tasks.finish(self._release(record), f"release the lease of {record.name}")
        client = self._clients.pop(record.id, None)
        if client is not None:
            client.take(None)

    def close(self) -> None:
        """The engine ends; what the keeper holds stays."""
        for client in self._clients.values():
            client.take(None)
        self._clients.clear()

    async def grant_again(self, keeper: KeeperClient) -> None:
        """Tell a new keeper what the lost one knew; it ends what the lost one had started by its control group.

        Raises: KeeperLost.
        """
        self._missed.clear()
        running = [entry.record for entry in self._books() if entry.is_registered]
        host = self._host()
        await host.lease_on(keeper, [host.group_of(one.id) for one in running if self.job_lease(one) == OWNER])
        for record in running:
            await self._grant_to_next(keeper, record)
        for entry in self._books():
            if entry.record.lease == "connection":
                await self._grant_connection(keeper, entry)
        # What was changed meanwhile was told to the lost one. After the last of them the next is everybody's at once.
        while self._missed:
            id = self._missed.pop()
            current = self._books().by_id(id)
            if current is not None and current.record.lease == "connection":
                await self._grant_connection(keeper, current)
            elif current is not None and current.is_registered:
                await self._grant_to_next(keeper, current.record)
            else:
                await keeper.release_lease(f"container:{id}")

    # ---- inside ----

    async def _grant_to_next(self, keeper: KeeperClient, record: Record) -> None:
        try:
            await self._grant(keeper, record, [self._host().group_of(record.id)])
        except InvalidState:
            log.debug("container %s: its owner ended with the keeper", record.name)

    async def _grant_connection(self, keeper: KeeperClient, entry: Entry) -> None:
        """A new lease: with the connection, or if that was lost, with the time in which the client may come back."""
        record, client = entry.record, self._clients.setdefault(entry.record.id, _Client())
        keeper.on_lease = self._heard
        if client.connection is None and client.gone_until is None:
            client.gone_until = _boottime() + limits.LEASE_RECONNECT_S
        await keeper.lease_connection(
            _name(record),
            client.connection if client.gone_until is None else None,
            grace_s=limits.LEASE_RECONNECT_S,
            gone_until=client.gone_until,
            until=record.until,
            groups=[self._host().group_of(record.id)] if entry.is_registered else [],
        )

    async def _take_up_connection(self, entry: Entry) -> None:
        """The keeper has it since an earlier engine, unless it was lost as well. Raises: KeeperLost."""
        record, keeper = entry.record, self._host().keeper
        client = self._clients[record.id] = _Client()
        keeper.on_lease = self._heard
        state = await keeper.lease_of(_name(record))
        client.take(state.connection)
        if state.over:
            self._is_over(entry)
            return
        if not state.holds:
            log.warning("container %s: its connection went with the keeper: its client may come back", record.name)
            await self._grant_connection(keeper, entry)
        elif not client.heard:
            client.gone_until = state.gone_until
        if not entry.is_registered and record.status is not Status.RESTARTING:
            record.until = None
        try:
            await self._renew(record, record.until)
        except InvalidState:
            log.info("container %s: its lease ended in this moment", record.name)
        self._begin_timer(entry)

    def _heard(self, name: str, gone_until: float | None, over: bool) -> None:
        """What the keeper tells of a client: it has hung up, has come back, or its time is over."""
        entry = self._books().by_id(name.partition(":")[2])
        client = self._clients.get(entry.record.id) if entry is not None else None
        if entry is None or client is None:
            return
        client.heard, client.gone_until = True, gone_until
        if gone_until is not None:
            client.take(None)
            log.info("container %s: its client has hung up", entry.record.name)
        if over:
            self._is_over(entry)

    def _is_over(self, entry: Entry) -> None:
        self._tasks.finish(self._quietly(self._remove(entry), entry), f"remove {entry.record.name}")

    async def _grant(self, keeper: KeeperClient, record: Record, groups: Sequence[str] = ()) -> None:
        name = self.job_lease(record)
        if name in (None, OWNER) or record.lease == "connection":
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

    async def _stop_time(self, record: Record) -> None:
        try:
            await self._renew(record, None)
        except InvalidState:
            log.debug("container %s: its lease is over anyway", record.name)

    async def _release(self, record: Record) -> None:
        try:
            await self._host().keeper.release_lease(_name(record))
        except KeeperLost:
            log.debug("container %s: its lease went with the keeper", record.name)
            self._missed.add(record.id)

    def _begin_timer(self, entry: Entry) -> None:
        before = self._timers.pop(entry.record.id, None)
        if before is not None:
            before.cancel()
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


def _name(record: Record) -> str:
    return f"container:{record.id}"
