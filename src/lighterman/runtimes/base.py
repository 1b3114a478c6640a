"""The ports that every runtime implements (specs: one Protocol each for the runtime, a compute system, a process).

All methods that may wait are async; all errors come from `lighterman.errors`. A runtime that lacks an operation
raises `NotSupported` that names runtime and operation, and `features()` says so beforehand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from lighterman.spec import (
    ConsoleSize,
    ExitCode,
    ProcessConfig,
    ProcessSummary,
    Resources,
    Spec,
    Statistics,
)

__all__ = [
    "SIGKILL",
    "ComputeProcess",
    "ComputeSystem",
    "CreateOption",
    "Features",
    "KnownExec",
    "OomCounters",
    "ReadPipe",
    "Runtime",
    "RuntimeVersion",
    "Stdio",
    "WritePipe",
]

SIGKILL = 9  # the number that means "end it by force" everywhere; Python's `signal` has no such name on Windows


class CreateOption(msgspec.Struct, frozen=True):
    """Base of the options of `create` (`runtimes.options` has them); a runtime rejects those that it can't honour."""


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime can do; asked beforehand instead of finding out by an error."""

    signals: bool = True
    pause: bool = True
    update_resources: bool = True
    statistics: bool = True
    checkpoint: bool = False
    reattach: bool = True
    pending_updates: bool = False
    create_options: frozenset[str] = frozenset()


class RuntimeVersion(msgspec.Struct, frozen=True, kw_only=True):
    """Which runtime this is, and why it was picked."""

    name: str
    version: str
    path: str | None = None
    reason: str = ""


class OomCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What the whole cgroup of one compute system had counted at its end; None where the platform counts nothing.

    Attributes: oom_kills: processes that the kernel killed for memory.
    """

    oom_kills: int | None = None
    memory_peak_bytes: int | None = None
    cpu_ns: int | None = None


class ReadPipe(Protocol):
    """The reading end of a process's stdout, stderr or terminal."""

    async def read(self, max_bytes: int) -> bytes:
        """Up to `max_bytes` as soon as there are any; `b""` at the end of the stream. Cancelled: no byte is lost.

        Raises: BrokenPipe if the runtime's side vanished without an end.
        """

    def buffered(self) -> int:
        """How many bytes could be read right now without waiting."""

    def fileno(self) -> int:
        """The descriptor. Raises: NotSupported where there is none, AlreadyClosed."""

    def detach(self) -> int:
        """Give the descriptor away: the caller closes it. Raises: NotSupported, AlreadyClosed."""

    def detach_through(self) -> tuple[int, int]:
        """Give away a pipe (read end, write end) that outlives us, for moving a terminal's output without loss.

        Raises: NotSupported where there is none: no terminal, no keeper.
        """

    async def close(self) -> None:
        """Close it; again is nothing. A waiting `read` returns `b""`."""


class WritePipe(Protocol):
    """The writing end of a process's stdin or terminal."""

    async def write(self, data: bytes) -> None:
        """Write all of `data`, waiting while the process does not read. Raises: BrokenPipe if nobody can read it."""

    def fileno(self) -> int:
        """The descriptor. Raises: NotSupported, AlreadyClosed."""

    def detach(self) -> int:
        """Give the descriptor away: the caller closes it. Raises: NotSupported, AlreadyClosed."""

    async def close(self) -> None:
        """Close our end; again is nothing. (`ComputeProcess.close_stdin` tells the runtime as well.)"""


class Stdio(msgspec.Struct, frozen=True):
    """Our ends. With a terminal stderr is None; for a servicing process all are."""

    stdin: WritePipe | None
    stdout: ReadPipe | None
    stderr: ReadPipe | None


class KnownExec(msgspec.Struct, frozen=True):
    """An exec process as an earlier engine has written it down."""

    name: str
    pid: int
    start_time: int | None


class ComputeProcess(Protocol):
    """One process in a compute system."""

    @property
    def pid(self) -> int:
        """The platform's number of it. Unique only together with the start time: for showing."""

    @property
    def start_time(self) -> int | None:
        """With `pid` it is this process for ever: clock ticks after boot; None where the platform has no such thing."""

    @property
    def has_terminal(self) -> bool:
        """Whether its stdio is that of a terminal."""

    def started(self) -> tuple[float, float] | None:
        """When: seconds of CLOCK_MONOTONIC, and Unix time; None where the runtime knows no better than its caller."""

    async def stdio(self) -> Stdio:
        """Our ends of its streams; the same object each time."""

    async def wait(self) -> None:
        """Return when it has ended. Raises only when it is gone. Cancelled: the process is left as it is."""

    async def exit_code(self) -> ExitCode:
        """How it ended; valid after `wait`. Raises: InvalidState before, NotFound if it can't be known."""

    async def kill(self, signal: int) -> None:
        """Deliver one signal. Raises: AlreadyStopped, NotSupported (another than KILL where there are no signals)."""

    async def resize_console(self, height: int, width: int) -> None:
        """Set the terminal's size. Raises: InvalidState without a terminal, AlreadyStopped."""

    async def close_stdin(self) -> None:
        """Let the process read end of file: whoever else holds a copy of the write end closes it.

        Raises: NotFound, AlreadyClosed, InvalidState where there is nothing to close.
        """

    async def close(self) -> None:
        """Give back the handle and the pipes that were not detached; never ends the process.

        Raises: AlreadyClosed the second time.
        """

    async def forget(self) -> None:
        """Its end is in safety with whoever was told of it, so nobody need keep it; after `close`, and any number."""


class ComputeSystem(Protocol):
    """What a runtime manages under one container id; it lives for one run."""

    @property
    def id(self) -> str: ...

    async def start(self) -> None:
        """Boot it. Nothing of the user's runs yet."""

    async def create_process(self, process: ProcessConfig, *, exec_id: str | None = None) -> ComputeProcess:
        """Start a process: the first call makes the init process (`exec_id` None), later ones exec.

        Raises: CommandNotFound, CommandNotExecutable, RuntimeFailed, AlreadyStopped.
        """

    async def open_process(self, process_id: int | str) -> ComputeProcess:
        """Re-attach to a process by pid or exec id; `"init"` is the first one. Raises: NotFound."""

    async def exec_ids(self) -> Sequence[str]:
        """Of the exec processes that `open_process` would find."""

    async def adopt_exec(self, known: KnownExec) -> ComputeProcess:
        """Re-attach to an exec of which only that is left, without its streams; one that has ended unseen says so.

        Raises: NotSupported.
        """

    async def shutdown(self) -> None:
        """Ask it to end. Raises: OperationPending (wait for it), AlreadyStopped."""

    async def terminate(self) -> None:
        """End all of it. Valid at any moment and twice. Raises: OperationPending (wait for it), AlreadyStopped."""

    async def wait(self) -> None:
        """Return when the compute system has ended. Deadlines are the caller's, on its own clock."""

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def is_paused(self) -> bool | None:
        """Whether it is paused now; None where that can't be asked."""

    async def statistics(self) -> Statistics: ...
    async def process_list(self) -> Sequence[ProcessSummary]: ...

    async def pids(self) -> Sequence[int]:
        """Of every process in it, exec'd ones included."""

    async def oom_counters(self) -> OomCounters | None:
        """Read while the cgroup exists, after the init's end too; None where the platform counts nothing."""

    def watch_oom(self, told: int, tell: Callable[[int], None]) -> None:
        """From now on, call `tell` with how many of its processes were killed for memory, if more than were `told`.

        Each time that it has grown, while the init process lives on, until `close`; nothing where the platform counts
        nothing. For who has just started or opened it; called by the loop.
        """

    async def stuck(self) -> str | None:
        """Which of its processes not even SIGKILL ends, and where they hang, for showing; None where none is seen."""

    async def has_pending_updates(self) -> bool: ...
    async def update_resources(self, resources: Resources) -> None: ...

    async def checkpoint(self, name: str, directory: str, *, leave_running: bool) -> None:
        """Write it below `directory`, into `options.unfinished(name)`, which is there; renamed `name` once it is whole.

        That is before the container ends by it: whoever dies in between, there is a checkpoint or a container. A
        runtime that writes no files leaves the renaming to who called.
        """

    async def restore(self, name: str, directory: str) -> ComputeProcess:
        """Continue from a checkpoint in place of the first `create_process`."""

    def begun(self) -> Callable[[], Awaitable[None]] | None:
        """After `restore`, in the moment in which its start is told: it is not undone any more.

        Returns: what is to be called once whoever was told has that in safety; None for nothing.
        """

    async def close(self) -> None:
        """Give it back and queue the removal of what the runtime keeps of it. Raises: AlreadyClosed the second time."""


class Runtime(Protocol):
    """One way of running containers on this host."""

    @property
    def name(self) -> str: ...

    async def create(self, id: str, spec: Spec, options: Sequence[CreateOption] = ()) -> ComputeSystem:
        """Raises: AlreadyExists, InvalidSpec, NotSupported (an option), RuntimeFailed; then nothing is left of it."""

    async def open(self, id: str) -> ComputeSystem:
        """Re-attach to a compute system that outlived its engine. Raises: NotFound, NotSupported."""

    async def list(self) -> Sequence[str]:
        """Ids of the compute systems that exist."""

    async def version(self) -> RuntimeVersion: ...
    def features(self) -> Features: ...


def console_size(height: int, width: int) -> ConsoleSize:
    """Checked size. Raises: InvalidSpec outside 1 to 65535 (the kernel's `struct winsize` has 16 bits)."""
    from lighterman.arguments import shown
    from lighterman.errors import InvalidSpec

    for name, value in (("height", height), ("width", width)):
        if type(value) is not int or not 1 <= value <= 65535:
            raise InvalidSpec(f"console {name} {shown(value)}: must be 1 to 65535 cells")
    return ConsoleSize(height=height, width=width)
