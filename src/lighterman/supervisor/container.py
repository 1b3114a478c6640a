"""One container, in the order in which things happen. Decides nothing (lifecycle/), knows no platform (runtimes/)."""

from __future__ import annotations

import asyncio
import logging
import signal as signals
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import (
    AlreadyClosed,
    AlreadyExists,
    AlreadyStopped,
    InvalidState,
    LightermanError,
    LimitExceeded,
    NotFound,
    NotSupported,
    OperationTimeout,
    ServicingFailed,
)
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.restart import Decision, RestartAfter, RestartManager, RestartRate, RestartRule, RunEnd
from lighterman.runtimes.base import CreateOption, OomCounters, Runtime
from lighterman.runtimes.options import (
    FirstRun,
    Flush,
    OutputSegments,
    Servicing,
    WithCheckpoint,
    WithRestartPolicy,
)
from lighterman.spec import ExitCode, ProcessConfig, Resources, RestartPolicy, Spec
from lighterman.supervisor.backend import Backend
from lighterman.supervisor.delivery import Spawn
from lighterman.supervisor.ending import Ending
from lighterman.supervisor.process import Process, ProcessEnd
from lighterman.supervisor.run import ExecLife, Run

__all__ = ["Container", "Surroundings"]

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container is given to live in."""

    runtime: Runtime
    backend: Backend
    clock: Clock
    watch: Spawn  # a task that ends early when nobody watches any more
    finish: Spawn  # a task that goes on to its end
    tell: Callable[[StateInfo, Callable[[], Awaitable[None]] | None], None]
    unregister: Callable[[Container], None]
    jitter: Callable[[], float]  # from -1 to 1
    restart_rate: RestartRate | None = None


class _AttachFailed(Exception):
    """The backend did not take the streams; its own error is the cause [L14]."""


class Container:
    """Owned by one task, `live`. Verbs ask the owner, or act where they must not wait; cancelled, they stop waiting."""

    def __init__(self, id: str, spec: Spec, options: Sequence[CreateOption], around: Surroundings) -> None:
        self.id = id
        self.spec = spec
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        self.cleanup: asyncio.Task[None] | None = None  # of the run that ended last
        self._around = around
        self._clock = around.clock
        self._options = tuple(option for option in options if not isinstance(option, WithRestartPolicy | FirstRun))
        policies = [option.policy for option in options if isinstance(option, WithRestartPolicy)]
        self._restarts = RestartManager(policies[-1] if policies else RestartPolicy())
        self._manually_stopped = any(option.manually_stopped for option in options if isinstance(option, FirstRun))
        self._aborted = False
        self._generation = max((option.generation for option in options if isinstance(option, FirstRun)), default=1) - 1
        self._seq = 0
        self._run: Run | None = None
        self._end: ProcessEnd | None = None
        self._starting: asyncio.Task[None] | None = None
        self._inbox: deque[tuple[Callable[[Run], Awaitable[None]], asyncio.Future[None]]] = deque()
        self._poke = asyncio.Event()
        self._restart_wait: asyncio.Event | None = None
        self._final: asyncio.Future[StateInfo] = asyncio.get_running_loop().create_future()

    # ---- what you may ask ----------------------------------------------------------------------------------------

    async def signal(self, signal: int) -> None:
        """Deliver one signal to the init process; SIGKILL terminates all of it. Already stopped is not an error [L04].

        Never waits for another verb.
        """
        kill = signal == signals.SIGKILL
        manual = kill or signal == self.spec.stop_signal
        if manual and self._cut_restart_wait():
            return
        run = self._run
        if run is None or run.init is None:
            if manual:
                self._abort()
            elif self._restart_wait is None and not self.gone.is_set():
                raise InvalidState(f"container {self.id} is being started")
            return
        if run.ended:
            # Its end is known and what follows is not decided yet: who asked for a stop wants no restart.
            self._manually_stopped = self._manually_stopped or manual
            return
        marked_before = self._manually_stopped
        if manual:
            self._manually_stopped = True
        try:
            if kill or not self._around.runtime.features().signals:
                await self._end_system(run, kill)
            else:
                await self._within(limits.RUNTIME_CALL_S, "signal", run.init.port.kill(signal))
        except AlreadyStopped:
            return
        except LightermanError:
            if manual and self._run is run and not run.ended:
                self._manually_stopped = marked_before
            raise
        if manual and not kill:
            await self._thaw(run, tell=True)

    async def _end_system(self, run: Run, kill: bool) -> None:
        if not kill:
            # A platform without signals: whatever is asked for, the system is asked to shut down.
            self._around.finish(self._shut_down_quietly(run), f"shutdown {self.id}")
            return
        # A frozen process of cgroup v1 takes note of SIGKILL only once it is thawed: terminate may wait for that.
        run.ending.begin_terminate()
        await asyncio.sleep(0)
        await self._thaw(run, tell=False)
        await run.ending.terminate()

    async def _shut_down_quietly(self, run: Run) -> None:
        try:
            await run.ending.shutdown()
        except LightermanError as failed:
            log.warning("container %s: shutting it down failed: %s", self.id, failed)

    async def _thaw(self, run: Run, *, tell: bool) -> None:
        run.thaw_wanted = True
        if not run.paused and not run.pause_unknown:
            return
        try:
            await self._within(limits.RUNTIME_CALL_S, "resume", run.system.resume())
        except (AlreadyStopped, AlreadyClosed, InvalidState, NotFound, NotSupported):
            run.pause_unknown = False
            return
        self._thawed(run, tell=tell and not run.ended)

    def _thawed(self, run: Run, *, tell: bool) -> None:
        was_told = run.paused or run.restored
        run.paused = run.pause_unknown = run.restored = False
        if was_told and tell:
            self._tell(run, State.RESUME)

    async def stop(self, grace_s: float) -> None:
        """Ask it to end; after `grace_s` seconds terminate it. Returns when its exit is known; the shorter grace wins.

        If cancelled: it is stopped all the same. Raises: LimitExceeded if not even SIGKILL ends it.
        """
        await self._in_own_task(self._stop(grace_s), f"stop {self.id}")

    async def _stop(self, grace_s: float) -> None:
        run = self._run
        if run is None or run.init is None:
            await self.signal(self.spec.stop_signal)
            await self.gone.wait()
            return
        if not run.stopping:
            run.stopping = True
            try:
                async with self._clock.timeout(grace_s):
                    await self.signal(self.spec.stop_signal)
            except TimeoutError:
                log.warning("container %s: the runtime has not delivered its stop signal in %g s", self.id, grace_s)
                grace_s = 0.0
            except LightermanError:
                run.stopping = False
                raise
        if not await self._exits_within(run, grace_s):
            await self.signal(signals.SIGKILL)
            await self._must_exit(run)

    async def terminate(self) -> None:
        """End all of it now. Valid at any moment; returns when the exit is known."""
        run = self._run
        await self._in_own_task(self.signal(signals.SIGKILL), f"kill {self.id}")
        if run is None or run.init is None:
            await self.gone.wait()
        else:
            await self._must_exit(run)

    async def _must_exit(self, run: Run) -> None:
        if not await self._exits_within(run, limits.KILL_WAIT_S):
            assert run.init is not None
            raise LimitExceeded(
                f"container {self.id} is unkillable: pid {run.init.pid} has not ended {limits.KILL_WAIT_S:g} s "
                "after SIGKILL",
                limit="KILL_WAIT_S",
                operation="terminate",
                container=self.id,
            )

    async def _exits_within(self, run: Run, limit_s: float) -> bool:
        assert run.init is not None
        try:
            async with self._clock.timeout(limit_s):
                await run.init.exited.wait()
        except TimeoutError:
            return False
        return True

    async def end_run(self, grace_s: float, restart: str | None) -> None:
        """End this run without marking it as stopped by request; returns when its exit is known.

        If cancelled: it is ended all the same. Raises: InvalidState, LimitExceeded if not even SIGKILL ends it.
        """
        run = self._running()
        run.restart_reason = run.restart_reason or restart
        await self._in_own_task(self._end_run(run, grace_s), f"end the run of {self.id}")

    async def _end_run(self, run: Run, grace_s: float) -> None:
        assert run.init is not None
        # A stop by request that is under way has its own grace, and waits for the same end.
        if grace_s > 0 and self._around.runtime.features().signals:
            try:
                await self._within(limits.RUNTIME_CALL_S, "signal", run.init.port.kill(self.spec.stop_signal))
                await self._thaw(run, tell=True)
            except AlreadyStopped:
                return
            except LightermanError as failed:
                log.warning("container %s: its stop signal can't be delivered: %s", self.id, failed)
                grace_s = 0.0
        elif grace_s > 0:
            self._around.finish(self._shut_down_quietly(run), f"shutdown {self.id}")
        if not await self._exits_within(run, grace_s):
            try:
                await self._end_system(run, kill=True)
            except AlreadyStopped:
                log.debug("container %s ended in the same moment", self.id)
            await self._must_exit(run)

    async def pause(self) -> None:
        """Freeze all of it, and tell PAUSE. Raises: InvalidState if it is paused, NotSupported."""
        await self._in_order(self._pause)

    async def _pause(self, run: Run) -> None:
        if run.paused:
            raise InvalidState(f"container {self.id} is paused already")
        run.pause_unknown = True
        await run.system.pause()
        run.paused, run.pause_unknown = True, False
        self._tell(run, State.PAUSE)
        if run.thaw_wanted:
            await self._thaw(run, tell=True)

    async def resume(self) -> None:
        """Thaw it, and tell RESUME. Raises: InvalidState if it is not paused, NotSupported."""
        await self._in_order(self._resume)

    async def _resume(self, run: Run) -> None:
        if not run.paused and not run.pause_unknown:
            raise InvalidState(f"container {self.id} is not paused")
        await run.system.resume()
        if run.paused or run.pause_unknown:
            self._thawed(run, tell=True)

    async def update_resources(self, resources: Resources) -> None:
        """Change its limits while it runs."""
        await self._in_order(lambda run: run.system.update_resources(resources))

    async def checkpoint(self, name: str, directory: str, *, leave_running: bool) -> None:
        """Write its state to disk."""
        # Its size is that of the memory: no fixed bound fits.
        await self._in_order(lambda run: run.system.checkpoint(name, directory, leave_running=leave_running), None)

    async def add_process(self, name: str, config: ProcessConfig) -> int:
        """Start an exec process and return its pid. Execs start side by side; none waits for another [L03]."""
        run = self._running()
        if name in run.execs or name == "init":
            raise AlreadyExists(f"container {self.id} runs a process {name!r} already")
        if not config.cwd:
            config = msgspec.structs.replace(config, cwd=self.spec.process.cwd)
        life = ExecLife(name)
        run.execs[name] = life
        pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        life.task = self._around.watch(self._exec(run, life, config, pid), f"exec {name} in {self.id}")
        return await asyncio.shield(pid)

    def running_system(self) -> Run:
        """The run whose statistics and processes can be asked for. Raises: InvalidState where nothing runs."""
        return self._running()

    async def wait(self) -> StateInfo:
        """Its EXIT, once that has been told; a restart is not the end."""
        return await asyncio.shield(self._final)

    def set_restart_policy(self, policy: RestartPolicy | RestartRule) -> None:
        """Counts from the next decision on [L35]."""
        self._restarts.policy = policy

    def cancel_restart(self) -> bool:
        """End the wait for the next run, if there is one: the container becomes exited [L34]."""
        return self._cut_restart_wait()

    async def undo(self) -> None:
        """For a create that was cancelled: end what there is, and return when the container is gone."""
        if not self._abort():
            await self.signal(signals.SIGKILL)
        await self.gone.wait()

    # ---- the whole life ------------------------------------------------------------------------------------------

    async def live(self, *, restore: bool = False) -> None:
        """Own this container until its EXIT is told. Cancelled: stop watching, leave it running."""
        try:
            run = await self._first_run(restore)
            while run is not None:
                watching = self._around.watch(self._watch(run), f"watch {self.id}")
                await self._serve_until_exit(run)
                await watching
                run = await self._settle(run)
        finally:
            self._leave()

    # ---- the chapters, in the same order -------------------------------------------------------------------------

    async def _first_run(self, restore: bool) -> Run | None:
        try:
            await (self._restore_run() if restore else self._start_in_own_task())
        except _AttachFailed as failed:
            self._fail(failed.__cause__)
            return None
        except Exception as failed:  # noqa: BLE001  whatever it is, who asked for the container is told
            self._fail(failed)
            return None
        self._succeed()
        return self._run

    async def _start_in_own_task(self) -> None:
        """In a task that a cancelled create, a kill or a stop can end; the owner itself goes on."""
        if self._aborted:
            raise InvalidState(f"container {self.id} was stopped before it was started")
        self._generation += 1
        self._manually_stopped = False
        failure: list[BaseException] = []

        async def start() -> None:
            try:
                await self._start()
            except asyncio.CancelledError:
                if not self._aborted:
                    raise
                failure.append(InvalidState(f"container {self.id} was stopped while it was being started"))
            except BaseException as failed:  # noqa: BLE001  raised again below, in the owner
                failure.append(failed)

        self._starting = self._around.watch(start(), f"start {self.id}")
        try:
            await asyncio.shield(self._starting)
        finally:
            self._starting = None
        if failure:
            raise failure[0]

    async def _start(self) -> None:
        """The order of specs/lifecycle.md §3; on a failure nothing is left, and the first error is raised."""
        system = await self._around.runtime.create(self.id, self.spec, self._options_of_run())
        run = Run(self._generation, system, Ending(system, self._clock, self._around.finish))
        try:
            async with self._clock.timeout(limits.START_S):
                await system.start()
                run.init = await self._make_init(run)
                if not self._is_servicing:
                    await run.init.connect(self.id, run.generation, self.spec.os_build)
            if self._is_servicing:
                await self._service(run)
                return
            await self._attach(run, run.init)
        except TimeoutError as late:
            first = OperationTimeout(
                f"container {self.id} had not started after {limits.START_S:g} s", operation="start", container=self.id
            )
            await self._undo(run, first)
            raise first from late
        except BaseException as first:
            await self._undo(run, first)
            raise
        self._run = run
        self._tell(run, State.START, started_at=run.init.started_at, started_mono=run.init.started_mono)
        self._close_unwanted_stdin(run.init)

    def _options_of_run(self) -> list[CreateOption]:
        return [
            msgspec.structs.replace(option, generation=self._generation)
            if isinstance(option, OutputSegments)
            else option
            for option in self._options
        ]

    async def _make_init(self, run: Run) -> Process:
        for option in self._options:
            if isinstance(option, WithCheckpoint) and self._generation == 1:
                port = await run.system.restore(option.name, option.directory)
                break
        else:
            port = await run.system.create_process(self.spec.process)
        return Process("init", port, self.spec.process, self._clock)

    async def _attach(self, run: Run, process: Process) -> None:
        assert process.streams is not None
        try:
            await self._around.backend.attach_streams(self.id, process.name, process.streams)
        except Exception as failed:
            raise _AttachFailed from failed

    def _close_unwanted_stdin(self, process: Process) -> None:
        # In a task of its own: a runtime that does not answer must not keep anybody from watching for the exit.
        if process.has_unwanted_stdin:
            self._around.finish(process.close_unwanted_stdin(), f"close stdin of {process.name} in {self.id}")

    @property
    def _is_servicing(self) -> bool:
        return any(isinstance(option, Servicing) for option in self._options)

    async def _service(self, run: Run) -> None:
        """A servicing container runs to its end here; no streams, no state changes [L12]."""
        assert run.init is not None
        end = await run.init.watch()
        await run.init.forget()
        if end.code is None or end.code.code != 0:
            code = -1 if end.code is None else end.code.code
            log.warning("servicing container %s ended with code %d", self.id, code)
            raise ServicingFailed(
                f"servicing container {self.id} ended with code {code}", exit_code=code, container=self.id
            )
        try:
            async with self._clock.timeout(limits.SERVICING_EXIT_S):
                await run.system.wait()
        except (LightermanError, TimeoutError) as failed:
            log.warning("servicing container %s: waiting for the system's own end failed: %r", self.id, failed)
        await self._close_system(run)

    async def _undo(self, run: Run, first: BaseException) -> None:
        """Terminate and close what a failed start has made; the first error stays the one that is raised."""

        async def undo() -> None:
            await self._end_what_is_left(run, first)
            await self._close_what_is_left(run)

        # In a task of its own: who is cancelled twice, or a client that closes, must not leave half of it.
        self.cleanup = self._around.finish(undo(), f"undo the start of {self.id}")
        await asyncio.shield(self.cleanup)

    async def _end_what_is_left(self, run: Run, first: BaseException) -> None:
        try:
            await run.ending.terminate()
            if run.init is not None and not run.init.exited.is_set() and not await self._ended_quietly(run.init):
                log.error("container %s: its program did not end after a failed start", self.id)
        except Exception as failed:  # noqa: BLE001  the first error is the one to raise
            log.error("container %s: terminating it after %r failed: %s", self.id, first, failed)
        else:
            log.debug("container %s: terminated after %r", self.id, first)

    async def _close_what_is_left(self, run: Run) -> None:
        if run.init is not None:
            if run.init.streams is not None:
                for stream in run.init.streams.readable:
                    await stream.close()
            await run.init.close()
            await run.init.forget()
        await self._close_system(run)

    async def _ended_quietly(self, process: Process) -> bool:
        try:
            async with self._clock.timeout(limits.KILL_WAIT_S):
                await process.port.wait()
        except TimeoutError:
            return False
        except LightermanError:
            return True
        return True

    async def _restore_run(self) -> None:
        """Re-attach to what outlived the engine [L06]; what can't be watched any more is ended and told of."""
        self._generation += 1
        try:
            system = await self._within(limits.START_S, "restore", self._around.runtime.open(self.id))
        except LightermanError as gone:
            self._tell_lost(str(gone))
            return
        run = Run(
            self._generation,
            system,
            Ending(system, self._clock, self._around.finish),
            pause_unknown=True,
            restored=True,
        )
        try:
            await self._within(limits.START_S, "restore", self._reopen_init(run))
        except Exception as failed:  # noqa: BLE001  whatever it is, the container must not run on with nobody watching
            await self._end_what_is_left(run, failed)
            code = await run.init.ask_exit_code() if run.init is not None else None
            await self._close_what_is_left(run)
            self._tell_lost(str(failed.__cause__ or failed), run, code)
            return
        assert run.init is not None
        self._run = run
        self._tell(run, State.RESTORE, started_at=run.init.started_at, started_mono=run.init.started_mono)
        for name in await self._exec_ids(run):
            await self._restore_exec(run, name)

    async def _reopen_init(self, run: Run) -> None:
        run.init = Process("init", await run.system.open_process("init"), self.spec.process, self._clock)
        await run.init.connect(self.id, run.generation, self.spec.os_build)
        await self._attach(run, run.init)

    async def _exec_ids(self, run: Run) -> Sequence[str]:
        try:
            return await run.system.exec_ids()
        except LightermanError as failed:
            log.warning("container %s: its exec processes can't be listed: %s", self.id, failed)
            return ()

    async def _restore_exec(self, run: Run, name: str) -> None:
        life = ExecLife(name)
        try:
            life.process = Process(name, await run.system.open_process(name), self.spec.process, self._clock)
            await life.process.connect(self.id, run.generation, self.spec.os_build)
            await self._attach(run, life.process)
        except (LightermanError, _AttachFailed) as failed:
            log.warning("container %s: exec %s can't be taken up again: %s", self.id, name, failed)
            return
        run.execs[name] = life
        life.task = self._around.watch(self._exec_to_end(run, life, life.process), f"exec {name} in {self.id}")

    async def _watch(self, run: Run) -> None:
        assert run.init is not None
        try:
            self._end = await run.init.watch()
        finally:
            self._poke.set()

    async def _serve_until_exit(self, run: Run) -> None:
        """Carry out verbs in their order, until the exit is observed; a verb that hangs does not hide the exit."""
        assert run.init is not None
        while not run.ended:
            await self._poke.wait()
            self._poke.clear()
            while self._inbox and not run.ended:
                act, done = self._inbox.popleft()
                await self._carry_out(run, act, done)
        self._refuse_inbox()

    async def _carry_out(self, run: Run, act: Callable[[Run], Awaitable[None]], done: asyncio.Future[None]) -> None:
        assert run.init is not None

        async def carry_out() -> None:
            try:
                await act(run)
            except asyncio.CancelledError:
                _fail(done, AlreadyStopped(f"container {self.id} ended meanwhile", container=self.id))
                raise
            except Exception as failed:  # noqa: BLE001  belongs to who asked
                _fail(done, failed)
            else:
                _succeed(done)

        verb = self._around.watch(carry_out(), f"verb of {self.id}")
        exited = asyncio.ensure_future(run.init.exited.wait())
        try:
            await asyncio.wait((verb, exited), return_when=asyncio.FIRST_COMPLETED)
        finally:
            exited.cancel()
            verb.cancel()

    async def _exec(self, run: Run, life: ExecLife, config: ProcessConfig, pid: asyncio.Future[int]) -> None:
        """An exec's whole life: start, tell START_PROCESS, watch, tell EXIT_PROCESS."""
        try:
            process = await self._start_exec(run, life, config)
        except BaseException as failed:
            run.execs.pop(life.name, None)
            if isinstance(failed, asyncio.CancelledError):
                _fail(pid, AlreadyStopped(f"container {self.id} ended meanwhile", container=self.id))
                raise
            _fail(pid, failed.__cause__ if isinstance(failed, _AttachFailed) and failed.__cause__ else failed)
            return
        life.told_start = True
        self._tell(
            run,
            State.START_PROCESS,
            process=process,
            started_at=process.started_at,
            started_mono=process.started_mono,
        )
        _succeed(pid, process.pid)
        self._close_unwanted_stdin(process)
        await self._exec_to_end(run, life, process)

    async def _start_exec(self, run: Run, life: ExecLife, config: ProcessConfig) -> Process:
        try:
            async with self._clock.timeout(limits.EXEC_START_S):
                port = await run.system.create_process(config, exec_id=life.name)
        except TimeoutError as late:
            raise OperationTimeout(
                f"process {life.name!r} of container {self.id} had not started after {limits.EXEC_START_S:g} s",
                operation="exec",
                container=self.id,
            ) from late
        process = Process(life.name, port, config, self._clock)
        try:
            await process.connect(self.id, run.generation, self.spec.os_build)
            await self._attach(run, process)
        except BaseException:
            # In a task of its own: the container's end gives up what is being started, and must not leave half of it.
            await asyncio.shield(self._around.finish(self._undo_exec(process), f"undo exec {life.name} in {self.id}"))
            raise
        life.process = process
        return process

    async def _undo_exec(self, process: Process) -> None:
        await self._kill_exec(process)
        await self._ended_quietly(process)
        await process.close()
        await process.forget()

    async def _exec_to_end(self, run: Run, life: ExecLife, process: Process) -> None:
        try:
            end = await process.watch()
        except asyncio.CancelledError:
            life.task = None
            raise
        self._forget_exec(run, life, end)

    def _forget_exec(self, run: Run, life: ExecLife, end: ProcessEnd) -> None:
        """[L23]"""
        assert life.process is not None
        if run.execs.pop(life.name, None) is None:
            return
        how = _how_it_ended(life.process, end)
        self._tell(run, State.EXIT_PROCESS, process=life.process, then=life.process.forget, **how)

    async def _kill_exec(self, process: Process) -> None:
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                await process.port.kill(signals.SIGKILL)
        except AlreadyStopped:
            pass
        except Exception as failed:  # noqa: BLE001  a failing runtime must not keep the exit from being told
            log.warning("container %s: killing exec %s failed: %r", self.id, process.name, failed)

    async def _settle(self, run: Run) -> Run | None:
        """The init process has ended, its output is in safety: end the rest, decide, tell. Returns the next run."""
        assert run.init is not None
        end, self._end = self._end, None
        assert end is not None
        update_pending = await self._has_pending_updates(run)
        await self._end_execs(run)
        counters = await self._oom_counters(run)
        await self._clean_up(run)
        ran_for_s = max(0.0, end.finished_mono - run.init.started_mono)
        decision = self._decide(
            RunEnd(
                exit_code=end.code.code if end.code else -1,
                known=end.code is not None,
                signal=end.code.signal if end.code else None,
                oom_killed=bool(counters and counters.oom_kills),
                ran_for_s=ran_for_s,
                finished_at=end.finished_at,
            ),
            forced=run.restart_reason,
        )
        self._run = None
        how = _how_it_ended(run.init, end)
        how["update_pending"] = update_pending
        if counters is not None:
            how |= {"oom_killed": bool(counters.oom_kills), **msgspec.structs.asdict(counters)}
        how["error"] = run.cleanup_error
        if not isinstance(decision, RestartAfter):
            self._tell_exit(run, how)
            return None
        self._tell(run, State.RESTART, then=run.init.forget, **(how | {"reason": decision.reason}))
        return await self._restart(run, decision, how)

    def _decide(self, end: RunEnd, forced: str | None = None) -> Decision:
        decision = self._restarts.decide(
            end,
            manually_stopped=self._manually_stopped,
            ran_for_s=end.ran_for_s,
            now=self._clock.mono(),
            jitter=self._around.jitter(),
            forced=forced,
        )
        if not isinstance(decision, RestartAfter) and decision.error is not None:
            log.error("container %s is not started again: %s", self.id, decision.reason, exc_info=decision.error)
        return decision

    async def _has_pending_updates(self, run: Run) -> bool:
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                return await run.system.has_pending_updates()
        except NotSupported:
            return False
        except Exception as failed:  # noqa: BLE001  a failing runtime must not keep the exit from being told
            log.warning("container %s: asking for pending updates failed: %r", self.id, failed)
            return False

    async def _oom_counters(self, run: Run) -> OomCounters | None:
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                return await run.system.oom_counters()
        except NotSupported:
            return None
        except Exception as failed:  # noqa: BLE001  likewise
            log.warning("container %s: reading the OOM counters failed: %r", self.id, failed)
            return None

    async def _end_execs(self, run: Run) -> None:
        """End the exec processes that are still alive; their ends are told first [L25]."""
        for life in run.execs.values():
            if life.process is None and life.task is not None:
                life.task.cancel()
        alive = [life.process for life in run.execs.values() if life.process and not life.process.exited.is_set()]
        await asyncio.gather(*(self._kill_exec(process) for process in alive))
        tasks = [life.task for life in run.execs.values() if life.task is not None]
        if not tasks:
            return
        try:
            async with self._clock.timeout(limits.KILL_WAIT_S + limits.DRAIN_S):
                await asyncio.wait(tasks)
        except TimeoutError:
            log.error("container %s: exec processes did not end: %s", self.id, ", ".join(run.execs))
        for life in list(run.execs.values()):
            if life.task is not None:
                life.task.cancel()
            if life.process is not None and life.told_start:
                now = ProcessEnd(None, self._clock.mono(), self._clock.wall(), ())
                self._forget_exec(run, life, now)
                await life.process.close()
        run.execs.clear()

    async def _clean_up(self, run: Run) -> None:
        """Shut the compute system down and close it; what takes longer than SETTLE_S goes on in the background."""
        self.cleanup = self._around.finish(self._shut_down_and_close(run), f"clean up {self.id}")
        try:
            async with self._clock.timeout(limits.SETTLE_S):
                await asyncio.shield(self.cleanup)
        except TimeoutError:
            log.warning("container %s: its clean-up takes longer than %g s", self.id, limits.SETTLE_S)

    async def _shut_down_and_close(self, run: Run) -> None:
        try:
            await run.ending.shutdown()
        except Exception as failed:  # noqa: BLE001  likewise
            log.warning("container %s: shutting it down failed: %s", self.id, failed)
            run.cleanup_error = failed
        await self._close_system(run)

    async def _close_system(self, run: Run) -> None:
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                await run.system.close()
        except AlreadyClosed:
            return
        except Exception as failed:  # noqa: BLE001  likewise
            log.warning("container %s: closing it failed: %r", self.id, failed)
            run.cleanup_error = run.cleanup_error or failed

    async def _restart(self, ended: Run, decision: RestartAfter, how: dict[str, Any]) -> Run | None:
        """Wait the back-off and begin the next run; a run that can't be made goes to the decision again [L36]."""
        while True:
            if await self._wait_cut_short(decision.delay_s):
                self._tell_exit(ended, how)
                return None
            if self.cleanup is not None:
                await asyncio.shield(self.cleanup)
            self._options = tuple(_for_another_run(self._options))
            try:
                await self._start_in_own_task()
            except _AttachFailed as failed:
                reason: BaseException | None = failed.__cause__
                break
            except Exception as failed:  # noqa: BLE001  a run that ended at once, for a reason that is told
                reason = failed
                log.warning("container %s: starting it again failed: %s", self.id, failed)
            else:
                return self._run
            if self._aborted:
                self._tell_exit(ended, how)
                return None
            next_one = self._decide(RunEnd(started=False, finished_at=self._clock.wall()))
            if not isinstance(next_one, RestartAfter):
                break
            decision = next_one
        self._tell_exit(ended, how | {"reason": f"not started: {reason}", "not_started": True, "error": reason})
        return None

    async def _wait_cut_short(self, delay_s: float) -> bool:
        self._restart_wait = cut = asyncio.Event()
        rate = self._around.restart_rate
        try:
            if await self._is_set_within(cut, delay_s):
                return True
            held_s = rate.take(self._clock.mono()) if rate is not None else 0.0
            return held_s > 0 and await self._is_set_within(cut, held_s)
        finally:
            self._restart_wait = None
            self._restarts.wait_over()

    async def _is_set_within(self, event: asyncio.Event, limit_s: float) -> bool:
        try:
            async with self._clock.timeout(limit_s):
                await event.wait()
        except TimeoutError:
            return False
        return True

    def _leave(self) -> None:
        self._refuse_inbox()
        self._around.unregister(self)
        self.gone.set()
        nobody = InvalidState(f"container {self.id} is no longer watched", container=self.id)
        _fail(self.started, nobody)
        _fail(self._final, nobody)

    # ---- what the chapters and the verbs share -------------------------------------------------------------------

    def _running(self) -> Run:
        if self._run is None or self._run.ended:
            raise InvalidState(f"container {self.id} is not running")
        return self._run

    async def _in_order(
        self, act: Callable[[Run], Awaitable[None]], limit_s: float | None = limits.RUNTIME_CALL_S
    ) -> None:
        self._running()

        async def bounded(run: Run) -> None:
            await self._within(limit_s, "verb", act(run))

        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.append((bounded, done))
        self._poke.set()
        await asyncio.shield(done)

    async def _within(self, limit_s: float | None, operation: str, call: Awaitable[T]) -> T:
        """A call of the runtime that has to end: one that hangs must not hang who asked, nor who comes next."""
        try:
            async with self._clock.timeout(limit_s):
                return await call
        except TimeoutError as late:
            raise OperationTimeout(
                f"{operation} of container {self.id} was not done after {limit_s:g} s",
                operation=operation,
                container=self.id,
            ) from late

    async def ask(self, operation: str, question: Callable[[Run], Awaitable[T]]) -> T:
        """Ask the runtime about what runs. Raises: InvalidState where nothing runs, OperationTimeout."""
        return await self._within(limits.RUNTIME_CALL_S, operation, question(self._running()))

    async def _in_own_task(self, act: Awaitable[None], name: str) -> None:
        """What was asked for goes on when who asked is cancelled."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def carry_out() -> None:
            try:
                await act
            except asyncio.CancelledError:
                _fail(done, InvalidState(f"container {self.id} is no longer watched", container=self.id))
                raise
            except Exception as failed:  # noqa: BLE001  belongs to who asked
                _fail(done, failed)
            else:
                _succeed(done)

        self._around.finish(carry_out(), name)
        await asyncio.shield(done)

    def _refuse_inbox(self) -> None:
        while self._inbox:
            _, done = self._inbox.popleft()
            _fail(done, AlreadyStopped(f"container {self.id} ended meanwhile", container=self.id))

    def _abort(self) -> bool:
        """End a start that is under way, or that waits for the old run's clean-up; False when it has started."""
        if self._run is not None:
            return False
        self._manually_stopped = True
        if self._starting is not None and not self._aborted:
            self._starting.cancel()
        self._aborted = True
        return True

    def _cut_restart_wait(self) -> bool:
        if self._restart_wait is None:
            return False
        self._manually_stopped = True
        self._restart_wait.set()
        return True

    def _succeed(self) -> None:
        _succeed(self.started)

    def _fail(self, failed: BaseException | None) -> None:
        _fail(self.started, failed or InvalidState(f"container {self.id} was not started"))

    def _tell_exit(self, run: Run | None, how: dict[str, Any]) -> None:
        """The id is free when EXIT is told: a backend may create it anew while it hears of it [L01, L24]."""
        self._around.unregister(self)
        then = run.init.forget if run and run.init else None
        self._final.set_result(self._tell(run, State.EXIT, then=then, **how))

    def _tell_lost(self, reason: str, run: Run | None = None, code: ExitCode | None = None) -> None:
        how: dict[str, Any] = {"exit_code": -1, "exit_code_known": False}
        if run is not None and run.init is not None and code is not None:
            finished = (code.finished_mono or self._clock.mono(), code.finished_at or self._clock.wall())
            how = _how_it_ended(run.init, ProcessEnd(code, *finished, ()))
        self._tell_exit(run, how | {"reason": reason})

    def _tell(
        self,
        run: Run | None,
        state: State,
        *,
        process: Process | None = None,
        then: Callable[[], Awaitable[None]] | None = None,
        **fields: Any,
    ) -> StateInfo:
        """The only door: every change that anybody hears of is made here, in order.

        Args: then: what may happen once the backend has heard of it without an error.
        """
        process = process or (run.init if run else None)
        self._seq += 1
        info = StateInfo(
            state=state,
            container_id=self.id,
            generation=run.generation if run else self._generation,
            seq=self._seq,
            process_id=process.name if process else "init",
            pid=process.pid if process else 0,
            **fields,
        )
        self._around.tell(info, then)
        return info


def _how_it_ended(process: Process, end: ProcessEnd) -> dict[str, Any]:
    code = end.code or ExitCode(code=-1)
    return {
        "exit_code": code.code,
        "exit_code_known": end.code is not None,
        "signal": code.signal,
        "reason": code.reason if end.code is not None else process.unknown,
        "drained": end.drained,
        # A program can have ended before the runtime that started it has returned.
        "started_at": min(process.started_at, end.finished_at),
        "finished_at": end.finished_at,
        "started_mono": min(process.started_mono, end.finished_mono),
        "finished_mono": end.finished_mono,
    }


def _for_another_run(options: Sequence[CreateOption]) -> list[CreateOption]:
    kept = [option for option in options if not isinstance(option, WithCheckpoint)]
    return [Flush(ignore_flushes_during_boot=False) if isinstance(option, Flush) else option for option in kept]


def _succeed(done: asyncio.Future[Any], value: Any = None) -> None:
    if not done.done():
        done.set_result(value)


def _fail(done: asyncio.Future[Any], failed: BaseException) -> None:
    if not done.done():
        done.set_exception(failed)
        done.exception()  # who asked may have been cancelled meanwhile
