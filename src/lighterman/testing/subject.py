"""What the checks of a runtime are made on: a runtime, its containers, and how their answers are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from lighterman.clock import Clock, SystemClock
from lighterman.errors import (
    AlreadyClosed,
    AlreadyStopped,
    LightermanError,
    OperationPending,
)
from lighterman.runtimes.base import ComputeProcess, ComputeSystem, ReadPipe, Runtime, WritePipe
from lighterman.spec import ExitCode, ProcessConfig, Spec

__all__ = [
    "PROGRAMS",
    "Box",
    "MakeExec",
    "MakeSpec",
    "Subject",
    "all_of",
    "box_of",
    "ended",
    "must_raise",
    "read_until",
    "stdin_of",
    "stdout_of",
    "was_killed",
]

T = TypeVar("T")

PROGRAMS: dict[str, tuple[str, ...]] = {
    "exit 3": ("sh", "-c", "exit 3"),
    "exit 0": ("true",),
    "both": ("sh", "-c", "echo out; echo err >&2"),
    "cat": ("cat",),
    "sleep": ("sleep", "1000"),
    "trap": ("sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"),
    "size": ("sh", "-c", "while :; do stty size; sleep 0.05; done"),
    "grandchild": ("sh", "-c", "sleep 1000 & echo before"),
    "missing": ("no-such-program",),
}


class MakeSpec(Protocol):
    """Makes what `Runtime.create` needs for a container whose init process runs `args`."""

    async def __call__(self, id: str, args: tuple[str, ...], *, stdin: bool, terminal: bool) -> Spec: ...


class MakeExec(Protocol):
    """Makes an exec process of a container that was made with `spec`."""

    async def __call__(self, spec: Spec, args: tuple[str, ...], *, stdin: bool, terminal: bool) -> ProcessConfig: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """A runtime under test, and the clock that its programs run on."""

    runtime: Runtime
    make_spec: MakeSpec
    make_exec: MakeExec
    clock: Clock = field(default_factory=SystemClock)

    async def until(self, condition: Callable[[], Awaitable[T]], what: str) -> T:
        """Poll until `condition` gives something true."""
        while not (value := await condition()):
            await self.clock.sleep(0.02)
        assert value, what
        return value


class Box:
    """One container of a check."""

    def __init__(self, subject: Subject, id: str, spec: Spec, system: ComputeSystem) -> None:
        self.subject = subject
        self.id = id
        self.spec = spec
        self.system = system
        self.processes: list[ComputeProcess] = []

    async def start(self) -> ComputeProcess:
        await self.system.start()
        init = await self.system.create_process(self.spec.process)
        self.processes.append(init)
        return init

    async def exec(self, name: str, program: str, *, stdin: bool = False, terminal: bool = False) -> ComputeProcess:
        config = await self.subject.make_exec(self.spec, PROGRAMS[program], stdin=stdin, terminal=terminal)
        process = await self.system.create_process(config, exec_id=name)
        self.processes.append(process)
        return process

    async def end(self) -> None:
        """End it as the lifecycle does: terminate, wait, close; each may have been done by the check."""
        with contextlib.suppress(AlreadyStopped, AlreadyClosed, OperationPending):
            await self.system.terminate()
        if self.processes:
            with contextlib.suppress(AlreadyStopped, AlreadyClosed):
                await self.system.wait()
        for process in self.processes:
            await process.wait()
            with contextlib.suppress(AlreadyClosed):
                await process.close()
            await process.forget()
        with contextlib.suppress(AlreadyClosed):
            await self.system.close()


@asynccontextmanager
async def box_of(
    subject: Subject, program: str, *, id: str = "conformance", stdin: bool = False, terminal: bool = False
) -> AsyncIterator[Box]:
    """A container that is to run one of PROGRAMS, ended when the check is over."""
    spec = await subject.make_spec(id, PROGRAMS[program], stdin=stdin, terminal=terminal)
    box = Box(subject, id, spec, await subject.runtime.create(id, spec))
    try:
        yield box
    finally:
        await box.end()


async def ended(process: ComputeProcess) -> ExitCode:
    """How it ended, once it has."""
    await process.wait()
    return await process.exit_code()


def was_killed(subject: Subject, code: ExitCode) -> bool:
    """By signal 9; where there are no signals, with whatever code the platform gives what it ends by force."""
    if subject.runtime.features().signals:
        return (code.code, code.signal) == (137, 9)
    return code.code != 0


async def stdout_of(process: ComputeProcess) -> ReadPipe:
    """Every process has one."""
    stdout = (await process.stdio()).stdout
    assert stdout is not None, "a process has a stdout"
    return stdout


async def stdin_of(process: ComputeProcess) -> WritePipe:
    """For one that was made with stdin."""
    stdin = (await process.stdio()).stdin
    assert stdin is not None, "a process that asked for stdin has it"
    return stdin


async def all_of(pipe: ReadPipe | None) -> bytes:
    """Up to its end."""
    assert pipe is not None
    got = b""
    while data := await pipe.read(65536):
        got += data
    return got


async def read_until(pipe: ReadPipe, wanted: bytes) -> bytes:
    """What came until `wanted` was in it."""
    got = b""
    while wanted not in got:
        data = await pipe.read(65536)
        assert data, f"the stream ended at {got!r} before {wanted!r}"
        got += data
    return got


async def must_raise(kind: type[LightermanError] | tuple[type[LightermanError], ...], asked: Awaitable[object]) -> None:
    """Raises: AssertionError with the answer, if there is one."""
    try:
        result = await asked
    except kind:
        return
    raise AssertionError(f"gave {result!r} instead of raising {kind}")
