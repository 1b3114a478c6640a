"""Feeds a container's sinks from its segments, each at its own pace: none can hold up the program, or another sink.

Each record at least once: a sink's place is written down after it took something, at most once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lighterman import limits
from lighterman.errors import StoreError
from lighterman.keeper.files import OURS
from lighterman.logs.container import ContainerLog
from lighterman.logs.query import LogQuery
from lighterman.logs.reader import Cursor, LogRecord
from lighterman.logs.sinks.base import LogSource, Outlet, SinkFailed
from lighterman.logs.sinks.callable import CallableOutlet
from lighterman.logs.sinks.syslog import SyslogOutlet
from lighterman.logs.state import SinkState
from lighterman.spec import CallableSink, JournaldSink, SyslogSink
from lighterman.threads import in_thread

__all__ = ["Feeds", "open_outlet"]

log = logging.getLogger(__name__)

# Made here: msgspec crashes where two threads decode a type for the first time at once.
_CURSOR = msgspec.json.Decoder(Cursor)


def open_outlet(sink: CallableSink | JournaldSink | SyslogSink, source: LogSource) -> Outlet:
    """Nothing is connected yet. Raises: InvalidSpec."""
    if isinstance(sink, CallableSink):
        return CallableOutlet(sink.function)
    if isinstance(sink, JournaldSink):
        # Not on every platform.
        from lighterman.logs.sinks.journald import JournaldOutlet

        return JournaldOutlet(sink, source)
    return SyslogOutlet(sink, source)


class Feeds:
    """All sinks of one container. Made on the event loop; begins at once."""

    def __init__(
        self,
        log: ContainerLog,
        directory: Path,
        source: LogSource,
        kept: Sequence[JournaldSink | SyslogSink],
        callables: Sequence[CallableSink] = (),
    ) -> None:
        """`kept` are those of the container's spec, whose places are written down in `directory`.

        Raises: InvalidSpec.
        """
        feeds = [Feed(log, open_outlet(sink, source), directory / str(number)) for number, sink in enumerate(kept)]
        feeds += [Feed(log, open_outlet(sink, source), None) for sink in callables]
        self._feeds = feeds
        for feed in feeds:
            feed.start()

    @property
    def states(self) -> tuple[SinkState, ...]:
        """How each is doing."""
        return tuple(feed.state for feed in self._feeds)

    async def finish(self, within_s: float) -> None:
        """Let the sinks have the rest, as far as they take it in that time; one that fails gets nothing more."""
        await asyncio.gather(*(feed.finish(within_s) for feed in self._feeds))

    async def stop(self) -> None:
        """Stop where they are."""
        await self.finish(0.0)


class Feed:
    """One sink."""

    def __init__(self, log: ContainerLog, outlet: Outlet, place: Path | None) -> None:
        self._log = log
        self._outlet = outlet
        self._file = place
        self._cursor = Cursor(0, 0)
        self._sent = 0
        self._failures = 0
        self._error: str | None = None
        self._idle = asyncio.Event()
        self._seen = log.news  # which it has looked at everything since
        self._task: asyncio.Task[None] | None = None
        self._saved = Cursor(0, 0)
        self._save_at = 0.0

    @property
    def state(self) -> SinkState:
        return SinkState(
            kind=self._outlet.kind,
            sent=self._sent,
            cursor=self._cursor,
            error=self._error,
            failures=self._failures,
            refused=self._outlet.refused,
        )

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"log sink {self._outlet.kind}")

    async def finish(self, within_s: float) -> None:
        task = self._task
        if task is None:
            return
        self._task = None
        if within_s > 0 and self._error is None:
            idle = asyncio.ensure_future(self._caught_up())
            await asyncio.wait((idle, task), timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
        task.cancel()
        await asyncio.wait((task,), timeout=limits.SINK_CANCEL_S)
        if not task.done():
            # The host program's own function: nothing can end it, and nobody must wait for it.
            log.error(
                "log sink %s goes on %g s after it was cancelled: it is left alone",
                self._outlet.kind,
                limits.SINK_CANCEL_S,
            )
        await self._outlet.close()
        await self._save()

    async def _caught_up(self) -> None:
        await self._idle.wait()
        while self._error is None and self._seen.is_set():
            # There is news that its task was woken for, and has not come to yet.
            await asyncio.sleep(0)
            await self._idle.wait()

    async def _run(self) -> None:
        if self._file is not None:
            self._cursor = self._saved = await in_thread(_load, self._file)
        while True:
            news = self._seen = self._log.news
            try:
                await self._pass_on()
            except (StoreError, OSError) as failed:
                await self._back_off(f"the log can't be read: {failed}")
                continue
            if not news.is_set():
                # Else there is another look to be taken: a run may have come and gone meanwhile.
                self._idle.set()
            await self._save()
            await news.wait()
            self._idle.clear()

    async def _pass_on(self) -> None:
        """Everything there is and comes, until no further run is due."""
        query = LogQuery(after=self._cursor, follow=True, lines=True)
        async with contextlib.aclosing(self._log.batches(query)) as batches:
            async for records in batches:
                await self._deliver(records)

    async def _deliver(self, records: Sequence[LogRecord]) -> None:
        while records:
            try:
                count = await self._outlet.send(records)
            except SinkFailed as failed:
                await self._back_off(str(failed))
                continue
            self._cursor = records[count - 1].cursor
            self._sent += count
            self._error, self._failures = None, 0
            records = records[count:]
            if asyncio.get_running_loop().time() >= self._save_at:
                await self._save()

    async def _back_off(self, error: str) -> None:
        if self._error is None:
            log.warning("log sink %s: %s", self._outlet.kind, error)
        self._error = error
        self._failures += 1
        # A wait for the end of the feeding is over: it would take nothing.
        self._idle.set()
        delay_s = limits.SINK_RETRY_FIRST_S * 2.0 ** min(self._failures - 1, 16)
        await asyncio.sleep(min(delay_s, limits.SINK_RETRY_MAX_S))
        self._idle.clear()

    async def _save(self) -> None:
        if self._file is None or self._cursor == self._saved:
            return
        cursor = self._cursor
        self._save_at = asyncio.get_running_loop().time() + limits.SINK_SAVE_S
        try:
            await in_thread(_store, self._file, cursor)
        except OSError as failed:
            # A full disk: after a crash the sink gets some records again, which is what it was promised.
            log.debug("the place of log sink %s is not written down: %s", self._outlet.kind, failed)
        else:
            self._saved = cursor


def _load(path: Path) -> Cursor:
    try:
        return _CURSOR.decode(path.read_bytes())
    except FileNotFoundError:
        return Cursor(0, 0)
    except (msgspec.DecodeError, OSError) as wrong:
        log.warning("%s: the place of a log sink can't be read, it begins anew: %s", path, wrong)
        return Cursor(0, 0)


def _store(path: Path, cursor: Cursor) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | OURS, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(cursor))
    new.rename(path)
