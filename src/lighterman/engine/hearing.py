"""What an engine hears of its containers: the supervisor's Backend. Each change is written down, then told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from lighterman import limits
from lighterman.engine.inside import Inside
from lighterman.engine.platform import HostLeases, Platform
from lighterman.entry import UNHEALTHY, Entry, Output, exit_record, last_words
from lighterman.errors import NotFound
from lighterman.journal import Event
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.status import Status, next_status
from lighterman.record import Record
from lighterman.spec import ExitRecord
from lighterman.stdin import StdinWriter
from lighterman.supervisor.streams import Streams
from lighterman.threads import in_thread

if TYPE_CHECKING:
    from lighterman.watches import Watches

__all__ = ["Hearing"]


class Hearing:
    """The Backend of one engine's clients. Args: watches: made at the first use."""

    def __init__(self, inside: Inside, platform: Platform, leases: HostLeases, watches: Callable[[], Watches]) -> None:
        self._inside = inside
        self._platform = platform
        self._leases = leases
        self._watches = watches

    async def attach_streams(self, container_id: str, process_id: str, streams: Streams) -> None:
        """Take a new process's streams: output into segments, stdin behind a writer."""
        entry = self._inside.books.by_id(container_id)
        if entry is None or self._inside.pump is None:
            raise NotFound(f"container {container_id} was removed", container=container_id)
        if process_id == "init":
            sink = await entry.log.open_run(streams.generation, takeover=entry.restoring)
            entry.output_of.close()
            entry.output_of = output = Output()
            entry.start_times = self._inside.host.start_times(entry.record.runtime, container_id)
        else:
            life = entry.execs.get(process_id) or entry.new_exec(process_id)
            life.pid = life.pid or streams.pid
            sink = await life.log.open_run(1, takeover=entry.restoring)
            output = life.output_of
        output.sink, output.terminal = sink, streams.terminal
        if entry.starting and process_id == "init":
            output.hold()
        await self._platform.take_output(streams, sink)
        if streams.stdin is not None:
            output.stdin = StdinWriter(streams.stdin, self._inside.tasks.watch)

    async def state_changed(self, info: StateInfo) -> None:
        """One change of one container: record and event in one transaction, then who waits."""
        entry = self._inside.books.by_id(info.container_id)
        if entry is None:
            return
        if info.state in (State.START_PROCESS, State.EXIT_PROCESS):
            await self._exec_changed(entry, info)
            return
        record, exit = entry.record, None
        if info.state in (State.EXIT, State.RESTART):
            # An engine before this one may have acted, and be the only one who knew it.
            reason = entry.reason or (UNHEALTHY if record.remedy else None)
            exit = await self._with_last_words(entry, exit_record(info, reason, oom_is_news=_oom_is_news(record, info)))
        # From here to the commit nobody comes between: the record and its event are one.
        if record.status is not Status.REMOVING:  # else it stays so, and what has happened is told all the same
            record.status = next_status(record.status, info.state)
        record.generation, record.pid = info.generation, info.pid
        due_s = info.restart_delay_s
        record.restart_at = self._inside.clock.mono() + due_s if due_s is not None else None
        if info.state in (State.START, State.RESTORE):
            record.started_at, record.exit, record.starting = info.started_at, None, 0
            if info.state is State.START:
                record.health, record.ready, record.oom_kills = None, False, 0
                record.startup_over, record.remedy, record.oom_told_at = False, None, None
        elif info.state is State.OOM:
            record.oom_kills, record.oom_told_at = info.oom_kills or 0, self._inside.clock.mono()
        elif info.state in (State.EXIT, State.RESTART):
            record.pid = 0
            if info.state is State.EXIT:
                self._leases.ended(entry)
            record.exit, entry.last_end = exit, info
            entry.reason = record.remedy = None
            entry.execs_due.clear()
        if info.state in (State.START, State.RESTART, State.EXIT):
            entry.restarts = info.restarts
        event = Event(
            kind=info.state,
            container=record.id,
            name=record.name,
            generation=info.generation,
            pid=info.pid,
            exit=record.exit,
            reason=info.reason,
            oom_kills=record.oom_kills if info.state is State.OOM else 0,
        )

        def tell_who_waits() -> None:
            entry.heard.set()
            if info.state in (State.START, State.RESTORE):
                entry.restoring = False
                entry.told_start.set()
            elif info.state is State.EXIT and not entry.ended.is_set():
                entry.log.end()
                entry.end_known_mono = self._inside.clock.mono()
                entry.told_start.set()
                entry.ended.set()

        # Who waits for it must not wait for a full disk: then they hear of it before it is written down.
        await self._inside.books.tell_fact(entry, event, late=tell_who_waits)
        tell_who_waits()
        if entry.check is not None or record.spec.health is not None or record.spec.ready is not None:
            self._watches().changed(entry, info)

    async def _with_last_words(self, entry: Entry, exit: ExitRecord) -> ExitRecord:
        output = entry.output_of
        if exit.ok or output.sink is None or output.sink.progress == 0:
            return exit
        said = await in_thread(last_words, output.sink, output.terminal)
        return msgspec.structs.replace(exit, last_words=said)

    async def _exec_changed(self, entry: Entry, info: StateInfo) -> None:
        life = entry.execs.get(info.process_id)
        exit = None
        if info.state is State.EXIT_PROCESS:
            exit = exit_record(info, life.reason if life else None)
            entry.execs_due.pop(info.process_id, None)
        event = Event(
            kind=info.state,
            container=entry.record.id,
            name=entry.record.name,
            generation=info.generation,
            process=info.process_id,
            pid=info.pid,
            exit=exit,
        )

        def tell_who_waits() -> None:
            if life is not None and exit is not None and not life.ended.is_set():
                life.exit = exit
                life.log.end()
                life.ended.set()

        if life is None or not life.is_probe:
            await self._inside.books.tell_fact(entry, event, late=tell_who_waits)
        tell_who_waits()


def _oom_is_news(record: Record, info: StateInfo) -> bool:
    """Whether the init process may be among the killed: what was told long before its end it has survived."""
    if (info.oom_kills or 0) > record.oom_kills or record.oom_told_at is None or info.finished_mono is None:
        return True
    return info.finished_mono - record.oom_told_at < limits.OOM_DEATH_S
