"""What the fake runtime runs on: compute systems and processes as a kernel would keep them, handles or none."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from lighterman.clock import Clock
from lighterman.errors import AlreadyStopped, BrokenPipe, InvalidState, NotSupported
from lighterman.runtimes.base import Features
from lighterman.runtimes.fake.pipes import FakePipe
from lighterman.runtimes.fake.programs import FakeProgram, ProgramContext
from lighterman.spec import ExitCode, ProcessConfig, Resources, Spec

__all__ = ["SimulatedProcess", "SimulatedSystem"]

KILL = 9
TERM = 15


class SimulatedProcess:
    """One process. A test ends it with `exit`, `die` or `vanish` at any moment.

    Attributes:
        exit_code: how it ended; None while it runs, and for ever if nobody can know.
        unkillable: no signal reaches it, as in an uninterruptible sleep; the methods for tests end it all the same.
        forgotten: whether its end was said to be in safety.
        broken: whether waiting for it ends by BrokenPipe, as for a killed Windows compute system.
    """

    def __init__(self, system: SimulatedSystem, config: ProcessConfig, pid: int, name: str, *, piped: bool) -> None:
        self.system = system
        self.config = config
        self.pid = pid
        self.name = name
        self.handlers: dict[int, Callable[[], None]] = {}
        self.console: tuple[int, int] | None = None
        if config.terminal and config.console_size is not None:
            self.console = (config.console_size.height, config.console_size.width)
        self.started_mono = system.clock.mono()
        self.started_at = system.clock.wall()
        self.ended = asyncio.Event()
        self.exit_code: ExitCode | None = None
        self.unkillable = False
        self.forgotten = False
        self.broken = False
        self.stdin: FakePipe | None = None
        self.stdout: FakePipe | None = None
        self.stderr: FakePipe | None = None
        self.keeper_holds_stdin = False
        self.queued_signals: list[int] = []
        self.delivered_signals: list[int] = []
        self._holds_outputs = False
        self._grandchildren: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[None] | None = None
        self._after_thaw: Callable[[], None] | None = None
        if piped:
            self._make_pipes()

    def _make_pipes(self) -> None:
        if self.config.stdin or not self.system.null_stdin:
            self.stdin = FakePipe()
            self.stdin.readers += 1
            # The write end's second copy, which makes closing ours alone not enough.
            self.stdin.writers += 1
            self.keeper_holds_stdin = True
        self.stdout = FakePipe()
        if not self.config.terminal:
            self.stderr = FakePipe()
        self._holds_outputs = True
        self._hold_outputs()

    # ---- what the platform does with it ----

    def launch(self, program: FakeProgram) -> None:
        """Let it run."""
        self._running = asyncio.create_task(self._run(program), name=f"fake {self.system.id}/{self.name}")

    async def _run(self, program: FakeProgram) -> None:
        try:
            await self.system.thawed()
            result = await program(ProgramContext(self))
        except BrokenPipe:
            self.die(13)
            return
        except Exception:
            self._end(ExitCode(code=70), broken=False)
            raise
        self._end(result if isinstance(result, ExitCode) else ExitCode(code=int(result or 0)), broken=False)

    def signal(self, number: int) -> None:
        """Deliver a signal; a frozen process keeps it until it is thawed.

        Raises: AlreadyStopped, NotSupported (another than KILL where there are no signals).
        """
        if self.ended.is_set():
            raise AlreadyStopped(f"process {self.pid} has ended")
        if number != KILL and not self.system.features.signals:
            raise NotSupported(f"fake: kill({number}): this platform has no signals")
        if self.system.frozen and (number != KILL or self.system.freeze_blocks_kill):
            self.queued_signals.append(number)
            return
        self._deliver(number)

    def _deliver(self, number: int) -> None:
        if self.unkillable:
            self.queued_signals.append(number)
            return
        self.delivered_signals.append(number)
        handler = self.handlers.get(number) if number != KILL else None
        if handler is not None:
            handler()
        elif number not in _IGNORED_BY_DEFAULT:
            self._end(_signalled(number), broken=False)

    def thaw(self) -> None:
        """What waited for the thaw happens."""
        if self._after_thaw is not None:
            after, self._after_thaw = self._after_thaw, None
            after()
        while self.queued_signals and not self.ended.is_set():
            self._deliver(self.queued_signals.pop(0))

    # ---- what a test does with it ----

    def exit(self, code: int = 0) -> None:
        """It ends by itself. Again is nothing."""
        self._end(ExitCode(code=code), broken=False)

    def die(self, signal: int = KILL) -> None:
        """A signal ends it, frozen or not. Again is nothing."""
        self._end(_signalled(signal), broken=False, even_frozen=True)

    def vanish(self, *, broken: bool = False) -> None:
        """It ends, and nobody can know how; with `broken` waiting for it raises BrokenPipe."""
        self._end(None, broken=broken, even_frozen=True)

    def break_pipe(self, code: int = 137) -> None:
        """It ends as a killed compute system does: waiting raises BrokenPipe, its exit code can be asked for."""
        self._end(ExitCode(code=code), broken=True, even_frozen=True)

    def _end(self, code: ExitCode | None, *, broken: bool, even_frozen: bool = False) -> None:
        if self.ended.is_set():
            return
        if self.system.frozen and self.system.freeze_blocks_kill and not even_frozen:
            self._after_thaw = self._after_thaw or (lambda: self._end(code, broken=broken))
            return
        clock = self.system.clock
        if code is not None:
            code = ExitCode(code=code.code, signal=code.signal, finished_mono=clock.mono(), finished_at=clock.wall())
        self.exit_code = code
        self.broken = broken
        self.ended.set()
        if self._running is not None and self._running is not asyncio.current_task():
            self._running.cancel()
        self.close_outputs()
        if self.stdin is not None:
            self.stdin.readers -= 1
            self.close_keeper_stdin()
            self.stdin.changed()
        self.system.process_ended(self)

    # ---- what its program does ----

    async def read_stdin(self, max_bytes: int) -> bytes:
        """For `ProgramContext`."""
        await self.system.thawed()
        if self.stdin is None:
            return b""
        data = await self.stdin.read(max_bytes, lambda: True)
        await self.system.thawed()
        return data

    async def write_output(self, stream: str, data: bytes) -> None:
        """For `ProgramContext`."""
        await self.system.thawed()
        pipe = self.stderr if stream == "stderr" and self.stderr is not None else self.stdout
        if pipe is not None:
            await pipe.write(data, lambda: True)
        await self.system.thawed()

    async def sleep(self, delay_s: float) -> None:
        """For `ProgramContext`."""
        if delay_s == math.inf:
            await asyncio.get_running_loop().create_future()
        await self.system.clock.sleep(delay_s)
        await self.system.thawed()

    def leave_grandchild(self, hold_s: float, writes: bytes) -> None:
        """For `ProgramContext`; the child lives until it lets go or its compute system is ended."""
        self._hold_outputs()

        async def hold() -> None:
            try:
                await self.sleep(hold_s)
                if writes and self.stdout is not None:
                    await self.stdout.write(writes, lambda: True)
            except BrokenPipe:
                return  # it dies of SIGPIPE, and nobody hears of it

        def let_go(child: asyncio.Task[None]) -> None:
            self._grandchildren.discard(child)
            self._release_outputs()

        child = asyncio.create_task(hold(), name=f"fake {self.system.id}/{self.name} grandchild")
        self._grandchildren.add(child)
        child.add_done_callback(let_go)

    def kill_grandchildren(self) -> None:
        """What the end of the compute system does to them."""
        for child in self._grandchildren:
            child.cancel()

    def discard(self) -> None:
        """The test is over: nothing goes on in the background."""
        self.kill_grandchildren()
        if self._running is not None:
            self._running.cancel()

    def close_outputs(self) -> None:
        """Its own copies of the write ends go."""
        if self._holds_outputs:
            self._holds_outputs = False
            self._release_outputs()

    def close_keeper_stdin(self) -> bool:
        """The second copy of stdin's write end goes; returns whether there was one."""
        held, self.keeper_holds_stdin = self.keeper_holds_stdin, False
        if held and self.stdin is not None:
            self.stdin.writers -= 1
            self.stdin.changed()
        return held

    def _hold_outputs(self) -> None:
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.writers += 1

    def _release_outputs(self) -> None:
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.writers -= 1
                pipe.changed()


@dataclass(slots=True)
class SimulatedSystem:
    """One compute system, from its creation until it has ended and is closed.

    Attributes:
        ends_with_init_s: it ends by itself this many seconds after its init; None is never.
        oom_kills, pending_updates: what the runtime will answer; set by a test.
    """

    id: str
    spec: Spec
    features: Features
    clock: Clock
    freeze_blocks_kill: bool
    null_stdin: bool
    servicing: bool = False
    ends_with_init_s: float | None = None
    started: bool = False
    frozen: bool = False
    shutting_down: bool = False
    terminating: bool = False
    oom_kills: int = 0
    oom_ears: list[Callable[[], None]] = field(default_factory=list)
    pending_updates: bool = False
    resources: list[Resources] = field(default_factory=list)
    processes: dict[str, SimulatedProcess] = field(default_factory=dict)
    everyone: list[SimulatedProcess] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _thawed: asyncio.Event = field(default_factory=asyncio.Event)
    _ending: asyncio.Task[None] | None = None

    @property
    def init(self) -> SimulatedProcess:
        """The first process. Raises: InvalidState before there is one."""
        try:
            return self.processes["init"]
        except KeyError:
            raise InvalidState(f"{self.id!r} has no process yet", container=self.id) from None

    @property
    def alive(self) -> list[SimulatedProcess]:
        """Its processes that run, the init first."""
        return [process for process in self.everyone if not process.ended.is_set()]

    async def thawed(self) -> None:
        """Wait while it is frozen."""
        while self.frozen:
            await self._thawed.wait()

    def freeze(self) -> None:
        """Raises: InvalidState when it is frozen already or nothing runs."""
        if self.frozen:
            raise InvalidState(f"{self.id!r} is paused already", container=self.id)
        if not self.alive:
            raise InvalidState(f"nothing runs in {self.id!r}", container=self.id)
        self.frozen = True
        self._thawed.clear()

    def thaw(self) -> None:
        """Raises: InvalidState when it is not frozen."""
        if not self.frozen:
            raise InvalidState(f"{self.id!r} is not paused", container=self.id)
        self.frozen = False
        self._thawed.set()
        for process in self.alive:
            process.thaw()

    def add(self, process: SimulatedProcess) -> None:
        """A process was made."""
        self.processes[process.name] = process
        self.everyone.append(process)

    def ask_to_end(self) -> None:
        """Shut it down: at once without an init, else by asking the init."""
        self.shutting_down = True
        init = self.processes.get("init")
        if init is None or init.ended.is_set():
            self.end()
        elif self.frozen:
            init.queued_signals.append(TERM)
        else:
            init._deliver(TERM)

    def end(self) -> None:
        """End all of it; what is frozen ends when it is thawed."""
        self.terminating = True
        for process in self.alive:
            if self.frozen and self.freeze_blocks_kill:
                process.queued_signals.append(KILL)
            else:
                process._deliver(KILL)
        self._check_ended()

    def oom_kill(self) -> None:
        """A process of it that nobody knows is killed for memory."""
        self.oom_kills += 1
        for ear in tuple(self.oom_ears):
            ear()

    def process_ended(self, process: SimulatedProcess) -> None:
        """One of its processes has ended."""
        if process.name == "init" and not self.terminating:
            if self.shutting_down:
                self.end()
            elif self.ends_with_init_s is not None:
                self._ending = asyncio.create_task(self._end_later(self.ends_with_init_s), name=f"fake {self.id} ends")
        self._check_ended()

    def discard(self) -> None:
        """The test is over: nothing goes on in the background."""
        for process in self.everyone:
            process.discard()
        if self._ending is not None:
            self._ending.cancel()

    async def _end_later(self, delay_s: float) -> None:
        if delay_s == math.inf:
            return
        await self.clock.sleep(delay_s)
        self.end()

    def _check_ended(self) -> None:
        if self.terminating and not self.alive and not self.ended.is_set():
            self.ended.set()
            for process in self.everyone:
                process.kill_grandchildren()


# Default action "ignore" in signal(7): CHLD, CONT, URG, WINCH.
_IGNORED_BY_DEFAULT = frozenset({17, 18, 23, 28})


def _signalled(number: int) -> ExitCode:
    return ExitCode(code=128 + number, signal=number)
