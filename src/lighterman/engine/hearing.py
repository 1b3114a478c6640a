"""What an engine hears of its containers: the supervisor's Backend. Each change is written down, then told."""

from __future__ import annotations

import asyncio
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
from lighterman.record import ExecRecord, Record
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
            entry.output_of = output = entry.output_of.next_run()
            entry.start_times = self._inside.host.start_times(entry.record.runtime, container_id)
        else:
            life = entry.execs.get(process_id) or entry.enter_exec(ExecRecord(id=process_id))
            life.change(pid=streams.pid, start_time=streams.start_time, generation=streams.generation)
            sink = await life.log.open_run(1, takeover=entry.restoring)
            output = life.output_of
        output.sink, output.terminal = sink, streams.terminal
        if entry.starting and process_id == "init":
            output.hold()
        await self._platform.take_output(streams, sink)
        if streams.stdin is not None:
            output.stdin = StdinWriter(streams.stdin, self._inside.tasks.watch)

    async def state_changed(self, info: StateInfo) -> asyncio.Future[None] | None:
        """One change of one container: record and event in one transaction, then who waits.

        Who waits for it must not wait for a full disk: then they hear of it before it is written down.
        """
        entry = self._inside.books.by_id(info.container_id)
        if entry is None:
            return None
        if info.state in (State.START_PROCESS, State.EXIT_PROCESS):
            return await self._exec_changed(entry, info)
        record, exit = entry.record, None
        if info.state in (State.EXIT, State.RESTART):
            # An engine before this one may have acted, and be the only one who knew it.
            reason = entry.reason_of(info) or (UNHEALTHY if record.remedy else None)
            told = exit_record(info, reason, oom_is_news=_oom_is_news(record, info))
            exit = await self._with_last_words(entry.output_of, told)
        # From here to the commit nobody comes between: the record and its event are one.
        if record.status is not Status.REMOVING:  # else it stays so, and what has happened is told all the same
            record.status = next_status(record.status, info.state)
        record.generation, record.pid = info.generation, info.pid
        due_s = info.restart_delay_s
        record.restart_at = self._inside.clock.mono() + due_s if due_s is not None else None
        if info.state is State.START:
            record.begin_run(info.started_at)
        elif info.state is State.RESTORE:
            record.started_at, record.exit, record.starting, record.at_boot = info.started_at, None, 0, False
        elif info.state is State.OOM:
            record.oom_kills, record.oom_told_at = info.oom_kills or 0, self._inside.clock.mono()
        elif info.state in (State.EXIT, State.RESTART):
            record.pid = 0
            if info.state is State.EXIT:
                self._leases.ended(entry)
            record.exit, entry.last_end, record.at_boot = exit, info, False
            record.end_reason = record.kill_at = record.remedy = None
            entry.forget_reason()
            # Whatever came in between: nothing of it outlives it.
            entry.lose_execs(info.reason if not info.exit_code_known and info.reason else "its container ended")
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

        later = await self._inside.books.tell_fact(entry, event)
        entry.heard.set()
        if info.state in (State.START, State.RESTORE):
            entry.restoring = False
            entry.told_start.set()
        elif info.state is State.EXIT and not entry.ended.is_set():
            entry.log.end()
            entry.end_known_mono = self._inside.clock.mono()
            entry.told_start.set()
            entry.ended.set()
        if entry.check is not None or record.spec.health is not None or record.spec.ready is not None:
            self._watches().changed(entry, info)
        return later

    async def _with_last_words(self, output: Output, exit: ExitRecord) -> ExitRecord:
        if exit.ok or exit.not_started is not None or output.sink is None or output.sink.progress == 0:
            return exit
        said = await in_thread(last_words, output.sink, output.terminal)
        return msgspec.structs.replace(exit, last_words=said)

    async def _exec_changed(self, entry: Entry, info: StateInfo) -> asyncio.Future[None] | None:
        known = entry.execs.get(info.process_id)
        if known is not None and known.exit is not None:
            # The engine that told of it was killed before its keeper heard that.
            if not known.is_kept:
                entry.drop_exec(known)
            return None
        life = known or entry.new_exec(ExecRecord(id=info.process_id))
        was_told = life.record.started_at is not None
        if not was_told:
            life.change(started_at=info.started_at, pid=info.pid, generation=info.generation)
        record = life.record
        if info.state is State.EXIT_PROCESS:
            if known is not None and not was_told and not life.is_probe:
                # The engine that started it was killed before it could tell.
                entry.untold.append(entry.exec_event(State.START_PROCESS, record))
            exit = await self._with_last_words(life.output_of, exit_record(info, life.reason))
            record = msgspec.structs.replace(record, exit=exit, due=None, is_kept=life.is_kept)

        later = None
        if not life.is_probe:
            if known is not None:
                entry.exec_changed(record)
            later = await self._inside.books.tell_fact(entry, entry.exec_event(info.state, record))
        if record.exit is not None:
            life.end(record)
        if later is None and life.ended.is_set() and not life.is_kept and not life.is_probe:
            # Once its keeper has heard of that too.
            entry.execs_unsaved[life.name] = None
        return later


def _oom_is_news(record: Record, info: StateInfo) -> bool:
    """Whether the init process may be among the killed: what was told long before its end it has survived."""
    if (info.oom_kills or 0) > record.oom_kills or record.oom_told_at is None or info.finished_mono is None:
        return True
    return info.finished_mono - record.oom_told_at < limits.OOM_DEATH_S
