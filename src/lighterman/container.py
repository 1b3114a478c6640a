"""The public faces of one container and of one exec process. They keep no state: the engine does."""

from __future__ import annotations

import signal as signals
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, overload

from lighterman import limits
from lighterman.arguments import shown
from lighterman.errors import InvalidSpec, NotFound
from lighterman.lease import ConnectionLease, Lease
from lighterman.lifecycle.restart import RestartRule
from lighterman.lifecycle.status import Status
from lighterman.logs.query import log_query
from lighterman.logs.reader import Cursor, LogRecord, StreamName
from lighterman.logs.state import LogState
from lighterman.logs.streams import LogStream
from lighterman.results import Result
from lighterman.runtimes.base import SIGKILL
from lighterman.signal_names import SIGNAL_NUMBERS
from lighterman.spec import (
    ConsoleSize,
    ContainerSpec,
    ExitRecord,
    ProcessSummary,
    Resources,
    RestartPolicy,
    Statistics,
    Timings,
)
from lighterman.stdin import StdinWriter

if TYPE_CHECKING:
    import datetime

    from lighterman.engine import Engine
    from lighterman.entry import Entry, ExecEntry
    from lighterman.lifecycle.health import HealthReport

__all__ = ["Container", "Process", "signal_number"]


_HIGHEST = max(SIGNAL_NUMBERS.values())


def signal_number(signal: int | str) -> int:
    """A number, or a name with or without SIG. Raises: InvalidSpec."""
    if isinstance(signal, str):
        name = signal.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        if name in SIGNAL_NUMBERS:
            return SIGNAL_NUMBERS[name]
    elif type(signal) in (int, signals.Signals) and 1 <= signal <= _HIGHEST:
        return int(signal)
    raise InvalidSpec(f"signal {shown(signal)}: must be a name as TERM, or a number from 1 to {_HIGHEST}")


class Container:
    """One container of an engine, made by `Engine.create`, `Engine.container`, `Engine.get`, `Engine.containers`."""

    def __init__(self, engine: Engine, entry: Entry) -> None:
        self._engine = engine
        self._entry = entry

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self._entry.record.id

    @property
    def name(self) -> str:
        """The one given, or made from the id."""
        return self._entry.record.name

    @property
    def spec(self) -> ContainerSpec:
        """What it was asked to be, changed limits and policies included; of functions nothing."""
        return self._entry.record.spec

    @property
    def created_at(self) -> float:
        """Unix time in seconds."""
        return self._entry.record.created_at

    @property
    def started_at(self) -> float | None:
        """When its last run began, Unix time in seconds; None before the first."""
        return self._entry.record.started_at

    @property
    def status(self) -> Status:
        """What was last observed: `created`, `running`, `paused`, `restarting`, `exited` or `removed`."""
        return self._entry.record.status

    @property
    def pid(self) -> int:
        """The host's number of the init process; 0 where none runs."""
        return self._entry.record.pid

    @property
    def generation(self) -> int:
        """The number of the run that is under way or was last; 0 before the first."""
        return self._entry.record.generation

    @property
    def runtime(self) -> str | None:
        """Which one that run uses; None before the first."""
        return self._entry.record.runtime or None

    @property
    def exit(self) -> ExitRecord | None:
        """How the last run ended; None while one is running, and before the first."""
        return self._entry.record.exit

    @property
    def lease(self) -> Lease:
        """What ends it if nobody does."""
        return self._engine.leases.of(self._entry.record)

    @property
    def timings(self) -> Timings:
        """Where the time of the last run went, from the request to start it to its end; empty until then."""
        return self._engine.runs.timings(self._entry)

    @property
    def stdin(self) -> StdinWriter:
        """Raises: InvalidState if it was made without `stdin=True`, or never started."""
        return self._entry.require_stdin()

    @property
    def stdout(self) -> LogStream:
        """The output of the run that is under way or was last, from its first byte. With a terminal, all of it.

        Who has begun to read and then stands still lets the program wait, once the log is full.
        Raises: InvalidState if it was never started.
        """
        return self._entry.output(1)

    @property
    def stderr(self) -> LogStream:
        """As `stdout`. Raises: InvalidState with a terminal, and if it was never started."""
        return self._entry.output(2)

    async def start(self, *, checkpoint: str | None = None) -> None:
        """Start it. Returns when its program runs.

        Args: checkpoint: the name of one of its own: the program goes on from there, with the files of that moment.
        Raises: InvalidState if it runs, CommandNotFound, CommandNotExecutable, RuntimeFailed; NotFound, NotSupported.
        If cancelled: what was begun is undone.
        """
        if checkpoint is None:
            await self._engine.runs.start(self._entry)
        else:
            await self._engine.checkpoints.start_from(self._entry, checkpoint)

    async def stop(self, *, grace_s: float = limits.STOP_GRACE_S) -> ExitRecord | None:
        """Ask it to end with its stop signal, kill it after `grace_s` seconds.

        Returns: how it ended; None if it never ran. Raises: Unkillable if not even SIGKILL ends it.
        If cancelled: it is stopped all the same. If this process is killed: the root's next engine goes on with it.
        """
        return await self._engine.runs.stop(self._entry, grace_s)

    async def kill(self, signal: int | str = SIGKILL) -> None:
        """Deliver one signal to the init process; KILL ends all processes. Not running is not an error.

        KILL and the stop signal ask for its end, as `stop` does: no policy starts it again, `exit.reason == "kill"`.
        """
        await self._engine.runs.signal(self._entry, signal_number(signal))

    async def restart(self, *, grace_s: float = limits.STOP_GRACE_S) -> None:
        """Stop it, if it runs, and start it."""
        await self.stop(grace_s=grace_s)
        await self.start()

    @property
    def health(self) -> HealthReport | None:
        """Of the run that is under way or was last, with the last results; None without a check or before a run."""
        return self._engine.watches.report(self._entry)

    @property
    def is_ready(self) -> bool:
        """Whether the run that is under way has been found to be ready; see the option `ready`."""
        return self._entry.record.ready and self._entry.record.pid != 0

    @property
    def status_text(self) -> str | None:
        """What it said of itself last by sd_notify (STATUS=), with `ready=SdNotify()`; the workload's own words."""
        return self._engine.watches.said(self._entry)

    @overload
    async def wait(self, *, until: Literal["exit"] = "exit", timeout_s: float | None = None) -> ExitRecord: ...

    @overload
    async def wait(
        self, *, until: Literal["healthy", "unhealthy", "ready"], timeout_s: float | None = None
    ) -> None: ...

    async def wait(
        self, *, until: Literal["exit", "healthy", "unhealthy", "ready"] = "exit", timeout_s: float | None = None
    ) -> ExitRecord | None:
        """How it ended, once it has; a restart by its policy is not the end. Also after it was removed.

        Args: until: or return None once its health check or `ready` says so; restarts are waited through.
        Raises: InvalidState if it was never started, has no such check, or ends before; OperationTimeout.
        """
        if until == "exit":
            return await self._engine.runs.wait_exit(self._entry, timeout_s)
        self._engine.inside.must_be_open()
        await self._engine.watches.wait(self._entry, until, timeout_s)
        return None

    async def pause(self) -> None:
        """Freeze all its processes. Raises: InvalidState if it is not running, or paused."""
        await self._entry.taken_up()
        await self._engine.client_of(self._entry).pause(self.id)

    async def resume(self) -> None:
        """Thaw them. Raises: InvalidState if it is not paused."""
        await self._entry.taken_up()
        await self._engine.client_of(self._entry).resume(self.id)

    async def checkpoint(self, name: str, *, leave_running: bool = False) -> None:
        """Save what its processes are doing, and its own files, under a name; see docs/checkpoints.md.

        Args: leave_running: it goes on; otherwise it ends by it: `exit.reason == "checkpoint"`, and no policy starts it
            again. Returns when that is told.
        Raises: NotSupported with the reason, InvalidState if it is not running, or runs exec processes; AlreadyExists,
            InvalidSpec for what can't be a name, RuntimeFailed; then it goes on as before. StoreError.
        If cancelled: it is made all the same.
        """
        await self._engine.checkpoints.make(self._entry, name, leave_running=leave_running)

    async def checkpoints(self) -> Sequence[str]:
        """The names of its checkpoints, sorted. They go when it is removed."""
        return await self._engine.checkpoints.names(self._entry)

    async def delete_checkpoint(self, name: str) -> None:
        """Raises: NotFound, InvalidSpec."""
        await self._engine.checkpoints.delete(self._entry, name)

    async def stats(self) -> Statistics:
        """Counters of its cgroup, now. Raises: InvalidState if it is not running."""
        return await self._engine.client_of(self._entry).stats(self.id)

    async def top(self) -> Sequence[ProcessSummary]:
        """Its processes. Raises: InvalidState if it is not running."""
        return await self._engine.client_of(self._entry).summary(self.id)

    async def update(self, resources: Resources) -> None:
        """Change its limits while it runs, and for its next runs.

        What is None, 0 or empty stays as it is, as for docker; -1 lifts a limit of swap or pids.

        A memory limit below what is used, and can't be freed, is refused by cgroup v1 (RuntimeFailed, nothing has
        changed); with v2 it is in force at once, and the kernel kills for it: that can end the container.

        Raises: InvalidSpec where it does not fit the limits that stay (swap below memory), NotSupported for one that
            this host can't enforce, InvalidState if it is not running, StoreError; then nothing has changed.
        """
        await self._engine.runs.update(self._entry, resources)

    async def set_restart_policy(self, policy: str | RestartPolicy | RestartRule) -> None:
        """Change when it is started again; counts from the next end on, a restart that is due goes ahead.

        Args: policy: as the option `restart`. It is stored, a function apart: of that a later engine knows nothing.
        Raises: InvalidSpec, NotFound if it was removed, StoreError; then nothing has changed.
        """
        await self._engine.runs.set_restart_policy(self._entry, policy)

    async def renew(self, ttl_s: float | None = None, *, lease: ConnectionLease | None = None) -> None:
        """Let it run for `ttl_s` seconds from now (before its start: from then); hold it against another connection.

        Raises: InvalidState if it was made without `ttl_s` or a ConnectionLease, or its time is over; InvalidSpec,
            NotFound, StoreError.
        """
        await self._engine.leases.renew(self._entry, ttl_s, lease)

    async def resize(self, *, height: int, width: int) -> None:
        """Set its terminal's size in cells. Raises: InvalidState without a terminal."""
        await self._engine.client_of(self._entry).resize(self.id, "init", height=height, width=width)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        timeout_s: float | None = None,
        max_output: int = limits.MAX_OUTPUT_BYTES,
    ) -> Result:
        """Run a further process to its end.

        Args: timeout_s: after that it is asked to end by SIGTERM, and limits.EXEC_TERM_S later it is killed with all
            that it has started: `exit.reason == "timeout"`.

        Raises: CommandNotFound, CommandNotExecutable, InvalidState if the container is not running.
        If cancelled: the process is killed before the cancellation is raised.
        """
        return await self._engine.execs.run(
            self._entry,
            argv,
            stdin=stdin,
            env=env,
            workdir=workdir,
            user=user,
            timeout_s=timeout_s,
            max_output=max_output,
        )

    async def start_exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        env: dict[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        terminal: bool = False,
        console_size: ConsoleSize | tuple[int, int] | None = None,
        timeout_s: float | None = None,
    ) -> Process:
        """Start a further process and return it running.

        Args: timeout_s: as `exec`; it is stored: an engine that takes over sees to it too. Raises: as `exec`.
        """
        life = await self._engine.execs.start(
            self._entry,
            argv,
            stdin=stdin,
            env=env,
            workdir=workdir,
            user=user,
            terminal=terminal,
            console_size=console_size,
            timeout_s=timeout_s,
        )
        return Process(self._engine, self._entry, life)

    async def execs(self) -> list[Process]:
        """Its exec processes that run, and those that were started by `start_exec` and have ended, the oldest first.

        Also those of earlier engines; of the ended ones the last limits.EXECS_KEPT.
        """
        lives = self._entry.execs.values()
        return [Process(self._engine, self._entry, life) for life in lives if life.is_kept or not life.ended.is_set()]

    async def get_exec(self, id: str) -> Process:
        """An exec process by its id, also after its end, and of an earlier engine. Raises: NotFound."""
        life = self._entry.execs.get(id) if isinstance(id, str) else None
        if life is None:
            raise NotFound(f"container {self.name} has no process {id!r:.140}", container=self.id)
        return Process(self._engine, self._entry, life)

    def logs(
        self,
        *,
        after: Cursor | None = None,
        follow: bool = False,
        since: datetime.datetime | float | None = None,
        until: datetime.datetime | float | None = None,
        tail: int | None = None,
        streams: StreamName | Iterable[StreamName] = ("stdout", "stderr"),
        lines: bool = False,
    ) -> AsyncIterator[LogRecord]:
        """What it wrote, all runs, piece by piece as it was read from it; from `after` a record's cursor on.

        Args:
            follow: go on with what comes, until the container has ended for good.
            since, until: a datetime with a time zone, or Unix seconds; with `follow`, `until` ends it at that time.
            tail: the last so many records (lines, with `lines`) of those, and then what comes.
            lines: each record is one line with its newline; one without is `partial`. Bytes are what they were.

        Raises: InvalidSpec.
        """
        query = log_query(after=after, follow=follow, since=since, until=until, tail=tail, streams=streams, lines=lines)
        return self._entry.log.select(query)

    @property
    def log_state(self) -> LogState:
        """Whether its output waits or is dropped, how much of it was, and how its sinks are doing."""
        feeds = self._entry.feeds
        return self._entry.log.state(feeds.states if feeds is not None else ())

    async def remove(self, *, force: bool = False) -> None:
        """Take it away with all that it wrote. Raises: InvalidState if it runs, unless `force`, which kills it."""
        await self._engine.removal.remove(self._entry, force=force)

    def __repr__(self) -> str:
        return f"<Container {self.name} ({self.id[:12]}) {self.status}>"


class Process:
    """One exec process, made by `Container.start_exec`."""

    def __init__(self, engine: Engine, entry: Entry, life: ExecEntry) -> None:
        self._engine = engine
        self._entry = entry
        self._life = life

    @property
    def id(self) -> str:
        """Unique among the execs of its container."""
        return self._life.name

    @property
    def argv(self) -> Sequence[str]:
        """Its command; empty where the engine that started it was killed before it could write that down."""
        return self._life.record.argv

    @property
    def status(self) -> Status:
        """`running` or `exited`. In a paused container it is still running, and stands still."""
        return Status.RUNNING if self._life.exit is None else Status.EXITED

    @property
    def started_at(self) -> float | None:
        """When it began, Unix time in seconds; None until that is written down."""
        return self._life.record.started_at

    @property
    def pid(self) -> int:
        """The host's number; of one that has ended, the one that it had."""
        return self._life.pid

    @property
    def exit(self) -> ExitRecord | None:
        """How it ended; None while it runs."""
        return self._life.exit

    @property
    def stdin(self) -> StdinWriter:
        """Raises: InvalidState if it was started without `stdin=True`."""
        return self._life.require_stdin()

    @property
    def stdout(self) -> LogStream:
        """Its output from the first byte; with a terminal, all of it.

        Raises: InvalidState if it had ended before this engine came: `logs` has it then.
        """
        return self._life.output(1)

    @property
    def stderr(self) -> LogStream:
        """As `stdout`. Raises: InvalidState with a terminal."""
        return self._life.output(2)

    def logs(
        self,
        *,
        after: Cursor | None = None,
        follow: bool = False,
        since: datetime.datetime | float | None = None,
        until: datetime.datetime | float | None = None,
        tail: int | None = None,
        streams: StreamName | Iterable[StreamName] = ("stdout", "stderr"),
        lines: bool = False,
    ) -> AsyncIterator[LogRecord]:
        """What it wrote, for who comes back, or comes later than others; the arguments are those of `Container.logs`.

        Raises: InvalidSpec.
        """
        query = log_query(after=after, follow=follow, since=since, until=until, tail=tail, streams=streams, lines=lines)
        return self._life.log.select(query)

    async def wait(self) -> ExitRecord:
        """How it ended, once it has."""
        return await self._life.wait_exit()

    async def kill(self, signal: int | str = SIGKILL) -> None:
        """Deliver one signal to it; KILL ends all that it has started as well. Not running is not an error."""
        await self._engine.execs.signal(self._entry, self._life, signal_number(signal))

    async def resize(self, *, height: int, width: int) -> None:
        """Set its terminal's size in cells. Raises: InvalidState without a terminal."""
        await self._engine.client_of(self._entry).resize(
            self._entry.record.id, self._life.name, height=height, width=width
        )

    def __repr__(self) -> str:
        return f"<Process {self.id} of {self._entry.record.name}: {self.exit or 'running'}>"
