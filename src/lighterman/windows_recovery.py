"""Coming back on Windows: the pipes of what runs can't be taken over, so it is ended, and told as `engine lost`.

What is recorded is settled first, then what nobody has recorded is swept: so each end is told to whom it belongs.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from lighterman.books import Books
from lighterman.entry import Entry
from lighterman.lifecycle.status import Status
from lighterman.record import Record
from lighterman.recovery import readable, remember_stones
from lighterman.settling import HOST_RESTARTED, Settling, drop_output
from lighterman.store.base import Store
from lighterman.threads import in_thread
from lighterman.windows_host import WindowsHost

if TYPE_CHECKING:
    from lighterman.engine import Engine

__all__ = ["ENGINE_LOST", "take_up"]

ENGINE_LOST = "engine lost"


async def take_up(engine: Engine, host: WindowsHost, books: Books, store: Store) -> None:
    """Make the engine's books true again. Raises: StoreError."""
    boot_id = await in_thread(host.boot_id)
    loaded = await store.load(boot_id, time.time())
    remember_stones(engine, books, loaded)
    rebooted = loaded.boot_id not in (None, boot_id)
    settling = Settling(books, engine.inside.tasks)
    due: list[Entry] = []
    records = readable(loaded)
    for record in records:
        entry = engine.inside.new_entry(record)
        entry.restarts = entry.restarts_saved = loaded.restarts.get(record.id, b"")
        engine.execs.load(entry, loaded.execs.get(record.id, ()))
        books.enter_again(entry, by_name=_goes_on(record))
        await _settle(engine, host, books, settling, entry, due, rebooted=rebooted)
    # Also what can't be read is somebody's.
    known = {entry.record.id for entry in books} | (set(loaded.ids) - {record.id for record in records})
    await host.sweep(known=known)
    await in_thread(host.remove_directories, except_of=known)
    await engine.execs.remove_unknown(books)
    if rebooted:
        await settling.keep_boot(store, boot_id)
    # Only now: what is being started would be taken for something left.
    engine.runs.start_due(due, settling.written)
    # Whoever asks for a stop from here on finds them under way.
    await asyncio.sleep(0)


async def _settle(
    engine: Engine,
    host: WindowsHost,
    books: Books,
    settling: Settling,
    entry: Entry,
    due: list[Entry],
    *,
    rebooted: bool,
) -> None:
    record = entry.record
    if record.status is not Status.CREATED:
        await host.end_left(record.id)
    if record.status is Status.REMOVING:
        books.strike(entry)
        engine.inside.tasks.finish(engine.removal.go_on(entry), f"remove {record.name}")
        return
    entry.feed_sinks()
    goes_on = _goes_on(record)
    if rebooted:
        starts = await settling.after_reboot(entry, may_start=goes_on)
    elif record.status is Status.RESTARTING:
        # The next run had not begun to be told of: it is due.
        await drop_output(entry, record.generation + 1)
        starts = goes_on and not record.manually_stopped
        if not starts:
            await settling.not_begun(entry)
    elif record.starting or record.status in (Status.CREATED, Status.EXITED):
        await settling.ended(entry)
        starts = False
    else:
        starts = await settling.lost(entry, ENGINE_LOST, may_start=goes_on)
    if starts:
        due.append(entry)
    engine.execs.settle(entry, HOST_RESTARTED if rebooted else ENGINE_LOST)
    if not goes_on:
        engine.inside.tasks.finish(engine.removal.remove_quietly(entry), f"remove {record.name}")
        return
    await engine.leases.take_up(entry)


def _goes_on(record: Record) -> bool:
    # The owner of the others was the engine before us, and that is dead.
    return record.lease is None and record.status is not Status.REMOVING
