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
from lighterman.recovery import (
    HOST_RESTARTED,
    decoded,
    drop_output,
    is_due_at_boot,
    settle_the_ended,
    tell_lost,
    tell_not_begun,
)
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
    for stone in loaded.tombstones:
        books.remember(stone, engine.inside.new_entry(decoded(stone.record)))
    rebooted = loaded.boot_id is not None and loaded.boot_id != boot_id
    due: list[Entry] = []
    for encoded in loaded.records:
        record = decoded(encoded)
        entry = engine.inside.new_entry(record)
        entry.restarts = entry.restarts_saved = loaded.restarts.get(record.id, b"")
        engine.execs.load(entry, loaded.execs.get(record.id, ()))
        books.enter(entry)
        await _settle(engine, host, books, entry, due, why=HOST_RESTARTED if rebooted else ENGINE_LOST)
    known = {entry.record.id for entry in books}
    await host.sweep(known=known)
    await in_thread(host.remove_directories, except_of=known)
    await engine.execs.remove_unknown(books)
    # Only now: what is being started would be taken for something left.
    for entry in due:
        engine.runs.start_later(entry)
    # Whoever asks for a stop from here on finds them under way.
    await asyncio.sleep(0)


async def _settle(engine: Engine, host: WindowsHost, books: Books, entry: Entry, due: list[Entry], *, why: str) -> None:
    record = entry.record
    if record.status is not Status.CREATED:
        await host.end_left(record.id)
    if record.status is Status.REMOVING:
        books.strike(entry)
        engine.inside.tasks.finish(engine.removal.go_on(entry), f"remove {record.name}")
        return
    entry.feed_sinks()
    if record.status is Status.RESTARTING:
        # The next run had not begun to be told of: it is due.
        record.restart_at = record.restart_at if why == ENGINE_LOST else None  # the clock of that boot
        await drop_output(entry, record.generation + 1)
        if record.manually_stopped or not _goes_on(record):
            await tell_not_begun(books, entry)
        else:
            due.append(entry)
    elif record.starting or record.status in (Status.CREATED, Status.EXITED):
        await settle_the_ended(books, entry)
    else:
        await tell_lost(books, entry, why)
        if _goes_on(record) and is_due_at_boot(record):
            due.append(entry)
    engine.execs.settle(entry, why)
    if not _goes_on(record):
        engine.inside.tasks.finish(engine.removal.remove_quietly(entry), f"remove {record.name}")
        return
    await engine.leases.take_up(entry)


def _goes_on(record: Record) -> bool:
    # The owner of the others was the engine before us, and that is dead.
    return record.lease is None
