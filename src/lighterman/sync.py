"""The blocking face: the same engine for programs without asyncio.

```python
with lighterman.sync.Engine() as engine:
    done = engine.run("busybox", ["sh", "-c", "echo hi; exit 3"])
```

Each engine has one thread with an event loop, from its start to its close; no call starts another. All objects here may
be used from several threads at a time. Ctrl-C in a waiting call cancels it, waits until what it had begun is undone,
and raises KeyboardInterrupt; a second one does not wait for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack, overload

from lighterman import container as waiting
from lighterman import engine as engines
from lighterman import limits, stdin
from lighterman.asking import Options
from lighterman.errors import InvalidState
from lighterman.journal import Event
from lighterman.lease import ConnectionLease, Lease
from lighterman.lifecycle.restart import RestartRule
from lighterman.lifecycle.status import Status
from lighterman.logs.reader import Cursor, LogRecord, StreamName
from lighterman.logs.state import LogState
from lighterman.logs.streams import LogStream
from lighterman.loop_thread import LoopThread
from lighterman.results import Result
from lighterman.runtimes.base import SIGKILL, RuntimeVersion
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

if TYPE_CHECKING:
    import datetime

    from lighterman.lifecycle.health import HealthReport

__all__ = ["Container", "Engine", "OutputReader", "Process", "StdinWriter"]

T = TypeVar("T")


class Engine:
    """As `lighterman.Engine`; arguments, results and errors are described there."""

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        runtime: str | None = None,
        restarts_per_s: float | None = None,
    ) -> None:
        self._engine = engines.Engine(root, runtime=runtime, restarts_per_s=restarts_per_s)
        self._loop = LoopThread()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start its thread, take the root, find a runtime, connect to the keeper, take up what lived on."""
        self._loop.start()
        try:
            self._loop.call(self._engine.start())
        except BaseException:
            self._loop.stop()
            raise

    def close(self) -> None:
        """End and remove the containers that do not live on, give everything back. Again is nothing."""
        try:
            self._loop.call(self._engine.close())
        except InvalidState:
            return  # it was closed before, or by another thread meanwhile
        finally:
            self._loop.stop()

    def version(self) -> RuntimeVersion:
        """Which runtime is used by default, and why."""
        return self._loop.call(self._engine.version())

    def run(
        self,
        image: str | None = None,
        argv: Sequence[str] = (),
        *,
        stdin: bytes | None = None,
        timeout_s: float | None = None,
        max_output: int = limits.MAX_OUTPUT_BYTES,
        name: str | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Run a container to its end, and remove it."""
        return self._loop.call(
            self._engine.run(image, argv, stdin=stdin, timeout_s=timeout_s, max_output=max_output, name=name, **options)
        )

    @contextmanager
    def container(
        self,
        image: str | None = None,
        argv: Sequence[str] = (),
        *,
        stdin: bool = False,
        name: str | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Container]:
        """A container that runs for the time of a block: created and started, at the end killed and removed."""
        made = self._engine.container(image, argv, stdin=stdin, name=name, **options)
        container = Container(self._loop, self._loop.call(_enter(made)))
        try:
            yield container
        finally:
            self._loop.call(_leave(made))

    def create(
        self,
        image: str | None = None,
        argv: Sequence[str] = (),
        *,
        stdin: bool = False,
        name: str | None = None,
        lease: str | int | ConnectionLease | None = "process",
        checkpoint: str | None = None,
        **options: Unpack[Options],
    ) -> Container:
        """Make a container without starting it."""
        made = self._loop.call(
            self._engine.create(image, argv, stdin=stdin, name=name, lease=lease, checkpoint=checkpoint, **options)
        )
        return Container(self._loop, made)

    def get(self, name_or_id: str) -> Container:
        """By name, id, or an unambiguous beginning of an id."""
        return Container(self._loop, self._loop.call(self._engine.get(name_or_id)))

    def containers(self) -> list[Container]:
        """All of them, the oldest first."""
        return [Container(self._loop, one) for one in self._loop.call(self._engine.containers())]

    def events(
        self, *, after: int | None = None, kinds: Iterable[str] = (), container: str | None = None, follow: bool = True
    ) -> Iterator[Event]:
        """What happens to the containers of this root, in order."""
        return self._loop.iterate(
            lambda: self._engine.events(after=after, kinds=kinds, container=container, follow=follow)
        )


class Container:
    """As `lighterman.Container`."""

    def __init__(self, loop: LoopThread, container: waiting.Container) -> None:
        self._loop = loop
        self._container = container

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self._container.id

    @property
    def name(self) -> str:
        """The one given, or made from the id."""
        return self._container.name

    @property
    def spec(self) -> ContainerSpec:
        """What it was asked to be, changed limits and policies included; of functions nothing."""
        return self._container.spec

    @property
    def created_at(self) -> float:
        """Unix time in seconds."""
        return self._container.created_at

    @property
    def started_at(self) -> float | None:
        """When its last run began, Unix time in seconds; None before the first."""
        return self._container.started_at

    @property
    def status(self) -> Status:
        """What was last observed."""
        return self._container.status

    @property
    def pid(self) -> int:
        """The host's number of the init process; 0 where none runs."""
        return self._container.pid

    @property
    def generation(self) -> int:
        """The number of the run that is under way or was last; 0 before the first."""
        return self._container.generation

    @property
    def runtime(self) -> str | None:
        """Which one that run uses; None before the first."""
        return self._container.runtime

    @property
    def exit(self) -> ExitRecord | None:
        """How the last run ended; None while one is running, and before the first."""
        return self._container.exit

    @property
    def lease(self) -> Lease:
        """What ends it if nobody does."""
        return self._container.lease

    @property
    def timings(self) -> Timings:
        """Where the time of the last run went, from the request to start it to its end; empty until then."""
        return self._container.timings

    @property
    def stdin(self) -> StdinWriter:
        """Raises: InvalidState if it was made without `stdin=True`, or never started."""
        return StdinWriter(self._loop, self._container.stdin)

    @property
    def stdout(self) -> OutputReader:
        """The output of the run that is under way or was last, from its first byte. With a terminal, all of it."""
        return OutputReader(self._loop, self._loop.call(_output(self._container, 1)))

    @property
    def stderr(self) -> OutputReader:
        """As `stdout`. Raises: InvalidState with a terminal."""
        return OutputReader(self._loop, self._loop.call(_output(self._container, 2)))

    def start(self, *, checkpoint: str | None = None) -> None:
        """Start it, or let it go on from one of its checkpoints. Returns when its program runs."""
        self._loop.call(self._container.start(checkpoint=checkpoint))

    def checkpoint(self, name: str, *, leave_running: bool = False) -> None:
        """Save what its processes are doing, and its own files, under a name."""
        self._loop.call(self._container.checkpoint(name, leave_running=leave_running))

    def checkpoints(self) -> Sequence[str]:
        """The names of its checkpoints, sorted."""
        return self._loop.call(self._container.checkpoints())

    def delete_checkpoint(self, name: str) -> None:
        """Raises: NotFound, InvalidSpec."""
        self._loop.call(self._container.delete_checkpoint(name))

    def stop(self, *, grace_s: float = limits.STOP_GRACE_S) -> ExitRecord | None:
        """Ask it to end with its stop signal, kill it after `grace_s` seconds."""
        return self._loop.call(self._container.stop(grace_s=grace_s))

    def kill(self, signal: int | str = SIGKILL) -> None:
        """Deliver one signal to the init process; KILL ends all processes. Not running is not an error.

        KILL and the stop signal ask for its end, as `stop` does: no policy starts it again, `exit.reason == "kill"`.
        """
        self._loop.call(self._container.kill(signal))

    def renew(self, ttl_s: float | None = None, *, lease: ConnectionLease | None = None) -> None:
        """Let it run for `ttl_s` seconds from now; before its start: from then."""
        self._loop.call(self._container.renew(ttl_s, lease=lease))

    def restart(self, *, grace_s: float = limits.STOP_GRACE_S) -> None:
        """Stop it, if it runs, and start it."""
        self._loop.call(self._container.restart(grace_s=grace_s))

    @property
    def health(self) -> HealthReport | None:
        """Of the run that is under way or was last; None without a check or before a run."""
        return self._container.health

    @property
    def is_ready(self) -> bool:
        """Whether the run that is under way has been found to be ready."""
        return self._container.is_ready

    @property
    def status_text(self) -> str | None:
        """What it said of itself last by sd_notify."""
        return self._container.status_text

    @overload
    def wait(self, *, until: Literal["exit"] = "exit", timeout_s: float | None = None) -> ExitRecord: ...

    @overload
    def wait(self, *, until: Literal["healthy", "unhealthy", "ready"], timeout_s: float | None = None) -> None: ...

    def wait(
        self, *, until: Literal["exit", "healthy", "unhealthy", "ready"] = "exit", timeout_s: float | None = None
    ) -> ExitRecord | None:
        """How it ended, once it has; or return None once it is healthy, unhealthy, ready."""
        if until == "exit":
            return self._loop.call(self._container.wait(timeout_s=timeout_s))
        return self._loop.call(self._container.wait(until=until, timeout_s=timeout_s))

    def pause(self) -> None:
        """Freeze all its processes."""
        self._loop.call(self._container.pause())

    def resume(self) -> None:
        """Thaw them."""
        self._loop.call(self._container.resume())

    def stats(self) -> Statistics:
        """Counters of its cgroup, now."""
        return self._loop.call(self._container.stats())

    def top(self) -> Sequence[ProcessSummary]:
        """Its processes."""
        return self._loop.call(self._container.top())

    def update(self, resources: Resources) -> None:
        """Change its limits while it runs; less memory than it uses is refused, or kills: see `Container.update`."""
        self._loop.call(self._container.update(resources))

    def set_restart_policy(self, policy: str | RestartPolicy | RestartRule) -> None:
        """Change when it is started again; counts from the next end on."""
        self._loop.call(self._container.set_restart_policy(policy))

    def resize(self, *, height: int, width: int) -> None:
        """Set its terminal's size in cells."""
        self._loop.call(self._container.resize(height=height, width=width))

    def exec(
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
        """Run a further process to its end. A timeout kills it, and shows as `exit.reason == "timeout"`."""
        return self._loop.call(
            self._container.exec(
                argv,
                stdin=stdin,
                env=env,
                workdir=workdir,
                user=user,
                timeout_s=timeout_s,
                max_output=max_output,
            )
        )

    def start_exec(
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
        """Start a further process and return it running."""
        started = self._loop.call(
            self._container.start_exec(
                argv,
                stdin=stdin,
                env=env,
                workdir=workdir,
                user=user,
                terminal=terminal,
                console_size=console_size,
                timeout_s=timeout_s,
            )
        )
        return Process(self._loop, started)

    def execs(self) -> list[Process]:
        """Its exec processes that run, and those that were started by `start_exec` and have ended."""
        return [Process(self._loop, one) for one in self._loop.call(self._container.execs())]

    def get_exec(self, id: str) -> Process:
        """An exec process by its id; also one that an earlier engine has started. Raises: NotFound."""
        return Process(self._loop, self._loop.call(self._container.get_exec(id)))

    @property
    def log_state(self) -> LogState:
        """How its log fares: whether it is blocked or drops, and how much was lost."""
        return self._container.log_state

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
    ) -> Iterator[LogRecord]:
        """What it wrote, all runs; see the async face's `logs` for the arguments."""
        return self._loop.iterate(
            lambda: self._container.logs(
                after=after, follow=follow, since=since, until=until, tail=tail, streams=streams, lines=lines
            )
        )

    def remove(self, *, force: bool = False) -> None:
        """Take it away with all that it wrote. Raises: InvalidState if it runs, unless `force`, which kills it."""
        self._loop.call(self._container.remove(force=force))

    def __repr__(self) -> str:
        return repr(self._container)


class Process:
    """As `lighterman.Process`."""

    def __init__(self, loop: LoopThread, process: waiting.Process) -> None:
        self._loop = loop
        self._process = process

    @property
    def id(self) -> str:
        """Unique among the execs of its container."""
        return self._process.id

    @property
    def argv(self) -> Sequence[str]:
        """Its command; empty where nobody knows it any more."""
        return self._process.argv

    @property
    def status(self) -> Status:
        """`running` or `exited`."""
        return self._process.status

    @property
    def started_at(self) -> float | None:
        """When it began, Unix time in seconds; None until that is written down."""
        return self._process.started_at

    @property
    def pid(self) -> int:
        """The host's number."""
        return self._process.pid

    @property
    def exit(self) -> ExitRecord | None:
        """How it ended; None while it runs."""
        return self._process.exit

    @property
    def stdin(self) -> StdinWriter:
        """Raises: InvalidState if it was started without `stdin=True`."""
        return StdinWriter(self._loop, self._process.stdin)

    @property
    def stdout(self) -> OutputReader:
        """Its output from the first byte; with a terminal, all of it."""
        return OutputReader(self._loop, self._loop.call(_output(self._process, 1)))

    @property
    def stderr(self) -> OutputReader:
        """As `stdout`. Raises: InvalidState with a terminal."""
        return OutputReader(self._loop, self._loop.call(_output(self._process, 2)))

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
    ) -> Iterator[LogRecord]:
        """What it wrote; see the async face's `logs` for the arguments."""
        return self._loop.iterate(
            lambda: self._process.logs(
                after=after, follow=follow, since=since, until=until, tail=tail, streams=streams, lines=lines
            )
        )

    def wait(self) -> ExitRecord:
        """How it ended, once it has."""
        return self._loop.call(self._process.wait())

    def kill(self, signal: int | str = SIGKILL) -> None:
        """Deliver one signal to it. Not running is not an error."""
        self._loop.call(self._process.kill(signal))

    def resize(self, *, height: int, width: int) -> None:
        """Set its terminal's size in cells."""
        self._loop.call(self._process.resize(height=height, width=width))

    def __repr__(self) -> str:
        return repr(self._process)


class StdinWriter:
    """A process's stdin."""

    def __init__(self, loop: LoopThread, writer: stdin.StdinWriter) -> None:
        self._loop = loop
        self._writer = writer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write `data`; waits while much is queued.

        Raises: BrokenPipe if the process has closed its stdin, or ended; AlreadyClosed; TypeError for text.
        """
        self._loop.call(self._write(data))

    async def _write(self, data: bytes | bytearray | memoryview) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._writer.is_closing()

    def write_eof(self) -> None:
        """After what was written, the process reads end of file; its output goes on. Again is nothing."""
        self._loop.call(self._write_eof())

    async def _write_eof(self) -> None:
        self._writer.write_eof()

    def close(self) -> None:
        """The same as `write_eof`, for who expects that name."""
        self.write_eof()

    def wait_closed(self) -> None:
        """Return when all was written and the process reads end of file. Raises: BrokenPipe if it read less."""
        self._loop.call(self._writer.wait_closed())


class OutputReader:
    """stdout or stderr as bytes; iterating gives lines. Its place is that of all readers of the same stream."""

    def __init__(self, loop: LoopThread, stream: LogStream) -> None:
        self._loop = loop
        self._stream = stream

    @property
    def lost(self) -> int:
        """How many bytes were rotated away before reading began."""
        return self._stream.lost

    def at_eof(self) -> bool:
        """Whether everything has been read and nothing will come."""
        return self._stream.at_eof()

    def read(self, n: int = -1) -> bytes:
        """Up to `n` bytes as soon as there are any, b"" at the end; with -1 everything up to the end."""
        return self._loop.call(self._stream.read(n))

    def readline(self) -> bytes:
        """The next line with its newline; b"" at the end."""
        return self._loop.call(self._stream.readline())

    def readexactly(self, n: int) -> bytes:
        """`n` bytes. Raises: asyncio.IncompleteReadError at the end, with what there was."""
        return self._loop.call(self._stream.readexactly(n))

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line


async def _enter(block: AbstractAsyncContextManager[T]) -> T:
    return await block.__aenter__()


async def _leave(block: AbstractAsyncContextManager[object]) -> None:
    await block.__aexit__(None, None, None)


async def _output(process: waiting.Container | waiting.Process, stream: int) -> LogStream:
    # On the loop: two threads that ask at the same time get the same one.
    return process.stdout if stream == 1 else process.stderr
