"""The fake runtime: the ports of `runtimes.base` in memory, on an injected clock, with faults to order."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lighterman.clock import Clock
from lighterman.errors import (
    AlreadyClosed,
    AlreadyExists,
    AlreadyStopped,
    BrokenPipe,
    CommandNotFound,
    InvalidState,
    NotFound,
    NotSupported,
    OperationPending,
)
from lighterman.runtimes.base import (
    CreateOption,
    Features,
    OomCounters,
    RuntimeVersion,
    Stdio,
    console_size,
)
from lighterman.runtimes.fake.faults import Fault, FaultPlan, Operation
from lighterman.runtimes.fake.pipes import FakeReadPipe, FakeWritePipe
from lighterman.runtimes.fake.platform import SimulatedProcess, SimulatedSystem
from lighterman.runtimes.fake.programs import PROGRAMS, FakeProgram
from lighterman.runtimes.options import Servicing, WithCheckpoint
from lighterman.spec import ExitCode, ProcessConfig, ProcessSummary, Resources, Spec, Statistics

__all__ = ["LINUX", "WINDOWS", "Call", "FakeComputeProcess", "FakeComputeSystem", "FakeRuntime", "Leftovers"]

T = TypeVar("T")

_OPTIONS = frozenset(
    {"Servicing", "Flush", "HyperVIsolation", "Layers", "NetworkEndpoints", "Credentials", "WithCheckpoint"}
)

LINUX = Features(checkpoint=True, create_options=_OPTIONS)
WINDOWS = Features(signals=False, pause=False, update_resources=False, pending_updates=True, create_options=_OPTIONS)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation: `process` is the name of the process it was about."""

    operation: Operation
    id: str | None
    process: str | None
    at: float
    args: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What should not be there when all is over; falsy when nothing is."""

    systems: tuple[str, ...]
    processes: tuple[str, ...]
    system_handles: tuple[str, ...]
    process_handles: tuple[str, ...]
    pipes: tuple[str, ...]
    double_closes: tuple[str, ...]

    def __bool__(self) -> bool:
        return any(
            (self.systems, self.processes, self.system_handles, self.process_handles, self.pipes, self.double_closes)
        )


class FakeRuntime:
    """A runtime in memory.

    Args:
        clock: what its delays, and its programs, run on.
        plan: what is to go wrong; nothing by default.
        features: what it can do: `LINUX` or `WINDOWS`, or others.
        programs: argument vector, or its first word, to program; besides `programs.PROGRAMS`.
        freeze_blocks_kill: a paused process dies of SIGKILL only when it is resumed, as under cgroup v1.
        null_stdin: a process that does not ask for stdin gets no pipe for it, as on Linux.
        detachable: its pipes have made-up descriptors, which `descriptors` translates.
        ends_with_init_s: a compute system ends by itself so many seconds after its init; None is never. A servicing
            one does so by default after 0 s.
    """

    def __init__(
        self,
        clock: Clock,
        plan: FaultPlan | None = None,
        *,
        features: Features = LINUX,
        programs: Mapping[str | tuple[str, ...], FakeProgram] | None = None,
        freeze_blocks_kill: bool = True,
        null_stdin: bool = False,
        detachable: bool = False,
        ends_with_init_s: float | None = None,
    ) -> None:
        self.clock = clock
        self.plan = plan or FaultPlan()
        self.programs: dict[str | tuple[str, ...], FakeProgram] = {**PROGRAMS}
        self.programs.update(programs or {})
        self.freeze_blocks_kill = freeze_blocks_kill
        self.null_stdin = null_stdin
        self.detachable = detachable
        self.ends_with_init_s = ends_with_init_s
        self.systems: dict[str, SimulatedSystem] = {}
        self.past: list[SimulatedSystem] = []
        self.checkpoints: dict[tuple[str, str], ProcessConfig] = {}
        self.calls: list[Call] = []
        self.created_with: list[tuple[str, Spec, tuple[CreateOption, ...]]] = []
        self.double_closes: list[str] = []
        self.descriptors: dict[int, FakeReadPipe | FakeWritePipe] = {}
        self._features = features
        self._handles: list[FakeComputeSystem | FakeComputeProcess] = []
        self._pipes: list[tuple[str, FakeReadPipe | FakeWritePipe]] = []
        self._next_pid = 1000
        self._background: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        return "fake"

    def features(self) -> Features:
        return self._features

    async def version(self) -> RuntimeVersion:
        async def version() -> RuntimeVersion:
            return RuntimeVersion(name="fake", version="1", reason="asked for by a test")

        return await self.carry_out("version", None, version)

    async def list(self) -> Sequence[str]:
        async def ids() -> Sequence[str]:
            return tuple(self.systems)

        return await self.carry_out("list", None, ids)

    async def create(self, id: str, spec: Spec, options: Sequence[CreateOption] = ()) -> FakeComputeSystem:
        made: list[SimulatedSystem] = []

        async def create() -> FakeComputeSystem:
            for option in options:
                if type(option).__name__ not in self._features.create_options:
                    raise NotSupported(f"fake: create option {type(option).__name__}", operation="create", container=id)
            if id in self.systems:
                raise AlreadyExists(f"compute system {id!r} exists", operation="create", container=id)
            for option in options:
                if isinstance(option, WithCheckpoint) and (option.directory, option.name) not in self.checkpoints:
                    raise NotFound(f"no checkpoint {option.name!r} in {option.directory!r}", container=id)
            servicing = any(isinstance(option, Servicing) for option in options)
            system = SimulatedSystem(
                id=id,
                spec=spec,
                features=self._features,
                clock=self.clock,
                freeze_blocks_kill=self.freeze_blocks_kill,
                null_stdin=self.null_stdin,
                servicing=servicing,
                ends_with_init_s=0.0 if servicing and self.ends_with_init_s is None else self.ends_with_init_s,
            )
            made.append(system)
            self.systems[id] = system
            self.created_with.append((id, spec, tuple(options)))
            return FakeComputeSystem(self, system)

        try:
            return await self.carry_out("create", id, create, (spec, tuple(options)))
        except BaseException:
            # What is raised, a cancellation too, means by contract that nothing is left of it.
            for system in made:
                system.end()
                self.forget(system)
            self._handles = [handle for handle in self._handles if handle.system not in made]
            raise

    async def open(self, id: str) -> FakeComputeSystem:
        async def open_() -> FakeComputeSystem:
            if not self._features.reattach:
                raise NotSupported("fake: open", operation="open", container=id)
            if id not in self.systems:
                raise NotFound(f"no compute system {id!r}", operation="open", container=id)
            return FakeComputeSystem(self, self.systems[id])

        return await self.carry_out("open", id, open_)

    # ---- for tests ----

    def count(self, operation: Operation, id: str | None = None, process: str | None = None) -> int:
        """How many times an operation was called."""
        return len(self.calls_of(operation, id, process))

    def calls_of(self, operation: Operation, id: str | None = None, process: str | None = None) -> tuple[Call, ...]:
        """The calls of an operation, in order."""
        return tuple(
            call
            for call in self.calls
            if call.operation == operation and id in (None, call.id) and process in (None, call.process)
        )

    def leftovers(self) -> Leftovers:
        """Compute systems and processes that exist, handles and pipe ends of ours that were not closed."""
        systems = [handle for handle in self._handles if isinstance(handle, FakeComputeSystem)]
        processes = [handle for handle in self._handles if isinstance(handle, FakeComputeProcess)]
        return Leftovers(
            systems=tuple(self.systems),
            processes=tuple(
                f"{system.id}/{process.name}"
                for system in (*self.systems.values(), *self.past)
                for process in system.alive
            ),
            system_handles=tuple(handle.system.id for handle in systems if not handle.closed),
            process_handles=tuple(str(handle) for handle in processes if not handle.closed),
            pipes=tuple(name for name, pipe in self._pipes if pipe.is_open and not pipe.detached),
            double_closes=tuple(self.double_closes),
        )

    def engine_died(self) -> None:
        """As after `kill -9` of the engine: every handle and every end of a pipe that it held is gone.

        What runs goes on. The keeper holds its copies: bytes wait, and a re-opened process has new ends.
        """
        for handle in self._handles:
            if isinstance(handle, FakeComputeProcess):
                handle.drop_ends()
        for system in self.systems.values():
            system.oom_ears.clear()
        self._handles.clear()
        self._pipes.clear()
        self.descriptors.clear()

    async def discard(self) -> None:
        """End every background task of the fake; the test is over."""
        for system in (*self.systems.values(), *self.past):
            system.discard()
        for task in self._background:
            task.cancel()
        await asyncio.sleep(0)

    # ---- for the handles ----

    async def carry_out(
        self,
        operation: Operation,
        id: str | None,
        act: Callable[[], Awaitable[T]],
        args: tuple[object, ...] = (),
        process: str | None = None,
    ) -> T:
        """Record a call and do it, as far as the plan lets it."""
        self.calls.append(Call(operation, id, process, self.clock.mono(), args))
        fault = self.plan.take(operation, id, process)
        # Even what is done at once is an await: other tasks may get in between, as with any real runtime.
        await asyncio.sleep(0)
        if fault is None:
            return await act()
        if fault.after:
            result = await act()
            try:
                await self._misbehave(fault, operation, id)
            except BaseException:
                # Who called never got the handle: it is not theirs to close.
                self._handles = [handle for handle in self._handles if handle is not result]
                raise
            return result
        if fault.pending_s is not None:
            self._do_later(fault.pending_s, act, f"fake {operation} {id}")
        await self._misbehave(fault, operation, id)
        return await act()

    async def _misbehave(self, fault: Fault, operation: Operation, id: str | None) -> None:
        if fault.delay_s:
            await self.clock.sleep(fault.delay_s)
        await fault.act()
        if fault.hang:
            await asyncio.get_running_loop().create_future()
        if fault.pending_s is not None:
            raise OperationPending(f"fake: {operation} of {id!r} goes on", operation=operation, container=id)
        if fault.error is not None:
            raise fault.error.with_traceback(None)

    def _do_later(self, delay_s: float, act: Callable[[], Awaitable[object]], name: str) -> None:
        if delay_s == math.inf:
            return

        async def later() -> None:
            await self.clock.sleep(delay_s)
            try:
                await act()
            except (AlreadyStopped, AlreadyClosed, OperationPending):
                return  # it came about otherwise meanwhile

        task = asyncio.create_task(later(), name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def register(self, handle: FakeComputeSystem | FakeComputeProcess) -> None:
        """Watch a handle until it is closed."""
        self._handles.append(handle)

    def register_pipe(self, name: str, pipe: FakeReadPipe | FakeWritePipe) -> None:
        """Watch an end of a pipe until it is closed."""
        self._pipes.append((name, pipe))
        if pipe.descriptor is not None:
            self.descriptors[pipe.descriptor] = pipe

    def forget(self, system: SimulatedSystem) -> None:
        """It has ended and is closed: its id is free."""
        if self.systems.get(system.id) is system:
            del self.systems[system.id]
            self.past.append(system)

    def new_process(self, system: SimulatedSystem, config: ProcessConfig, name: str) -> SimulatedProcess:
        """Make a process and let it run. Raises: CommandNotFound."""
        words = config.args or tuple((config.command_line or "").split())
        program = self.programs.get(words) or (self.programs.get(words[0]) if words else None)
        if program is None:
            raise CommandNotFound(
                f"no program {words!r} in the container",
                runtime="fake",
                operation="create_process",
                container=system.id,
                exit_status=127,
            )
        self._next_pid += 1
        process = SimulatedProcess(system, config, self._next_pid, name, piped=not system.servicing)
        system.add(process)
        process.launch(program)
        return process


class FakeComputeSystem:
    """A handle on a simulated compute system; several may exist of one."""

    def __init__(self, runtime: FakeRuntime, system: SimulatedSystem) -> None:
        self.runtime = runtime
        self.system = system
        self.closed = False
        runtime.register(self)

    @property
    def id(self) -> str:
        return self.system.id

    async def start(self) -> None:
        async def start() -> None:
            if self.system.started or self.system.terminating:
                raise InvalidState(f"{self.id!r} was started already", operation="start", container=self.id)
            self.system.started = True

        await self._do("start", start)

    async def create_process(self, process: ProcessConfig, *, exec_id: str | None = None) -> FakeComputeProcess:
        name = exec_id or "init"

        async def create() -> FakeComputeProcess:
            self._must_run()
            if not self.system.started:
                raise InvalidState(f"{self.id!r} is not started", operation="create_process", container=self.id)
            running = self.system.processes.get(name)
            if running is not None and (name == "init" or not running.ended.is_set()):
                raise AlreadyExists(f"process {name!r} of {self.id!r} exists", container=self.id)
            if name != "init":
                self._must_have_init()
                if self.system.frozen:
                    raise InvalidState(f"{self.id!r} is paused", operation="create_process", container=self.id)
            return FakeComputeProcess(self.runtime, self.runtime.new_process(self.system, process, name))

        return await self._do("create_process", create, (process,), name)

    async def open_process(self, process_id: int | str) -> FakeComputeProcess:
        async def open_() -> FakeComputeProcess:
            for process in reversed(self.system.everyone):
                if process_id in (process.pid, process.name):
                    return FakeComputeProcess(self.runtime, process)
            raise NotFound(f"no process {process_id!r} in {self.id!r}", operation="open_process", container=self.id)

        return await self._do("open_process", open_, (process_id,), str(process_id))

    async def exec_ids(self) -> Sequence[str]:
        async def exec_ids() -> Sequence[str]:
            return tuple(name for name in self.system.processes if name != "init")

        return await self._do("exec_ids", exec_ids)

    async def shutdown(self) -> None:
        async def shutdown() -> None:
            self._must_run()
            self.system.ask_to_end()
            self._pend_unless_ended("shutdown")

        await self._do("shutdown", shutdown)

    async def terminate(self) -> None:
        async def terminate() -> None:
            self._must_run()
            self.system.end()
            self._pend_unless_ended("terminate")

        await self._do("terminate", terminate)

    async def wait(self) -> None:
        await self._do("system.wait", self._wait)

    async def _wait(self) -> None:
        await self.system.ended.wait()

    async def pause(self) -> None:
        async def pause() -> None:
            self._supported(self.runtime.features().pause, "pause")
            self._must_run()
            self.system.freeze()

        await self._do("pause", pause)

    async def resume(self) -> None:
        async def resume() -> None:
            self._supported(self.runtime.features().pause, "resume")
            self._must_run()
            self.system.thaw()

        await self._do("resume", resume)

    async def statistics(self) -> Statistics:
        async def statistics() -> Statistics:
            self._supported(self.runtime.features().statistics, "statistics")
            self._must_run()
            alive = len(self.system.alive)
            return Statistics(
                read_at=self.runtime.clock.wall(), cpu_ns=1000 * alive, memory_bytes=4096 * alive, pids=alive
            )

        return await self._do("statistics", statistics)

    async def process_list(self) -> Sequence[ProcessSummary]:
        async def process_list() -> Sequence[ProcessSummary]:
            self._must_run()
            return tuple(
                ProcessSummary(
                    pid=process.pid,
                    image_name=process.config.args[0] if process.config.args else process.name,
                    command=process.config.args,
                    resident_bytes=4096,
                )
                for process in self.system.alive
            )

        return await self._do("process_list", process_list)

    async def pids(self) -> Sequence[int]:
        async def pids() -> Sequence[int]:
            self._must_run()
            return tuple(process.pid for process in self.system.alive)

        return await self._do("pids", pids)

    async def oom_counters(self) -> OomCounters | None:
        async def oom_counters() -> OomCounters | None:
            if not self.runtime.features().signals:
                return None
            if self.closed:
                raise AlreadyClosed(f"{self.id!r} is closed", operation="oom_counters", container=self.id)
            return OomCounters(oom_kills=self.system.oom_kills)

        return await self._do("oom_counters", oom_counters)

    def watch_oom(self, told: int, tell: Callable[[int], None]) -> None:
        def hear() -> None:
            nonlocal told
            init = self.system.processes.get("init")
            if not self.closed and self.system.oom_kills > told and init is not None and not init.ended.is_set():
                told = self.system.oom_kills
                tell(told)

        self.system.oom_ears.append(hear)
        asyncio.get_running_loop().call_soon(hear)

    async def stuck(self) -> str | None:
        return f"pid {self.system.init.pid} in fake_wait" if self.system.init and self.system.init.unkillable else None

    async def has_pending_updates(self) -> bool:
        async def has_pending_updates() -> bool:
            self._supported(self.runtime.features().pending_updates, "has_pending_updates")
            return self.system.pending_updates

        return await self._do("has_pending_updates", has_pending_updates)

    async def update_resources(self, resources: Resources) -> None:
        async def update() -> None:
            self._supported(self.runtime.features().update_resources, "update_resources")
            self._must_run()
            self.system.resources.append(resources)

        await self._do("update_resources", update, (resources,))

    async def checkpoint(self, name: str, directory: str, *, leave_running: bool) -> None:
        async def checkpoint() -> None:
            self._supported(self.runtime.features().checkpoint, "checkpoint")
            self._must_run()
            self._must_have_init()
            self.runtime.checkpoints[directory, name] = self.system.init.config
            if not leave_running:
                for process in self.system.alive:
                    process.die()

        await self._do("checkpoint", checkpoint, (name, directory, leave_running))

    async def restore(self, name: str, directory: str) -> FakeComputeProcess:
        async def restore() -> FakeComputeProcess:
            self._supported(self.runtime.features().checkpoint, "restore")
            self._must_run()
            config = self.runtime.checkpoints.get((directory, name))
            if config is None:
                raise NotFound(f"no checkpoint {name!r} in {directory!r}", operation="restore", container=self.id)
            self.system.started = True
            return FakeComputeProcess(self.runtime, self.runtime.new_process(self.system, config, "init"))

        return await self._do("restore", restore, (name, directory))

    async def close(self) -> None:
        async def close() -> None:
            if self.closed:
                self.runtime.double_closes.append(f"system {self.id}")
                raise AlreadyClosed(f"{self.id!r} was closed already", operation="close", container=self.id)
            self.closed = True
            if self.system.ended.is_set() or not self.system.everyone:
                self.system.terminating = True
                self.runtime.forget(self.system)

        await self._do("system.close", close)

    async def _do(
        self,
        operation: Operation,
        act: Callable[[], Awaitable[T]],
        args: tuple[object, ...] = (),
        process: str | None = None,
    ) -> T:
        return await self.runtime.carry_out(operation, self.id, act, args, process)

    def _supported(self, feature: bool, operation: str) -> None:
        if not feature:
            raise NotSupported(f"fake: {operation}", operation=operation, container=self.id)

    def _must_run(self) -> None:
        if self.closed:
            raise AlreadyClosed(f"{self.id!r} is closed", container=self.id)
        if self.system.ended.is_set():
            raise AlreadyStopped(f"{self.id!r} has stopped", container=self.id)

    def _must_have_init(self) -> None:
        init = self.system.processes.get("init")
        if init is None or init.ended.is_set():
            raise AlreadyStopped(f"the init process of {self.id!r} does not run", container=self.id)

    def _pend_unless_ended(self, operation: str) -> None:
        if not self.system.ended.is_set():
            raise OperationPending(f"fake: {operation} goes on", operation=operation, container=self.id)

    def __repr__(self) -> str:
        return f"<FakeComputeSystem {self.id}{' closed' if self.closed else ''}>"


class FakeComputeProcess:
    """A handle on a simulated process; several may exist of one."""

    def __init__(self, runtime: FakeRuntime, process: SimulatedProcess) -> None:
        self.runtime = runtime
        self.process = process
        self.closed = False
        # Our ends exist from the beginning: what is written before somebody asks for them waits in the pipe.
        detachable = runtime.detachable
        self._stdio = Stdio(
            stdin=FakeWritePipe(process.stdin, detachable=detachable) if process.stdin is not None else None,
            stdout=FakeReadPipe(process.stdout, detachable=detachable) if process.stdout is not None else None,
            stderr=FakeReadPipe(process.stderr, detachable=detachable) if process.stderr is not None else None,
        )
        self._stdio_given = False
        runtime.register(self)

    @property
    def system(self) -> SimulatedSystem:
        return self.process.system

    @property
    def pid(self) -> int:
        return self.process.pid

    def started(self) -> tuple[float, float] | None:
        return self.process.started_mono, self.process.started_at

    async def stdio(self) -> Stdio:
        async def stdio() -> Stdio:
            self._must_be_open()
            return self._stdio

        result = await self._do("stdio", stdio)
        if not self._stdio_given:
            self._stdio_given = True
            for name in ("stdin", "stdout", "stderr"):
                pipe = getattr(result, name)
                if pipe is not None:
                    self.runtime.register_pipe(f"{self} {name}", pipe)
        return result

    async def wait(self) -> None:
        async def wait() -> None:
            await self.process.ended.wait()
            if self.process.broken:
                raise BrokenPipe(f"{self} is gone", container=self.system.id)

        # By contract wait raises only when the process is gone: so does the plan.
        self.runtime.calls.append(Call("process.wait", self.system.id, self.process.name, self.runtime.clock.mono()))
        fault = self.runtime.plan.take("process.wait", self.system.id, self.process.name)
        if fault is None:
            await wait()
            return
        await self.process.ended.wait()
        if fault.delay_s:
            await self.runtime.clock.sleep(fault.delay_s)
        await fault.act()
        if fault.hang:
            await asyncio.get_running_loop().create_future()
        if fault.error is not None:
            raise fault.error.with_traceback(None)
        await wait()

    async def exit_code(self) -> ExitCode:
        async def exit_code() -> ExitCode:
            if not self.process.ended.is_set():
                raise InvalidState(f"{self} runs", operation="exit_code", container=self.system.id)
            if self.process.exit_code is None:
                raise NotFound(f"how {self} ended is not known", operation="exit_code", container=self.system.id)
            return self.process.exit_code

        return await self._do("exit_code", exit_code)

    async def kill(self, signal: int) -> None:
        async def kill() -> None:
            self._must_be_open()
            self.process.signal(signal)

        await self._do("kill", kill, (signal,))

    async def resize_console(self, height: int, width: int) -> None:
        async def resize() -> None:
            self._must_be_open()
            size = console_size(height, width)
            if self.process.ended.is_set():
                raise AlreadyStopped(f"{self} has ended", container=self.system.id)
            if not self.process.config.terminal:
                raise InvalidState(f"{self} has no terminal", operation="resize", container=self.system.id)
            self.process.console = (size.height, size.width)

        await self._do("resize_console", resize, (height, width))

    async def close_stdin(self) -> None:
        async def close_stdin() -> None:
            if self.process.ended.is_set():
                raise NotFound(f"{self} has ended", operation="close_stdin", container=self.system.id)
            if self.process.stdin is None:
                raise InvalidState(f"{self} has no stdin", operation="close_stdin", container=self.system.id)
            if not self.process.close_keeper_stdin():
                raise AlreadyClosed(f"stdin of {self} is closed", operation="close_stdin", container=self.system.id)

        await self._do("close_stdin", close_stdin)

    async def forget(self) -> None:
        async def forget() -> None:
            self.process.forgotten = True

        await self._do("process.forget", forget)

    async def close(self) -> None:
        async def close() -> None:
            if self.closed:
                self.runtime.double_closes.append(f"process {self}")
                raise AlreadyClosed(f"{self} was closed already", operation="close", container=self.system.id)
            self.closed = True
            for pipe in (self._stdio.stdin, self._stdio.stdout, self._stdio.stderr):
                if isinstance(pipe, FakeReadPipe | FakeWritePipe) and not pipe.detached:
                    await pipe.close()

        await self._do("process.close", close)

    async def _do(self, operation: Operation, act: Callable[[], Awaitable[T]], args: tuple[object, ...] = ()) -> T:
        return await self.runtime.carry_out(operation, self.system.id, act, args, self.process.name)

    def drop_ends(self) -> None:
        """Its ends of the pipes go with whoever held them; the keeper's copies stay."""
        for pipe in (self._stdio.stdin, self._stdio.stdout, self._stdio.stderr):
            if isinstance(pipe, FakeWritePipe) and pipe.is_open:
                pipe.is_open = False
                pipe.pipe.writers -= 1
            elif isinstance(pipe, FakeReadPipe):
                pipe.is_open = False  # the keeper still reads: its writers see no broken pipe
            if isinstance(pipe, FakeReadPipe | FakeWritePipe):
                pipe.pipe.changed()

    def _must_be_open(self) -> None:
        if self.closed:
            raise AlreadyClosed(f"{self} is closed", container=self.system.id)

    def __str__(self) -> str:
        return f"{self.system.id}/{self.process.name}"
