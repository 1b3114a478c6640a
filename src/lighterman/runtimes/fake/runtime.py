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
    CommandNotFound,
    NotFound,
    NotSupported,
    OperationPending,
)
from lighterman.runtimes.base import (
    CreateOption,
    Features,
    RuntimeVersion,
)
from lighterman.runtimes.fake.faults import Fault, FaultPlan, Operation
from lighterman.runtimes.fake.handles import Call, FakeComputeProcess, FakeComputeSystem
from lighterman.runtimes.fake.pipes import FakeReadPipe, FakeWritePipe
from lighterman.runtimes.fake.platform import SimulatedProcess, SimulatedSystem
from lighterman.runtimes.fake.programs import PROGRAMS, FakeProgram
from lighterman.runtimes.options import Servicing, WithCheckpoint
from lighterman.spec import ProcessConfig, Spec

__all__ = ["LINUX", "WINDOWS", "Call", "FakeComputeProcess", "FakeComputeSystem", "FakeRuntime", "Leftovers"]

T = TypeVar("T")

_OPTIONS = frozenset(
    {"Servicing", "Flush", "HyperVIsolation", "Layers", "NetworkEndpoints", "Credentials", "WithCheckpoint"}
)

LINUX = Features(checkpoint=True, create_options=_OPTIONS)
WINDOWS = Features(signals=False, pause=False, update_resources=False, pending_updates=True, create_options=_OPTIONS)


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
