"""Coming back: what the store says is compared with what the keeper and the kernel say, and each difference mended."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from lighterman.books import Books
from lighterman.entry import Entry
from lighterman.errors import KeeperLost, LightermanError, StoreError
from lighterman.journal import Event
from lighterman.lifecycle.status import Status
from lighterman.record import Record
from lighterman.settling import HOST_RESTARTED, Settling, drop_output, exit_from
from lighterman.spec import ExitRecord
from lighterman.store.base import Loaded, Store
from lighterman.threads import in_thread

if TYPE_CHECKING:
    from lighterman.engine import Engine
    from lighterman.linux_host import HeldJob, LinuxHost
    from lighterman.runtimes.oci.recorded import RecordedEnd

__all__ = ["ENDS_WITH_ENGINE", "decoded", "readable", "remember_stones", "take_up"]

log = logging.getLogger(__name__)

ENDS_WITH_ENGINE = ("scope", "process")  # leases whose owner was the engine before us
_KEEPER_LOST = "keeper lost"
# Made at import: msgspec 0.22 crashes where two threads, each with an engine, meet a new type at once.
_RECORD = msgspec.json.Decoder(Record)
_AT_ONCE = 16  # containers that are taken up: each waits for the keeper, for threads and for the disk, in turns


async def take_up(engine: Engine, host: LinuxHost, books: Books, store: Store) -> None:
    """Make the engine's books true again. Nothing that runs is signalled, unless it had not been promised to anybody.

    A container that can't be taken up is left as it is, for a later engine, and is in no book of this one.
    Raises: StoreError, KeeperLost.
    """
    boot_id = await in_thread(host.boot_id)
    loaded = await store.load(boot_id, host.now())
    records = readable(loaded)
    jobs: dict[str, list[HeldJob]] = {}
    for job in await host.held_jobs({record.pid for record in records if record.pid}):
        jobs.setdefault(job.meta.id, []).append(job)
    remember_stones(engine, books, loaded)
    begun = {record.id: not _is_half_started(record) for record in records}
    coming = _ComingBack(engine, host, books, store, loaded, rebooted=loaded.boot_id not in (None, boot_id))
    # Asked for all together: a turn of a thread for each costs more than the answers.
    coming.frozen = await in_thread(host.frozen, [record.id for record in records if record.id in jobs or record.pid])
    coming.left = set(loaded.ids) - {record.id for record in records}
    if coming.rebooted:
        coming.recorded = await in_thread(host.recorded_ends)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def in_turn(record: Record, held: list[HeldJob]) -> None:
        # First come, first served: they are entered into the books in the order of their creation.
        async with gate:
            await coming.take_up(record, held)

    ends = await asyncio.gather(
        *(in_turn(record, jobs.pop(record.id, [])) for record in records), return_exceptions=True
    )
    for failed in ends:
        if failed is not None:
            raise failed
    await in_thread(host.settle_layers, begun)
    for id, unknown in jobs.items():
        if id not in coming.left:
            # Its container was never written down, or has been removed: nobody waits for it.
            await coming.end_unknown(id, unknown)
    # Who was killed while it removed something has left a part of it.
    await host.remove_remains(except_of={entry.record.id for entry in books if entry.is_registered} | coming.left)
    for path in await in_thread(host.left_directories, except_of=set(loaded.ids)):
        # However much a workload has put there: nobody waits for that.
        engine.inside.tasks.finish(host.remove_directory(path), f"remove {path}")
    await engine.execs.remove_unknown(books)
    if coming.rebooted:
        await coming.settling.keep_boot(store, boot_id)
    engine.inside.tasks.watch(coming.forget_recorded(), "let go of ends that are written down")
    # Only now: what is being started would be taken for something left.
    place = {record.id: number for number, record in enumerate(records)}
    coming.due.sort(key=lambda entry: place[entry.record.id])
    engine.runs.start_due(coming.due, coming.settling.written)
    # Whoever asks for a stop from here on finds them under way.
    await asyncio.sleep(0)


def readable(loaded: Loaded) -> list[Record]:
    """The rows of a store that this version can read; the others are left as they are."""
    records = []
    for id, encoded in zip(loaded.ids, loaded.records, strict=True):
        try:
            records.append(decoded(encoded))
        except StoreError as failed:
            log.error("container %s is left as it is: %s", id, failed)
    return records


def remember_stones(engine: Engine, books: Books, loaded: Loaded) -> None:
    """What there is of removed containers."""
    books.remember(loaded.tombstones, lambda stone: engine.inside.new_entry(decoded(stone.record)))


def decoded(encoded: bytes) -> Record:
    """A row of the store. Raises: StoreError."""
    try:
        return _RECORD.decode(encoded)
    except (msgspec.DecodeError, msgspec.ValidationError) as wrong:
        raise StoreError(f"a record in the store can't be read: {wrong}: it is of another version") from wrong


class _ComingBack:
    """One engine's.

    Attributes:
        rebooted: whether the rows are of an earlier life of the host. frozen: which containers are paused.
        left: which can't be taken up. due: which are to be started.
        recorded: after a reboot, the ends by container that its keepers knew and no engine.
    """

    def __init__(
        self, engine: Engine, host: LinuxHost, books: Books, store: Store, loaded: Loaded, *, rebooted: bool
    ) -> None:
        self.rebooted = rebooted
        self.settling = Settling(books, engine.inside.tasks)
        self.frozen: set[str] = set()
        self.left: set[str] = set()
        self.due: list[Entry] = []
        self.recorded: dict[str, list[RecordedEnd]] = {}
        self._engine = engine
        self._host = host
        self._books = books
        self._restarts = loaded.restarts
        self._execs = loaded.execs

    async def take_up(self, record: Record, jobs: list[HeldJob]) -> None:
        """One container. Raises: KeeperLost; whatever else is wrong with it is logged, and hinders no other."""
        entry = self._engine.inside.new_entry(record)
        entry.restarts = entry.restarts_saved = self._restarts.get(record.id, b"")
        # What the keeper of this boot has was started in this boot, by an engine that could not say so any more.
        rebooted = self.rebooted and not jobs
        goes_on = _goes_on(record, rebooted=rebooted)
        self._books.enter_again(entry, by_name=goes_on)
        try:
            self._engine.execs.load(entry, self._execs.get(record.id, ()))
            await self._take_up(entry, jobs, goes_on=goes_on, rebooted=rebooted)
        except KeeperLost:
            raise
        except Exception as failed:
            # Whatever it is, a defect of ours too: all other containers of the root would be watched by nobody.
            defect = None if isinstance(failed, (LightermanError, OSError)) else failed
            if entry.is_registered:
                log.error("container %s: coming back failed in part: %s", record.name, failed, exc_info=defect)
                return
            log.error("container %s can't be taken up, it is left as it is: %s", record.name, failed, exc_info=defect)
            self._books.unenter(entry)
            self.left.add(record.id)
            await entry.end_feeds()

    async def _take_up(self, entry: Entry, jobs: list[HeldJob], *, goes_on: bool, rebooted: bool) -> None:
        record = entry.record
        if record.status is Status.REMOVING:
            self._books.strike(entry)
            await self._host.end_jobs(jobs)
            self._engine.inside.tasks.finish(self._engine.removal.go_on(entry), f"remove {record.name}")
            return
        entry.feed_sinks()
        await self._settle_saving(entry)
        if rebooted:
            if await self.settling.after_reboot(entry, may_start=goes_on, ends=self.recorded.get(record.id, ())):
                self.due.append(entry)
        elif _is_half_started(record) or record.status in (Status.CREATED, Status.EXITED):
            await self._host.end_jobs(jobs)
            await self.settling.ended(entry)
        else:
            await self._take_up_running(entry, jobs)
        if entry.client is None:  # else what is told of its execs is on its way
            self._engine.execs.settle(entry, HOST_RESTARTED if rebooted else _KEEPER_LOST)
        if not goes_on:
            self._engine.inside.tasks.finish(self._engine.removal.remove_quietly(entry), f"remove {record.name}")
            return
        await self._engine.leases.take_up(entry)

    async def _settle_saving(self, entry: Entry) -> None:
        """A checkpoint may have been under way when the engine before us went: it is whole, or is undone."""
        record, saving = entry.record, entry.record.saving
        if saving is None:
            return
        was_paused = record.status is Status.PAUSED
        is_whole = await in_thread(
            self._host.settle_checkpoint,
            record.id,
            self._engine.checkpoints.directory(entry),
            saving.name,
            leave_running=saving.leave_running,
            was_paused=was_paused,
        )
        if not is_whole:
            record.manually_stopped = saving.manually_stopped
        elif not saving.leave_running:
            record.end_reason = "checkpoint"
        record.saving = None
        if not was_paused:
            self.frozen.discard(record.id)

    async def _end_once_written(self, stale: list[HeldJob]) -> None:
        await self.settling.written()
        await self._host.end_jobs(stale, remains=False)

    async def forget_recorded(self) -> None:
        """Take away what dead keepers have left, once it is in the store."""
        await self.settling.written()
        # Who is left as it is may be of another version, which still needs it.
        await in_thread(partial(self._host.forget_recorded, told=self.rebooted and not self.left))

    async def end_unknown(self, id: str, jobs: list[HeldJob]) -> None:
        """What runs of a container that is in no book. Raises: KeeperLost."""
        try:
            await self._host.end_jobs(jobs)
        except KeeperLost:
            raise
        except LightermanError as failed:
            log.error("what is left of container %s can't be ended, the next engine tries again: %s", id, failed)
            self.left.add(id)

    async def _tell_restart(self, entry: Entry, held: HeldJob | None) -> None:
        """A run whose end could not be written down before the next one had begun, on a full disk. It is a fact.

        Args: held: what the keeper has of it; None if its keeper was lost.
        """
        record, pid = entry.record, entry.record.pid
        if held is not None and held.job.exit is not None:
            end, pid = held.job.exit, held.job.pid or 0
            exit = exit_from(end, end.mono - held.meta.started_mono, record.end_reason)
        else:
            exit = ExitRecord(unknown=_KEEPER_LOST)
        entry.lose_execs(_KEEPER_LOST)
        record.status, record.pid = Status.RESTARTING, 0
        record.end_reason = record.kill_at = record.remedy = None
        record.exit = msgspec.structs.replace(exit, started_at=record.started_at, generation=record.generation)
        told = Event(
            kind="restart",
            container=record.id,
            name=record.name,
            generation=record.generation,
            pid=pid,
            exit=record.exit,
        )
        await self.settling.tell(entry, told)

    async def _tell_start(self, entry: Entry, held: HeldJob) -> None:
        """A run that its policy began, and whose engine was killed before it could tell."""
        record = entry.record
        was_told_to_restart = not record.at_boot
        record.begin_run(time.time() - (time.monotonic() - held.meta.started_mono))
        if was_told_to_restart:
            return  # that this one is found is what follows
        record.status, record.generation, record.pid = Status.RUNNING, held.meta.generation, held.job.pid or 0
        told = Event(kind="start", container=record.id, name=record.name, generation=record.generation, pid=record.pid)
        await self.settling.tell(entry, told)

    async def _take_up_running(self, entry: Entry, jobs: list[HeldJob]) -> None:
        record, engine, host = entry.record, self._engine, self._host
        # One without a process is a runtime call that failed while no engine was there.
        inits = [job for job in jobs if job.meta.kind == "init" and job.job.pid is not None]
        newest = max(inits, key=lambda job: job.meta.generation, default=None)
        stale = [
            job for job in jobs if newest is None or job.meta.generation < newest.meta.generation or job.job.pid is None
        ]
        goes_on = newest is not None and newest.meta.generation > record.generation
        if goes_on and record.status is not Status.RESTARTING:
            await self._tell_restart(
                entry, next((job for job in inits if job.meta.generation == record.generation), None)
            )
        if goes_on and not self.settling.is_written:
            # Until its end is in the store, the keeper is the only one who knows it for good.
            engine.inside.tasks.watch(self._end_once_written(stale), f"acknowledge the end of {record.name}")
        else:
            await host.end_jobs(stale, remains=newest is None)
        if record.status is Status.RESTARTING and (newest is None or newest.meta.generation <= record.generation):
            # The next run had not begun: it is due. It stays so until it is told to run, for the engine after this one.
            await host.end_jobs([job for job in jobs if job not in stale])
            await drop_output(entry, record.generation + 1)
            if record.manually_stopped or record.lease in ENDS_WITH_ENGINE:
                await self.settling.not_begun(entry)
            else:
                self.due.append(entry)
            return
        if goes_on:
            assert newest is not None
            await self._tell_start(entry, newest)
        runtime = await host.runtime_of_before(record.runtime)
        entry.client = engine.runs.client(runtime.name)
        generation = newest.meta.generation if newest is not None else record.generation
        record.generation = generation - 1
        options = engine.runs.create_options(entry, execs=engine.execs.known(entry))
        record.generation = generation
        try:
            spec = await engine.runs.spec_of(entry)
        except LightermanError as changed:
            log.warning("container %s can't be started again as it is: %s", record.name, changed)
            spec = None
        # A pause, or its end, that was not told before the crash is seen here.
        record.status = Status.PAUSED if record.id in self.frozen else Status.RUNNING
        entry.restoring, entry.reason = True, record.end_reason
        limited = record.spec.resources.memory_bytes is not None
        runtime.listed(
            record.id,
            [held.job for held in jobs if held not in stale],
            memory_limited=limited,
            upper=host.upper_of(record.id, record.spec),
        )
        await entry.client.restore(record.id, *options, spec=spec)
        engine.execs.take_up(entry)
        if record.kill_at is not None:
            engine.inside.tasks.watch(engine.runs.go_on_ending(entry), f"go on with the stop of {record.name}")


def _is_half_started(record: Record) -> bool:
    return bool(record.starting) and record.status is not Status.RESTARTING


def _goes_on(record: Record, *, rebooted: bool) -> bool:
    """Whether it is there in this engine's life: its owner is not dead, and nobody had begun to remove it."""
    if record.status is Status.REMOVING or record.lease in ENDS_WITH_ENGINE:
        return False
    return not (rebooted and record.lease in ("owner", "connection"))
