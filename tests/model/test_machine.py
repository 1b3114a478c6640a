"""Verbs, exits, faults, cancellations and engine deaths in any order, on several containers [L39].

What has to hold however they come: the legal order of events, one end for each run, no run after a manual stop, every
verb ends, nothing is left registered, and nothing is left in the runtime (unless the runtime itself refused to end or
to close it). The normal run is deterministic; LIGHTERMAN_MODEL_EXAMPLES=N draws N new ones instead.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from lighterman.errors import LightermanError, RuntimeFailed
from lighterman.lifecycle.events import State, StateInfo
from lighterman.runtimes.fake.faults import Fault
from lighterman.runtimes.fake.platform import SimulatedSystem
from lighterman.spec import RestartPolicy
from lighterman.testing import WINDOWS, FakeLoop
from supervisor.world import World, config, policy

T = TypeVar("T")

EXAMPLES = int(os.environ.get("LIGHTERMAN_MODEL_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 250,
    stateful_step_count=80 if EXAMPLES else 40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

SETTLED = 1000
# In the middle of something, or (as often) when nothing goes on without time passing.
TURNS = st.sampled_from([0, 1, 2, 3, 5, 8, 12, *[SETTLED] * 7])
IDS = st.sampled_from(["a", "a", "b"])
EXEC_NAMES = st.sampled_from(["x", "y"])
PROGRAMS = st.sampled_from(["sleep", "sleep 3", "ignore-term", "cat", "exit 1", "true", "grandchild"])
POLICIES = st.sampled_from(["no", "always", "unless-stopped", "on-failure", "on-failure:2"])
# Faults of these may leave something behind: the runtime itself does not end or close it.
LEAKS = {"terminate", "system.close", "process.close", "open", "open_process", "exec_ids"}
FAULTY = [
    "create",
    "start",
    "create_process",
    "stdio",
    "shutdown",
    "pause",
    "resume",
    "kill",
    "exit_code",
    "process.wait",
    "oom_counters",
    "has_pending_updates",
    "close_stdin",
    "update_resources",
    *sorted(LEAKS - {"exec_ids"}),
]


class Unwilling(Exception):
    """Raised by the backend."""


class Machine(RuleBasedStateMachine):
    """Each rule starts something and lets it go on for a drawn number of turns of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeLoop()
        self.verbs: set[asyncio.Task[None]] = set()
        self.registered: dict[str, list[int]] = {}  # when (in calls of the runtime) an id was given to a new container
        self.stopped: list[tuple[str, int, int]] = []  # id, which container under it, since when it must stay down
        self.backend_delay_s = 0.0
        self.all_events: list[list[StateInfo]] = []

    def go(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(blocks=st.booleans(), windows=st.booleans(), ends=st.sampled_from([None, 0.0, 2.0]))
    def begin(self, blocks: bool, windows: bool, ends: float | None) -> None:
        async def begin() -> None:
            self.world = World()
            features = {"features": WINDOWS} if windows else {}
            self.world.use(freeze_blocks_kill=blocks, ends_with_init_s=ends, **features)
            self.listen()

        self.go(begin())

    def listen(self) -> None:
        async def slow(info: StateInfo) -> None:
            if self.backend_delay_s:
                await self.world.clock.sleep(self.backend_delay_s)

        self.world.backend.on_state = slow
        self.all_events.append(self.world.backend.events)

    # ---- verbs, each in a task of its own ----

    def start(self, verb: Coroutine[Any, Any, None], turns: int) -> None:
        async def carry_out() -> None:
            try:
                await verb
            except (LightermanError, Unwilling):
                return  # which error is for the other tests; that it ends is for this one

        async def begin() -> None:
            task = asyncio.create_task(carry_out(), name="verb")
            self.verbs.add(task)
            task.add_done_callback(self.verbs.discard)
            await self.turns(turns)

        self.go(begin())

    async def turns(self, count: int) -> None:
        for _ in range(min(count, 30)):
            await asyncio.sleep(0)
        if count == SETTLED:
            await self.world.clock.settle()

    @rule(id=IDS, program=PROGRAMS, text=POLICIES, turns=TURNS)
    def create(self, id: str, program: str, text: str, turns: int) -> None:
        async def create() -> None:
            if id not in self.world.client.containers():
                self.registered.setdefault(id, []).append(len(self.world.runtime.calls))
            await self.world.client.create(id, self.world.spec(*program.split(), stdin=program == "cat"), policy(text))

        self.start(create(), turns)

    @rule(id=IDS, name=EXEC_NAMES, program=PROGRAMS, turns=TURNS)
    def exec(self, id: str, name: str, program: str, turns: int) -> None:
        async def add() -> None:
            await self.world.client.add_process(id, name, config(*program.split()))

        self.start(add(), turns)

    @rule(id=IDS, verb=st.sampled_from(["stop", "stop at once", "terminate", "kill"]), turns=TURNS)
    def end(self, id: str, verb: str, turns: int) -> None:
        async def end() -> None:
            client = self.world.client
            if id not in client.containers():
                return
            container = len(self.registered.get(id, ()))
            match verb:
                case "stop":
                    await client.stop(id, grace_s=4)
                case "stop at once":
                    await client.stop(id, grace_s=0)
                case "terminate":
                    await client.terminate(id)
                case "kill":
                    await client.signal(id, 9)
            self.stopped.append((id, container, len(self.world.runtime.calls)))

        self.start(end(), turns)

    @rule(id=IDS, signal=st.sampled_from([2, 15, 18]), turns=TURNS)
    def signal(self, id: str, signal: int, turns: int) -> None:
        async def signal_() -> None:
            await self.world.client.signal(id, signal)

        self.start(signal_(), turns)

    @rule(id=IDS, verb=st.sampled_from(["pause", "resume", "stats"]), turns=TURNS)
    def simple_verb(self, id: str, verb: str, turns: int) -> None:
        async def simple() -> None:
            await getattr(self.world.client, verb)(id)

        self.start(simple(), turns)

    @rule(id=IDS, text=POLICIES, cancel=st.booleans())
    def change_restart(self, id: str, text: str, cancel: bool) -> None:
        async def change() -> None:
            if cancel:
                container = len(self.registered.get(id, ()))
                if self.world.client.cancel_restart(id):
                    self.stopped.append((id, container, len(self.world.runtime.calls)))
            else:
                self.world.client.set_restart_policy(id, RestartPolicy.parse(text))

        self.start(change(), 1)

    @precondition(lambda self: self.verbs)
    @rule(which=st.integers(0, 10), turns=TURNS)
    def cancel_a_verb(self, which: int, turns: int) -> None:
        async def cancel() -> None:
            waiting = sorted(self.verbs, key=lambda task: task.get_name())
            if waiting:
                waiting[which % len(waiting)].cancel()
            await self.turns(turns)

        self.go(cancel())

    # ---- what happens by itself ----

    @rule(
        id=IDS,
        name=st.sampled_from(["init", "x", "y"]),
        how=st.sampled_from(["exit 0", "exit 1", "die", "vanish", "break"]),
        turns=TURNS,
    )
    def process_ends(self, id: str, name: str, how: str, turns: int) -> None:
        async def end() -> None:
            system = self.world.runtime.systems.get(id)
            if system is None or name not in system.processes:
                return
            process = system.processes[name]
            if system.frozen and system.freeze_blocks_kill:
                return
            match how:
                case "die":
                    process.die()
                case "vanish":
                    process.vanish()
                case "break":
                    process.vanish(broken=True)
                case _:
                    process.exit(int(how[-1]))
            await self.turns(turns)

        self.go(end())

    @rule(id=IDS, turns=TURNS)
    def memory_runs_out(self, id: str, turns: int) -> None:
        async def kill() -> None:
            system = self.world.runtime.systems.get(id)
            if system is not None:
                system.oom_kill()
            await self.turns(turns)

        self.go(kill())

    @rule(seconds=st.sampled_from([0.05, 0.1, 1, 3, 11, 40, 400]))
    def time_passes(self, seconds: float) -> None:
        self.go(self.world.clock.advance(seconds))

    @rule(
        operation=st.sampled_from(FAULTY),
        kind=st.sampled_from(["error", "error after", "hang", "hang after", "delay", "delay after", "pending"]),
        nth=st.integers(1, 3),
    )
    def plan_a_fault(self, operation: Any, kind: str, nth: int) -> None:
        fault = Fault(operation, nth=nth, after=kind.endswith("after"))
        if kind.startswith("error"):
            fault.error = RuntimeFailed("planned", runtime="fake", operation=operation)
        elif kind.startswith("hang"):
            # A wait that never returns is the one thing that no caller can survive: the port forbids it.
            fault.hang = operation != "process.wait"
        elif kind.startswith("delay"):
            fault.delay_s = 7.0
        elif operation in ("shutdown", "terminate"):
            fault.pending_s = 9.0
        self.world.plan.faults.append(fault)

    @rule(delay_s=st.sampled_from([0.0, 0.0, 2.0]), wrong=st.booleans())
    def backend_changes_its_manners(self, delay_s: float, wrong: bool) -> None:
        self.backend_delay_s = delay_s
        self.world.backend.state_error = Unwilling() if wrong else None

    @rule(wrong=st.booleans())
    def backend_refuses_streams(self, wrong: bool) -> None:
        self.world.backend.attach_error = Unwilling() if wrong else None

    @rule(drop=st.booleans())
    def engine_dies(self, drop: bool) -> None:
        """And another one comes, which restores what is left (with `drop`, after a while)."""

        async def die() -> None:
            for task in self.verbs:
                task.cancel()
            self.world.plan.faults.clear()
            self.backend_delay_s = 0.0
            self.check_events()
            async with self.world.clock.autojump():
                await self.world.engine_dies()
            self.listen()
            self.stopped.clear()
            if drop:
                await self.world.clock.advance(20)
            for id, system in list(self.world.runtime.systems.items()):
                await self.restore(id, system)

        self.go(die())

    async def restore(self, id: str, system: SimulatedSystem) -> None:
        async with self.world.clock.autojump():
            await self.world.client.restore(id, policy("on-failure:2"), spec=system.spec)

    # ---- what has to hold ----

    def check_events(self) -> None:
        assert self.world.backend.violations == []

    def check_stopped(self) -> None:
        """No compute system was made for a container after it was stopped with success."""
        for index, call in enumerate(self.world.runtime.calls):
            if call.operation != "create" or call.id is None:
                continue
            container = sum(1 for since in self.registered.get(call.id, ()) if since <= index)
            for id, stopped, since in self.stopped:
                assert not (id == call.id and stopped == container and since <= index), f"{id} came back after its stop"

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            self.loop.close()
            return
        leaks = any(fault.used and fault.operation in LEAKS for fault in self.world.plan.faults)
        self.world.plan.faults.clear()
        self.backend_delay_s = 0.0
        self.world.leaves_something = leaks or self.world.leaves_something

        async def finish() -> None:
            async with self.world.clock.autojump():
                if self.verbs:
                    for id in self.world.client.containers():
                        self.start_ending(id)
                    await asyncio.wait(set(self.verbs))
                await self.world.finish()

        try:
            self.go(finish())
            self.check_events()
            self.check_stopped()
            for id in ("a", "b"):
                told = self.world.backend.of(id)
                assert not told or told[-1].state is State.EXIT, f"{id} has no end"
        finally:
            self.loop.run_until_complete(_cancel_all())
            self.loop.close()

    def start_ending(self, id: str) -> None:
        async def end() -> None:
            try:
                await self.world.client.terminate(id)
            except LightermanError:
                return

        task = asyncio.ensure_future(end())
        self.verbs.add(task)
        task.add_done_callback(self.verbs.discard)


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def test_L39_every_order_of_verbs_exits_faults_and_cancellations() -> None:
    run_state_machine_as_test(Machine, settings=SETTINGS)
