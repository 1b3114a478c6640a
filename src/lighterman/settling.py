"""Settling what ended, or was begun, without an engine that saw it: told and written down, also on a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lighterman import limits
from lighterman.books import Books
from lighterman.entry import Entry
from lighterman.errors import StoreError
from lighterman.flag import Flag
from lighterman.journal import Event
from lighterman.lifecycle.restart import RunEnd, should_start_at_boot
from lighterman.lifecycle.status import Status
from lighterman.record import ExecRecord, Record
from lighterman.spec import ExitRecord
from lighterman.store.base import Store
from lighterman.supervisor.tasks import OwnedTasks
from lighterman.threads import in_thread

if TYPE_CHECKING:
    from lighterman.keeper.client import JobExit
    from lighterman.runtimes.oci.recorded import RecordedEnd

__all__ = ["HOST_RESTARTED", "Settling", "drop_output", "exit_from", "is_due_at_boot"]

log = logging.getLogger(__name__)

HOST_RESTARTED = "host restarted"


class Settling:
    """What one engine settles at its start.

    All of it is a fact, which no full disk can refuse: a method returns after its first try, and where that fails the
    tries go on behind, until `written`. So no container waits for the row of another.
    """

    def __init__(self, books: Books, tasks: OwnedTasks) -> None:
        self._books = books
        self._tasks = tasks
        self._behind: set[asyncio.Future[None]] = set()

    # ---- what is settled -----------------------------------------------------------------------------------------

    async def ended(self, entry: Entry) -> None:
        """What was half started was promised to nobody; what has ended only was not acknowledged yet."""
        record = entry.record
        entry.ended.set()
        record.until = None
        if record.starting:
            await drop_output(entry, record.starting)
            record.starting = 0
            if record.status not in (Status.CREATED, Status.EXITED):
                record.status = Status.EXITED
            await self.save(entry)

    async def lost(self, entry: Entry, why: str, *, may_start: bool, ends: Sequence[RecordedEnd] = ()) -> bool:
        """It ran, and nobody can tell any more how it ended. Returns: whether its policy starts it again at once.

        Args: may_start: False for one that is going to be removed. ends: what its keeper had written down before.
        """
        record = entry.record
        entry.lose_execs(why, lambda exec: _found(ends, exec))
        found = _found(ends, record)
        pid, exit = (record.pid, found) if found is not None else (0, ExitRecord(unknown=why))
        record.exit = msgspec.structs.replace(exit, started_at=record.started_at, generation=record.generation)
        _forget_clocks(entry)
        record.pid, record.starting, entry.restarts = 0, 0, b""
        # A run of which nobody was told: the next one bears its number.
        await drop_output(entry, record.generation + 1)
        due = may_start and is_due_at_boot(record)
        if due:
            # In one transaction with its end: whoever dies from here on, the next engine starts it.
            record.status, record.manually_stopped = Status.RESTARTING, False
            await self.tell(entry, _end_of("restart", record, why, pid))
        else:
            record.status = Status.EXITED
            await self.tell(entry, _end_of("exit", record, None, pid))
            entry.ended.set()
        return due

    async def after_reboot(self, entry: Entry, *, may_start: bool, ends: Sequence[RecordedEnd] = ()) -> bool:
        """Settle a container of an earlier life of the host. Returns: whether its policy starts it in this one.

        Again is nothing: an engine may be killed in the middle of this. Args: as for `lost`.
        """
        record = entry.record
        if record.status in (Status.RUNNING, Status.PAUSED):
            return await self.lost(entry, HOST_RESTARTED, may_start=may_start, ends=ends)
        before, had_restarts = record.starting, bool(entry.restarts)
        _forget_clocks(entry)
        record.starting, entry.restarts = 0, b""
        await drop_output(entry, record.generation + 1)
        if may_start and is_due_at_boot(record):
            record.at_boot = record.at_boot or record.status is Status.EXITED
            record.status, record.manually_stopped = Status.RESTARTING, False
            await self.save(entry)
            return True
        if record.status is Status.RESTARTING:
            await self.not_begun(entry)
            return False
        if before or had_restarts:
            await self.save(entry)
        entry.ended.set()
        return False

    async def not_begun(self, entry: Entry) -> None:
        """The run that its policy had decided on comes no more: it was stopped meanwhile, or its owner has gone."""
        record = entry.record
        at_boot, record.at_boot = record.at_boot, False
        record.status, record.restart_at, record.starting = Status.EXITED, None, 0
        if record.exit is not None and record.end_reason == "lease":
            # It ends the container, and not only a run of it.
            record.exit = msgspec.structs.replace(record.exit, reason=record.end_reason)
        record.end_reason = record.kill_at = None
        if at_boot:
            await self.save(entry)
        else:
            await self.tell(entry, _end_of("exit", record, "stopped before it was started again"))
        entry.ended.set()

    # ---- how it is written down ----------------------------------------------------------------------------------

    async def tell(self, entry: Entry, event: Event) -> None:
        """Write the record and an event down."""
        writing = await self._books.tell_fact(entry, event)
        if writing is not None:
            self._go_on_behind(writing)

    async def save(self, entry: Entry) -> None:
        """Write the record down."""
        await self._try(lambda late: self._books.save_fact(entry, late=late), entry.record.name)

    async def keep_boot(self, store: Store, boot_id: str) -> None:
        """Write down that all is of this life of the host, after all that was settled so far."""
        earlier = tuple(self._behind)

        async def keep(late: Callable[[], None]) -> None:
            if earlier:
                late()
                await asyncio.gather(*earlier)
            while True:
                try:
                    await store.keep_boot_id(boot_id)
                except StoreError as failed:
                    log.error("that the host has restarted is not written down yet: %s", failed)
                    late()
                    await asyncio.sleep(limits.STORE_RETRY_S)
                else:
                    return

        await self._try(keep, "the restart of the host")

    @property
    def is_written(self) -> bool:
        """Whether all of it is in the store."""
        return not self._behind

    async def written(self) -> None:
        """Return once all of it is in the store."""
        await asyncio.gather(*self._behind)

    async def _try(self, write: Callable[[Callable[[], None]], Coroutine[Any, Any, None]], what: str) -> None:
        tried = Flag()

        async def writing() -> None:
            try:
                await write(tried.set)
            finally:
                tried.set()

        self._go_on_behind(self._tasks.watch(writing(), f"write down {what}"))
        await tried.wait()

    def _go_on_behind(self, writing: asyncio.Future[None]) -> None:
        self._behind.add(writing)
        writing.add_done_callback(self._over)

    def _over(self, writing: asyncio.Future[None]) -> None:
        # One that has failed stays, for `written` to say so.
        if not writing.cancelled() and writing.exception() is None:
            self._behind.discard(writing)


def exit_from(end: JobExit, duration_s: float, reason: str | None) -> ExitRecord:
    """What a keeper tells of an end, as a record of it. Args: reason: who had asked for it."""
    code = os.waitstatus_to_exitcode(end.status)
    return ExitRecord(
        code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        finished_at=end.wall,
        duration_s=max(0.0, duration_s),
        reason="lease" if end.lease_ended else reason,
    )


def _found(ends: Sequence[RecordedEnd], record: Record | ExecRecord) -> ExitRecord | None:
    """Its own among the ends of its container."""
    began = record.started_at
    if began is None:
        return None
    for process, exit in ends:
        if isinstance(record, ExecRecord):
            is_it = (process.pid, process.start_time) == (record.pid, record.start_time)
        else:
            # Numbers are used again, in another life of the host. Who ends at once may do so before its start is told.
            is_it = process.pid == record.pid and exit.wall > began - 1.0
        if is_it:
            return exit_from(exit, exit.wall - began, record.end_reason if isinstance(record, Record) else None)
    return None


async def drop_output(entry: Entry, generation: int) -> None:
    """What runs from this one on wrote, of which nobody was told: the next ones bear their numbers."""
    await in_thread(_drop_output, entry.directory / "logs", generation)


def _drop_output(logs: Path, generation: int) -> None:
    # More than one: a run that can't be made takes a number, and the next try the next.
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(logs):
            if name.isdecimal() and int(name) >= generation:
                shutil.rmtree(logs / name, ignore_errors=True)


def is_due_at_boot(record: Record) -> bool:
    """Whether its policy starts it when its host, or its engine, has come back."""
    exit = record.exit
    if exit is None or exit.reason == "lease" or record.started_at is None:
        return False
    end = RunEnd(
        exit_code=exit.code if exit.code is not None else exit.shell_code,
        known=exit.unknown is None,
        started=exit.not_started is None,
        signal=exit.signal,
    )
    return should_start_at_boot(record.spec.restart, manually_stopped=record.manually_stopped, last_end=end)


def _forget_clocks(entry: Entry) -> None:
    """Instants on clocks that begin with the host, or with the run that is over."""
    record = entry.record
    record.until = record.restart_at = record.kill_at = record.end_reason = record.remedy = None


def _end_of(kind: str, record: Record, reason: str | None, pid: int = 0) -> Event:
    return Event(
        kind=kind,
        container=record.id,
        name=record.name,
        generation=record.generation,
        pid=pid,
        exit=record.exit,
        reason=reason,
    )
