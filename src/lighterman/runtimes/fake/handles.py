"""The handles of the fake runtime: on a simulated compute system, and on a process in one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from lighterman.errors import (
    AlreadyClosed,
    AlreadyExists,
    AlreadyStopped,
    BrokenPipe,
    InvalidState,
    NotFound,
    NotSupported,
    OperationPending,
)
from lighterman.runtimes.base import (
    KnownExec,
    OomCounters,
    Stdio,
    console_size,
)
from lighterman.runtimes.fake.faults import Operation
from lighterman.runtimes.fake.pipes import FakeReadPipe, FakeWritePipe
from lighterman.runtimes.fake.platform import SimulatedProcess, SimulatedSystem
from lighterman.spec import ExitCode, ProcessConfig, ProcessSummary, Resources, Statistics

if TYPE_CHECKING:
    from lighterman.runtimes.fake.runtime import FakeRuntime

__all__ = ["Call", "FakeComputeProcess", "FakeComputeSystem"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation: `process` is the name of the process it was about."""

    operation: Operation
    id: str | None
    process: str | None
    at: float
    args: tuple[object, ...] = ()


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

    async def adopt_exec(self, known: KnownExec) -> FakeComputeProcess:
        raise NotSupported("fake: adopt_exec", operation="adopt_exec", container=self.id)

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

    async def is_paused(self) -> bool | None:
        return None

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

    def begun(self) -> None:
        return None

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

    @property
    def start_time(self) -> int | None:
        return None

    @property
    def has_terminal(self) -> bool:
        return self.process.config.terminal

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
