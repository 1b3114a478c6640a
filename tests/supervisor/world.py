"""A client on a fake runtime, and what must hold at the end of every test."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from lighterman.errors import LightermanError
from lighterman.runtimes.base import CreateOption
from lighterman.runtimes.fake.platform import SimulatedSystem
from lighterman.runtimes.options import WithRestartPolicy
from lighterman.spec import ConsoleSize, ProcessConfig, RestartPolicy, Spec
from lighterman.supervisor.client import Client
from lighterman.testing import FakeClock, FakeProgram, FakeRuntime, FaultPlan, RecordingBackend

FOR_EVER_S = 1e7  # virtual; more than any chain of time limits takes


def config(
    *args: str, stdin: bool = False, terminal: bool = False, size: tuple[int, int] | None = None
) -> ProcessConfig:
    return ProcessConfig(
        args=args,
        stdin=stdin,
        terminal=terminal,
        console_size=ConsoleSize(height=size[0], width=size[1]) if size else None,
    )


def policy(text: str) -> WithRestartPolicy:
    return WithRestartPolicy(RestartPolicy.parse(text))


class World:
    """Attributes may be replaced before the first use of the client: `world.use(features=WINDOWS)`."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.plan = FaultPlan()
        self.backend = RecordingBackend()
        self.runtime = FakeRuntime(self.clock, self.plan)
        self.client = Client(self.runtime, self.backend, clock=self.clock)
        self.leaves_something = False
        self._runs = 0
        self._watchdog = asyncio.create_task(self._watch_for_deadlock(), name="watchdog")

    def use(self, **kwargs: Any) -> None:
        """Another fake runtime; the arguments are those of `FakeRuntime`."""
        self.runtime = FakeRuntime(self.clock, self.plan, **kwargs)
        self.client = Client(self.runtime, self.backend, clock=self.clock)

    def program(self, name: str, program: FakeProgram) -> None:
        """What `name` runs from now on."""
        self.runtime.programs[name] = program

    def programs(self, programs: Mapping[str, FakeProgram]) -> None:
        self.runtime.programs.update(programs)

    async def create(
        self, *args: str, id: str = "c1", options: tuple[CreateOption, ...] = (), stdin: bool = False, **kwargs: Any
    ) -> SimulatedSystem:
        """Create a container that runs `args`; returns what the fake made of it."""
        await self.client.create(id, self.spec(*args, stdin=stdin, **kwargs), *options)
        return self.runtime.systems.get(id) or self.runtime.past[-1]

    def spec(self, *args: str, stop_signal: int = 15, os_build: int | None = None, **kwargs: Any) -> Spec:
        return Spec(process=config(*(args or ("sleep",)), **kwargs), stop_signal=stop_signal, os_build=os_build)

    def system(self, id: str = "c1") -> SimulatedSystem:
        return self.runtime.systems[id]

    def states(self, id: str = "c1") -> list[str]:
        return self.backend.states(id)

    async def engine_dies(self) -> None:
        """`kill -9` of the engine: a new client and a new backend, over what the runtime has."""
        await self.client.close()
        await self.backend.discard()
        self.runtime.engine_died()
        self.backend = RecordingBackend()
        self.client = Client(self.runtime, self.backend, clock=self.clock)

    async def finish(self) -> None:
        """End what runs; then nothing may be left, out of order, or planned and not met."""
        for fault in self.plan.faults:
            fault.nth = -1  # a fault ends with its test
        for id in self.client.containers():
            ending = asyncio.ensure_future(self.client.wait(id))
            try:
                await self.client.terminate(id)
            except LightermanError as failed:
                print(f"ending {id} after the test: {failed!r}")
                ending.cancel()
            await asyncio.wait([ending])
        await self.client.close()
        left = self.runtime.leftovers()
        registered = self.client.containers()
        await self.backend.discard()
        await self.runtime.discard()
        self._watchdog.cancel()
        assert self.backend.violations == []
        assert self.plan.unused() == []
        assert self.leaves_something or not left, left
        assert registered == ()

    async def _watch_for_deadlock(self) -> None:
        await self.clock.sleep(FOR_EVER_S)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        print("nobody can go on:", *tasks, sep="\n  ")
        for task in tasks:
            task.cancel("deadlock: nobody can go on")
