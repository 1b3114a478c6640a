"""What every runtime must do: checks of the ports alone, for the fake, each OCI runtime, HCS, and yours.

    async with subject_of_my_runtime() as subject:
        await check_runtime(subject)

The programs are argument vectors of a small Unix shell (`PROGRAMS`); a runtime in memory maps them to its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from lighterman.clock import Clock, SystemClock
from lighterman.errors import (
    AlreadyClosed,
    AlreadyExists,
    AlreadyStopped,
    CommandNotFound,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    OperationPending,
)
from lighterman.runtimes.base import ComputeProcess, ComputeSystem, CreateOption, ReadPipe, Runtime, WritePipe
from lighterman.runtimes.options import Credentials, Flush, HyperVIsolation, Layers, NetworkEndpoints, Servicing
from lighterman.spec import ExitCode, ProcessConfig, Resources, Spec

__all__ = ["CHECKS", "PROGRAMS", "ConformanceError", "Subject", "check_runtime"]

T = TypeVar("T")

LIMIT_S = 60.0  # for one check; a loaded host needs seconds, a hung runtime for ever

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


class ConformanceError(AssertionError):
    """Which checks failed, and why."""


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
async def _box(
    subject: Subject, program: str, *, id: str = "conformance", stdin: bool = False, terminal: bool = False
) -> AsyncIterator[Box]:
    spec = await subject.make_spec(id, PROGRAMS[program], stdin=stdin, terminal=terminal)
    box = Box(subject, id, spec, await subject.runtime.create(id, spec))
    try:
        yield box
    finally:
        await box.end()


async def _ended(process: ComputeProcess) -> ExitCode:
    await process.wait()
    return await process.exit_code()


def _was_killed(subject: Subject, code: ExitCode) -> bool:
    """By signal 9; where there are no signals, with whatever code the platform gives what it ends by force."""
    if subject.runtime.features().signals:
        return (code.code, code.signal) == (137, 9)
    return code.code != 0


async def _stdout(process: ComputeProcess) -> ReadPipe:
    stdout = (await process.stdio()).stdout
    assert stdout is not None, "a process has a stdout"
    return stdout


async def _stdin(process: ComputeProcess) -> WritePipe:
    stdin = (await process.stdio()).stdin
    assert stdin is not None, "a process that asked for stdin has it"
    return stdin


async def _all_of(pipe: ReadPipe | None) -> bytes:
    assert pipe is not None
    got = b""
    while data := await pipe.read(65536):
        got += data
    return got


async def _read_until(pipe: ReadPipe, wanted: bytes) -> bytes:
    got = b""
    while wanted not in got:
        data = await pipe.read(65536)
        assert data, f"the stream ended at {got!r} before {wanted!r}"
        got += data
    return got


async def _must_raise(
    kind: type[LightermanError] | tuple[type[LightermanError], ...], asked: Awaitable[object]
) -> None:
    try:
        result = await asked
    except kind:
        return
    raise AssertionError(f"gave {result!r} instead of raising {kind}")


# ---- the checks --------------------------------------------------------------------------------------------------


async def _exit_code(subject: Subject) -> None:
    async with _box(subject, "exit 3") as box:
        code = await _ended(await box.start())
        assert (code.code, code.signal) == (3, None), code


async def _exit_code_before_the_end(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await _must_raise(InvalidState, (await box.start()).exit_code())


async def _exit_code_again(subject: Subject) -> None:
    async with _box(subject, "exit 3") as box:
        process = await box.start()
        assert await _ended(process) == await _ended(process)


async def _output(subject: Subject) -> None:
    async with _box(subject, "both") as box:
        stdio = await (await box.start()).stdio()
        assert await _all_of(stdio.stdout) == b"out\n"
        assert await _all_of(stdio.stderr) == b"err\n"


async def _stdio_is_the_same_each_time(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        process = await box.start()
        assert await process.stdio() is await process.stdio()


async def _half_close(subject: Subject) -> None:
    async with _box(subject, "cat", stdin=True) as box:
        process = await box.start()
        stdin, stdout = await _stdin(process), await _stdout(process)
        await stdin.write(b"hello")
        assert await _read_until(stdout, b"hello") == b"hello"
        await stdin.close()
        await process.close_stdin()
        assert await _all_of(stdout) == b""
        assert (await _ended(process)).code == 0


async def _binary(subject: Subject) -> None:
    sent = os.urandom(1 << 20)
    async with _box(subject, "cat", stdin=True) as box:
        process = await box.start()
        stdin = await _stdin(process)

        async def send() -> None:
            await stdin.write(sent)
            await stdin.close()
            await process.close_stdin()

        sending = asyncio.create_task(send())
        assert await _all_of(await _stdout(process)) == sent, "bytes changed on their way"
        await sending


async def _no_stdin(subject: Subject) -> None:
    async with _box(subject, "cat") as box:
        process = await box.start()
        stdin = (await process.stdio()).stdin
        if stdin is not None:
            await stdin.close()
            with contextlib.suppress(NotFound, AlreadyClosed, InvalidState):
                await process.close_stdin()
        assert (await _ended(process)).code == 0


async def _cancelled_read_loses_nothing(subject: Subject) -> None:
    async with _box(subject, "cat", stdin=True) as box:
        process = await box.start()
        stdin, stdout = await _stdin(process), await _stdout(process)
        reading = asyncio.create_task(stdout.read(100))
        await subject.clock.sleep(0.05)
        reading.cancel()
        await asyncio.wait([reading])
        await stdin.write(b"hello")
        assert await _read_until(stdout, b"hello") == b"hello"


async def _buffered_is_what_can_be_read(subject: Subject) -> None:
    async with _box(subject, "both") as box:
        process = await box.start()
        await process.wait()
        stdout = await _stdout(process)
        assert stdout.buffered() == 4
        assert await stdout.read(100) == b"out\n"
        assert stdout.buffered() == 0


async def _closing_a_pipe_wakes_its_reader(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        stdout = await _stdout(await box.start())
        reading = asyncio.create_task(stdout.read(100))
        await subject.clock.sleep(0.05)
        await stdout.close()
        assert await reading == b""
        await stdout.close()


async def _terminal(subject: Subject) -> None:
    async with _box(subject, "size", terminal=True) as box:
        process = await box.start()
        stdio = await process.stdio()
        assert stdio.stderr is None, "with a terminal there is no stderr"
        assert stdio.stdout is not None
        await process.resize_console(33, 99)
        await _read_until(stdio.stdout, b"33 99")


async def _resize_without_terminal(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await _must_raise(InvalidState, (await box.start()).resize_console(24, 80))


async def _signals(subject: Subject) -> None:
    async with _box(subject, "trap") as box:
        process = await box.start()
        await _read_until(await _stdout(process), b"ready")
        if not subject.runtime.features().signals:
            await _must_raise(NotSupported, process.kill(signals.SIGTERM))
            return
        await process.kill(signals.SIGTERM)
        assert (await _ended(process)).code == 5


async def _kill(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        process = await box.start()
        await process.kill(9)
        code = await _ended(process)
        assert _was_killed(subject, code), code


async def _kill_after_the_end(subject: Subject) -> None:
    async with _box(subject, "exit 0") as box:
        process = await box.start()
        await process.wait()
        await _must_raise(AlreadyStopped, process.kill(9))


async def _cancelled_wait_leaves_it_running(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        process = await box.start()
        waiting = asyncio.create_task(process.wait())
        await subject.clock.sleep(0.05)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert process.pid in await box.system.pids()


async def _exec(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await box.start()
        quick = await box.exec("x", "exit 3")
        assert (await _ended(quick)).code == 3
        loud = await box.exec("y", "both")
        stdio = await loud.stdio()
        assert (await _all_of(stdio.stdout), await _all_of(stdio.stderr)) == (b"out\n", b"err\n")
        cat = await box.exec("z", "cat", stdin=True)
        await (await _stdin(cat)).write(b"abc")
        assert await _read_until(await _stdout(cat), b"abc") == b"abc"
        assert "z" in await box.system.exec_ids()
        await cat.kill(9)
        assert _was_killed(subject, await _ended(cat))


async def _exec_name_in_use(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await box.start()
        await box.exec("x", "sleep")
        await _must_raise(AlreadyExists, box.exec("x", "sleep"))


async def _exec_after_the_end(subject: Subject) -> None:
    async with _box(subject, "exit 0") as box:
        await (await box.start()).wait()
        await _must_raise(AlreadyStopped, box.exec("x", "exit 0"))


async def _grandchild_of_an_exec_hides_no_exit(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await box.start()
        process = await box.exec("x", "grandchild")
        assert (await _ended(process)).code == 0
        assert await _read_until(await _stdout(process), b"before\n") == b"before\n"


async def _command_not_found(subject: Subject) -> None:
    async with _box(subject, "missing") as box:
        await _must_raise(CommandNotFound, box.start())
    async with _box(subject, "sleep") as box:
        await box.start()
        await _must_raise(CommandNotFound, box.exec("x", "missing"))


async def _pause_and_resume(subject: Subject) -> None:
    async with _box(subject, "cat", stdin=True) as box:
        process = await box.start()
        if not subject.runtime.features().pause:
            await _must_raise(NotSupported, box.system.pause())
            return
        stdin, stdout = await _stdin(process), await _stdout(process)
        await _must_raise(InvalidState, box.system.resume())
        await box.system.pause()
        await _must_raise(InvalidState, box.system.pause())
        await stdin.write(b"hello")
        reading = asyncio.create_task(_read_until(stdout, b"hello"))
        await subject.clock.sleep(0.3)
        assert not reading.done(), "what is paused writes nothing"
        await box.system.resume()
        assert await reading == b"hello"


async def _terminate_what_is_paused(subject: Subject) -> None:
    if not subject.runtime.features().pause:
        return
    async with _box(subject, "sleep") as box:
        process = await box.start()
        await box.system.pause()
        with contextlib.suppress(OperationPending):
            await box.system.terminate()
        # As the lifecycle does: a runtime may need the thaw, and may have done it.
        with contextlib.suppress(InvalidState, AlreadyStopped, NotFound):
            await box.system.resume()
        assert _was_killed(subject, await _ended(process))


async def _terminate_ends_all_of_it(subject: Subject) -> None:
    async with _box(subject, "trap") as box:
        init = await box.start()
        process = await box.exec("x", "sleep")
        with contextlib.suppress(OperationPending):
            await box.system.terminate()
        for each in (process, init):
            await each.wait()
        with contextlib.suppress(AlreadyStopped):
            await box.system.wait()
        await _must_raise(AlreadyStopped, box.system.terminate())


async def _terminate_twice_at_once(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        init = await box.start()
        results = await asyncio.gather(box.system.terminate(), box.system.terminate(), return_exceptions=True)
        assert all(result is None or isinstance(result, OperationPending | AlreadyStopped) for result in results)
        await init.wait()


async def _terminate_before_anything_runs(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await box.system.start()
        with contextlib.suppress(OperationPending, AlreadyStopped):
            await box.system.terminate()
        await _must_raise(LightermanError, box.system.create_process(box.spec.process))


async def _close_before_anything_runs(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await box.system.close()
    async with _box(subject, "exit 3") as box:
        assert (await _ended(await box.start())).code == 3


async def _shutdown_after_the_end(subject: Subject) -> None:
    async with _box(subject, "exit 0") as box:
        await (await box.start()).wait()
        with contextlib.suppress(AlreadyStopped, OperationPending):
            await box.system.shutdown()
        with contextlib.suppress(AlreadyStopped):
            await box.system.wait()


async def _close_twice(subject: Subject) -> None:
    async with _box(subject, "exit 0") as box:
        process = await box.start()
        await process.wait()
        await process.close()
        await _must_raise(AlreadyClosed, process.close())
        with contextlib.suppress(AlreadyStopped, OperationPending):
            await box.system.terminate()
        await box.system.close()
        await _must_raise(AlreadyClosed, box.system.close())


async def _same_id_again(subject: Subject) -> None:
    for _ in range(3):
        async with _box(subject, "exit 3") as box:
            assert (await _ended(await box.start())).code == 3


async def _id_in_use(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await box.start()
        await _must_raise(AlreadyExists, subject.runtime.create(box.id, box.spec))


async def _listed(subject: Subject) -> None:
    async with _box(subject, "sleep", id="conformance-listed") as box:
        await box.start()
        assert "conformance-listed" in await subject.runtime.list()

    async def is_gone() -> bool:
        return "conformance-listed" not in await subject.runtime.list()

    await subject.until(is_gone, "a closed compute system is no longer listed")


async def _open_unknown(subject: Subject) -> None:
    await _must_raise((NotFound, NotSupported), subject.runtime.open("conformance-nobody"))


async def _pids_and_processes(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        init = await box.start()
        process = await box.exec("x", "sleep")
        assert {init.pid, process.pid} <= set(await box.system.pids())
        assert {init.pid, process.pid} <= {each.pid for each in await box.system.process_list()}


async def _statistics(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await box.start()
        if not subject.runtime.features().statistics:
            await _must_raise(NotSupported, box.system.statistics())
            return
        assert (await box.system.statistics()).read_at > 0


async def _oom_counters(subject: Subject) -> None:
    async with _box(subject, "exit 0") as box:
        await (await box.start()).wait()
        counters = await box.system.oom_counters()
        assert counters is None or counters.oom_kills == 0


async def _pending_updates(subject: Subject) -> None:
    async with _box(subject, "exit 0") as box:
        await (await box.start()).wait()
        try:
            assert not await box.system.has_pending_updates()
        except NotSupported:
            assert not subject.runtime.features().pending_updates, "features() says that it can"


async def _update_resources(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await box.start()
        update = box.system.update_resources(Resources(pids_limit=50))
        if subject.runtime.features().update_resources:
            await update
        else:
            await _must_raise(NotSupported, update)


async def _denied_features_are_not_supported(subject: Subject) -> None:
    async with _box(subject, "sleep") as box:
        await box.start()
        if not subject.runtime.features().checkpoint:
            await _must_raise(NotSupported, box.system.checkpoint("one", "/nowhere", leave_running=True))
            await _must_raise(NotSupported, box.system.restore("one", "/nowhere"))


async def _denied_options_are_refused(subject: Subject) -> None:
    known: Sequence[CreateOption] = (
        Servicing(),
        Flush(False),
        HyperVIsolation("/sandbox"),
        Layers("/layer", ()),
        NetworkEndpoints(()),
        Credentials("{}"),
    )
    spec = await subject.make_spec("conformance", PROGRAMS["exit 0"], stdin=False, terminal=False)
    for option in known:
        if type(option).__name__ not in subject.runtime.features().create_options:
            await _must_raise(NotSupported, subject.runtime.create("conformance", spec, (option,)))


async def _side_by_side(subject: Subject) -> None:
    async def one(number: int) -> int:
        async with _box(subject, "exit 3", id=f"conformance-{number}") as box:
            return (await _ended(await box.start())).code

    assert await asyncio.gather(*(one(number) for number in range(8))) == [3] * 8


async def _version(subject: Subject) -> None:
    version = await subject.runtime.version()
    assert version.name == subject.runtime.name
    assert version.version


CHECKS: dict[str, Callable[[Subject], Awaitable[None]]] = {
    check.__name__.removeprefix("_"): check
    for check in (
        _version,
        _exit_code,
        _exit_code_before_the_end,
        _exit_code_again,
        _output,
        _stdio_is_the_same_each_time,
        _half_close,
        _binary,
        _no_stdin,
        _cancelled_read_loses_nothing,
        _buffered_is_what_can_be_read,
        _closing_a_pipe_wakes_its_reader,
        _terminal,
        _resize_without_terminal,
        _signals,
        _kill,
        _kill_after_the_end,
        _cancelled_wait_leaves_it_running,
        _exec,
        _exec_name_in_use,
        _exec_after_the_end,
        _grandchild_of_an_exec_hides_no_exit,
        _command_not_found,
        _pause_and_resume,
        _terminate_what_is_paused,
        _terminate_ends_all_of_it,
        _terminate_twice_at_once,
        _terminate_before_anything_runs,
        _close_before_anything_runs,
        _shutdown_after_the_end,
        _close_twice,
        _same_id_again,
        _id_in_use,
        _listed,
        _open_unknown,
        _pids_and_processes,
        _statistics,
        _oom_counters,
        _pending_updates,
        _update_resources,
        _denied_features_are_not_supported,
        _denied_options_are_refused,
        _side_by_side,
    )
}


async def check_runtime(subject: Subject, *names: str) -> None:
    """Run the checks of these names, or all, one after the other.

    Raises: ConformanceError that names every check that failed, with the first failure as its cause.
    """
    failures: list[tuple[str, Exception]] = []
    for name in names or tuple(CHECKS):
        try:
            async with subject.clock.timeout(LIMIT_S):
                await CHECKS[name](subject)
        except Exception as failed:  # noqa: BLE001  gathered, and raised together
            failures.append((name, failed))
    if failures:
        lines = [f"{name}: {failed!r}" for name, failed in failures]
        raise ConformanceError(f"{subject.runtime.name}: " + "; ".join(lines)) from failures[0][1]
