"""Coming back: what the store says is compared with what the keeper and the kernel say, and each difference mended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lighterman.books import Books
from lighterman.entry import Entry
from lighterman.errors import LightermanError, StoreError
from lighterman.journal import Event
from lighterman.lifecycle.restart import RunEnd, should_start_at_boot
from lighterman.lifecycle.status import Status
from lighterman.record import Record
from lighterman.spec import ExitRecord
from lighterman.store.base import Loaded, Store
from lighterman.threads import in_thread

if TYPE_CHECKING:
    from lighterman.engine import Engine
    from lighterman.linux_host import HeldJob, LinuxHost

__all__ = [
    "ENDS_WITH_ENGINE",
    "HOST_RESTARTED",
    "decoded",
    "drop_output",
    "is_due_at_boot",
    "settle_the_ended",
    "take_up",
    "tell_lost",
    "tell_not_begun",
]

log = logging.getLogger(__name__)

HOST_RESTARTED = "host restarted"
ENDS_WITH_ENGINE = ("scope", "process")  # leases whose owner was the engine before us
_KEEPER_LOST = "keeper lost"
# Made at import: msgspec 0.22 crashes where two threads, each with an engine, meet a new type at once.
_RECORD = msgspec.json.Decoder(Record)
_AT_ONCE = 16  # containers that are taken up: each waits for the keeper, for threads and for the disk, in turns


async def take_up(engine: Engine, host: LinuxHost, books: Books, store: Store) -> None:
    """Make the engine's books true again. Nothing that runs is signalled, unless it had not been promised to anybody.

    Raises: StoreError, KeeperLost.
    """
    boot_id = await in_thread(host.boot_id)
    loaded = await store.load(boot_id, host.now())
    records = [decoded(encoded) for encoded in loaded.records]
    jobs: dict[str, list[HeldJob]] = {}
    for job in await host.held_jobs({record.pid for record in records if record.pid}):
        jobs.setdefault(job.meta.id, []).append(job)
    for stone in loaded.tombstones:
        books.remember(stone, engine.inside.new_entry(decoded(stone.record)))
    rebooted = loaded.boot_id is not None and loaded.boot_id != boot_id
    # Asked for all together: a turn of a thread for each costs more than the answers.
    frozen = await in_thread(host.frozen, [record.id for record in records if record.id in jobs or record.pid])
    due: list[Entry] = []
    gate = asyncio.Semaphore(_AT_ONCE)

    async def in_turn(record: Record, held: list[HeldJob]) -> None:
        # First come, first served: they are entered into the books in the order of their creation.
        async with gate:
            await _take_up_one(
                engine, host, books, record, loaded, held, due, frozen=record.id in frozen, rebooted=rebooted
            )

    ends = await asyncio.gather(
        *(in_turn(record, jobs.pop(record.id, [])) for record in records), return_exceptions=True
    )
    for failed in ends:
        if failed is not None:
            raise failed
    place = {record.id: number for number, record in enumerate(records)}
    due.sort(key=lambda entry: place[entry.record.id])
    for unknown in jobs.values():
        # Its container was never written down, or has been removed: nobody waits for it.
        await host.end_jobs(unknown)
    # Who was killed while it removed something has left a part of it.
    await host.remove_remains(except_of={entry.record.id for entry in books if entry.is_registered})
    await in_thread(host.remove_directories, except_of={entry.record.id for entry in books})
    # Only now: what is being started would be taken for something left.
    for entry in due:
        engine.runs.start_later(entry)
    # Whoever asks for a stop from here on finds them under way.
    await asyncio.sleep(0)


def decoded(encoded: bytes) -> Record:
    """A row of the store. Raises: StoreError."""
    try:
        return _RECORD.decode(encoded)
    except (msgspec.DecodeError, msgspec.ValidationError) as wrong:
        raise StoreError(f"a record in the store can't be read: {wrong}: it is of another version") from wrong


async def _take_up_one(
    engine: Engine,
    host: LinuxHost,
    books: Books,
    record: Record,
    loaded: Loaded,
    jobs: list[HeldJob],
    due: list[Entry],
    *,
    frozen: bool,
    rebooted: bool,
) -> None:
    entry = engine.inside.new_entry(record)
    entry.restarts = entry.restarts_saved = loaded.restarts.get(record.id, b"")
    entry.execs_due = {exec_id: due for id, exec_id, due in loaded.execs_due if id == record.id}
    entry.execs_due_saved = dict(entry.execs_due)
    books.enter(entry)
    if record.status is Status.REMOVING:
        books.strike(entry)
        await host.end_jobs(jobs)
        engine.inside.tasks.finish(engine.removal.go_on(entry), f"remove {record.name}")
        return
    entry.feed_sinks()
    half_started = record.starting and record.status is not Status.RESTARTING
    if half_started or record.status in (Status.CREATED, Status.EXITED):
        await host.end_jobs(jobs)
        await settle_the_ended(books, entry)
    elif rebooted:
        await tell_lost(books, entry, HOST_RESTARTED)
    else:
        await _take_up_running(engine, host, books, entry, jobs, due, frozen=frozen)
    if record.lease in ENDS_WITH_ENGINE or (record.lease in ("owner", "connection") and rebooted):
        # Its owner was the engine before us, or one of an earlier boot, and that is dead.
        engine.inside.tasks.finish(engine.removal.remove_quietly(entry), f"remove {record.name}")
        return
    await engine.leases.take_up(entry)
    if rebooted and is_due_at_boot(record):
        due.append(entry)


async def settle_the_ended(books: Books, entry: Entry) -> None:
    """What was half started was promised to nobody; what has ended only was not acknowledged yet."""
    entry.ended.set()
    entry.record.until = None
    if entry.record.starting:
        await drop_output(entry, entry.record.starting)
        entry.record.starting = 0
        if entry.record.status not in (Status.CREATED, Status.EXITED):
            entry.record.status = Status.EXITED
        await books.save(entry)


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
    """Whether its policy starts it when its host, or its engine, has come back; only what has run once."""
    exit = record.exit
    if exit is None or exit.reason == "lease" or record.started_at is None:
        return False
    end = RunEnd(exit_code=exit.shell_code, known=exit.unknown is None, started=exit.not_started is None)
    return should_start_at_boot(record.spec.restart, manually_stopped=record.manually_stopped, last_end=end)


async def tell_lost(books: Books, entry: Entry, why: str) -> None:
    """It ran when the engine before us went, and how it ended nobody can know."""
    record = entry.record
    record.status, record.pid, record.until = Status.EXITED, 0, None
    record.exit = ExitRecord(unknown=why, started_at=record.started_at, generation=record.generation)
    await books.tell(
        entry,
        Event(kind="exit", container=record.id, name=record.name, generation=record.generation, exit=record.exit),
    )
    entry.ended.set()


async def tell_not_begun(books: Books, entry: Entry) -> None:
    """The run that its policy had decided on comes no more: it was stopped meanwhile, or its owner has gone."""
    record = entry.record
    record.status, record.restart_at = Status.EXITED, None
    reason = "stopped before it was started again"
    await books.tell(
        entry,
        Event(
            kind="exit",
            container=record.id,
            name=record.name,
            generation=record.generation,
            exit=record.exit,
            reason=reason,
        ),
    )
    entry.ended.set()


async def _tell_restart(books: Books, entry: Entry, held: HeldJob | None) -> None:
    """A run whose end could not be written down before the next one had begun, on a full disk. It is a fact.

    Args: held: what the keeper has of it; None if its keeper was lost.
    """
    record, pid = entry.record, entry.record.pid
    if held is not None and held.job.exit is not None:
        end, pid = held.job.exit, held.job.pid or 0
        code = os.waitstatus_to_exitcode(end.status)
        exit = ExitRecord(
            code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            finished_at=end.wall,
            duration_s=max(0.0, end.mono - held.meta.started_mono),
        )
    else:
        exit = ExitRecord(unknown=_KEEPER_LOST)
    record.status, record.pid = Status.RESTARTING, 0
    record.exit = msgspec.structs.replace(exit, started_at=record.started_at, generation=record.generation)
    told = Event(
        kind="restart",
        container=record.id,
        name=record.name,
        generation=record.generation,
        pid=pid,
        exit=record.exit,
    )
    await books.tell(entry, told)


async def _take_up_running(
    engine: Engine,
    host: LinuxHost,
    books: Books,
    entry: Entry,
    jobs: list[HeldJob],
    due: list[Entry],
    *,
    frozen: bool,
) -> None:
    record = entry.record
    # One without a process is a runtime call that failed while no engine was there.
    inits = [job for job in jobs if job.meta.kind == "init" and job.job.pid is not None]
    newest = max(inits, key=lambda job: job.meta.generation, default=None)
    stale = [
        job for job in jobs if newest is None or job.meta.generation < newest.meta.generation or job.job.pid is None
    ]
    goes_on = newest is not None and newest.meta.generation > record.generation
    if goes_on and record.status is not Status.RESTARTING:
        await _tell_restart(
            books, entry, next((job for job in inits if job.meta.generation == record.generation), None)
        )
    await host.end_jobs(stale, remains=newest is None)
    if record.status is Status.RESTARTING and (newest is None or newest.meta.generation <= record.generation):
        # The next run had not begun: it is due. It stays so until it is told to run, for the engine after this one.
        await host.end_jobs([job for job in jobs if job not in stale])
        await drop_output(entry, record.generation + 1)
        if record.manually_stopped or record.lease in ENDS_WITH_ENGINE:
            await tell_not_begun(books, entry)
        else:
            due.append(entry)
        return
    runtime = await host.runtime(record.runtime or None)
    entry.client = engine.runs.client(runtime.name)
    generation = newest.meta.generation if newest is not None else record.generation
    record.generation = generation - 1
    options = engine.runs.create_options(entry)
    record.generation = generation
    try:
        spec = await engine.runs.spec_of(entry)
    except LightermanError as changed:
        log.warning("container %s can't be started again as it is: %s", record.name, changed)
        spec = None
    # A pause, or its end, that was not told before the crash is seen here.
    record.status = Status.PAUSED if frozen else Status.RUNNING
    entry.restoring = True
    runtime.listed(record.id, [held.job for held in jobs if held not in stale])
    await entry.client.restore(record.id, *options, spec=spec)
    engine.execs.take_up(entry)
