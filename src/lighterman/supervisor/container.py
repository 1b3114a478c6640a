"""One container, in the order in which things happen. Decides nothing (lifecycle/), knows no platform (runtimes/)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from lighterman import limits
from lighterman.errors import (
    AlreadyStopped,
    InvalidState,
    LightermanError,
    OperationTimeout,
    ServicingFailed,
    Unkillable,
)
from lighterman.flag import Flag
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.restart import Decision, RestartAfter, RestartManager, RestartRule, RunEnd, StayDown
from lighterman.runtimes.base import SIGKILL, CreateOption
from lighterman.scarcity import is_for_lack_of_descriptors
from lighterman.spec import ExitCode, ProcessConfig, Resources, RestartPolicy, Spec
from lighterman.supervisor.answers import fail, in_own_task, succeed
from lighterman.supervisor.backend import AttachFailed
from lighterman.supervisor.bounds import Bounds
from lighterman.supervisor.choices import Chosen
from lighterman.supervisor.closing import Closing
from lighterman.supervisor.delivery import Then
from lighterman.supervisor.ending import Ending
from lighterman.supervisor.execs import Execs
from lighterman.supervisor.process import Process, ProcessEnd
from lighterman.supervisor.restart_wait import RestartWait
from lighterman.supervisor.run import Run
from lighterman.supervisor.stopping import Stopping
from lighterman.supervisor.surroundings import Surroundings
from lighterman.supervisor.telling import Teller, how_it_ended, how_it_was_found
from lighterman.supervisor.verbs import VerbQueue

__all__ = ["Container"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class Container:
    """Owned by one task, `live`. Verbs ask the owner, or act where they must not wait; cancelled, they stop waiting.

    Args: restores: its first run is what outlived an earlier engine.
    """

    def __init__(
        self, id: str, spec: Spec, options: Sequence[CreateOption], around: Surroundings, *, restores: bool = False
    ) -> None:
        self.id = id
        self.spec = spec
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = Flag()
        self.cleanup: asyncio.Task[None] | None = None  # of the run that ended last
        self._around = around
        self._clock = around.clock
        self._chosen = Chosen(options)
        self._first = self._chosen.first
        self._restarts = RestartManager(self._chosen.policy, self._first.restarts)
        self._manually_stopped = self._first.manually_stopped
        self._aborted = False
        self._restores = restores
        self._known = Flag()  # whether there is something to be stopped: an earlier engine's run is, or is gone
        if not restores:
            self._known.set()
        self._generation = self._first.generation - 1
        self._run: Run | None = None
        self._end: ProcessEnd | None = None
        self._starting: asyncio.Task[None] | None = None
        self._teller = Teller(id, around.tell)
        self._closing = Closing(id, self._clock)
        self._bounds = Bounds(id, self._clock)
        self._stopping = Stopping(id, around.runtime, self._clock, around.finish, self._bounds, self._tell)
        self._verbs = VerbQueue(id, around.watch)
        self._execs = Execs(
            id,
            spec,
            clock=self._clock,
            watch=around.watch,
            finish=around.finish,
            tell=self._teller,
            closing=self._closing,
            attach=self._attach,
        )
        self._restart_wait = RestartWait(self._bounds, self._clock, around.restart_rate)
        self._final: asyncio.Future[StateInfo] = asyncio.get_running_loop().create_future()

    # ---- what you may ask ----------------------------------------------------------------------------------------

    async def signal(self, signal: int) -> None:
        """Deliver one signal to the init process; SIGKILL terminates all of it. Already stopped is not an error [L04].

        Never waits for another verb; for a restore that is under way.
        """
        await self._known.wait()
        kill = signal == SIGKILL
        manual = kill or signal == self.spec.stop_signal
        if manual and self._cut_restart_wait():
            return
        run = self._run
        if run is None or run.init is None:
            if manual:
                self._abort()
            elif not self._restart_wait.goes_on and not self.gone.is_set():
                raise InvalidState(f"container {self.id} is being started")
            return
        if run.ended:
            # Its end is known and what follows is not decided yet: who asked for a stop wants no restart.
            self._manually_stopped = self._manually_stopped or manual
            return
        if manual:
            if run.stop_signals == 0:
                run.marked_before = self._manually_stopped
            run.stop_signals += 1
            self._manually_stopped = True
        try:
            if kill or not self._around.runtime.features().signals:
                await self._stopping.end_system(run, kill=kill)
            else:
                await self._bounds.within(limits.RUNTIME_CALL_S, "signal", run.init.port.kill(signal))
        except AlreadyStopped:
            return
        except Unkillable:
            raise  # it has its SIGKILL, and ends as asked once it can
        except LightermanError:
            if manual:
                run.stop_signals -= 1
                # Another's that was delivered, or still may be, counts.
                if run.stop_signals == 0 and self._run is run and not run.ended:
                    self._manually_stopped = run.marked_before
            raise
        if manual and not kill:
            await self._stopping.thaw(run, tell=True)

    async def stop(self, grace_s: float) -> None:
        """Ask it to end; after `grace_s` seconds terminate it. Returns when its exit is known; the shorter grace wins.

        If cancelled: it is stopped all the same. Raises: Unkillable if not even SIGKILL ends it.
        """
        await self._in_own_task(self._stop(grace_s), f"stop {self.id}")

    async def _stop(self, grace_s: float) -> None:
        await self._known.wait()
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
        if not await self._stopping.exits_within(run, grace_s):
            await self.signal(SIGKILL)
            await self._stopping.must_exit(run)

    async def terminate(self) -> None:
        """End all of it now. Valid at any moment; returns when the exit is known."""
        await self._known.wait()
        run = self._run
        await self._in_own_task(self.signal(SIGKILL), f"kill {self.id}")
        if run is None or run.init is None:
            await self.gone.wait()
        else:
            await self._stopping.must_exit(run)

    async def end_run(self, grace_s: float, restart: str | None) -> None:
        """End this run without marking it as stopped by request; returns when its exit is known.

        If cancelled: it is ended all the same. Raises: InvalidState, Unkillable if not even SIGKILL ends it.
        """
        run = self._running()
        run.restart_reason = run.restart_reason or restart
        ending = self._stopping.end_run(run, self.spec.stop_signal, grace_s)
        await self._in_own_task(ending, f"end the run of {self.id}")

    async def pause(self) -> None:
        """Freeze all of it, and tell PAUSE. Raises: InvalidState if it is paused, NotSupported."""
        await self._in_order(self._pause)

    async def _pause(self, run: Run) -> None:
        if run.paused:
            raise InvalidState(f"container {self.id} is paused already")
        if run.killed_at is not None:
            raise InvalidState(f"container {self.id} is being killed", operation="pause", container=self.id)
        # A stop signal that it has survived is no reason to thaw it; a stop that goes on is.
        run.thaw_wanted = run.stopping
        run.pause_unknown = True
        # Whoever thaws it meanwhile thaws this pause, of which nothing was told, not one before the engine's time.
        restored, run.restored = run.restored, False
        try:
            await run.system.pause()
        except BaseException:
            run.restored = restored
            raise
        run.paused, run.pause_unknown = True, False
        self._tell(run, State.PAUSE)
        if run.thaw_wanted:
            await self._stopping.thaw(run, tell=True)

    async def resume(self) -> None:
        """Thaw it, and tell RESUME. Raises: InvalidState if it is not paused, NotSupported."""
        await self._in_order(self._resume)

    async def _resume(self, run: Run) -> None:
        if not run.paused and not run.pause_unknown:
            raise InvalidState(f"container {self.id} is not paused")
        await run.system.resume()
        if run.paused or run.pause_unknown:
            self._stopping.thawed(run, tell=True)

    async def update_resources(self, resources: Resources) -> None:
        """Change its limits while it runs."""
        await self._in_order(lambda run: run.system.update_resources(resources))

    async def checkpoint(self, name: str, directory: str, *, leave_running: bool) -> None:
        """Write its state to disk. Unless it is left running, it ends by that, and as one that was asked to end."""
        making: list[asyncio.Task[None]] = []

        async def make(run: Run) -> None:
            if run.execs and self._around.runtime.features().checkpoint:
                raise InvalidState(
                    f"container {self.id} runs exec processes, which can't be a part of a checkpoint: end them first",
                    operation="checkpoint",
                    container=self.id,
                )
            run.saving = name
            try:
                await save(run)
            finally:
                run.saving = None

        async def save(run: Run) -> None:
            run.ends_by_checkpoint = not leave_running
            # Its size is that of the memory: no fixed bound fits.
            work = run.system.checkpoint(name, directory, leave_running=leave_running)
            making.append(self._around.finish(work, f"checkpoint {self.id}"))
            try:
                await asyncio.shield(making[0])
            except LightermanError:
                if not run.ended:
                    run.ends_by_checkpoint = False
                raise

        try:
            await self._in_order(make, None)
        except AlreadyStopped:
            if not making:
                raise
            # Its end comes before the answer, and is what was asked for.
            await asyncio.shield(making[0])

    async def add_process(self, name: str, config: ProcessConfig) -> int:
        """Start an exec process and return its pid. Execs start side by side; none waits for another [L03]."""
        run = self._running()
        if run.paused:
            raise InvalidState(f"container {self.id} is paused: resume it first", operation="exec", container=self.id)
        if run.saving is not None:
            raise InvalidState(
                f"container {self.id} is being saved as checkpoint {run.saving!r}: start processes when that is done",
                operation="exec",
                container=self.id,
            )
        return await self._execs.add(run, name, config)

    def running_system(self) -> Run:
        """The run whose statistics and processes can be asked for. Raises: InvalidState where nothing runs."""
        return self._running()

    @property
    def is_running(self) -> bool:
        """Whether a run is under way, whose end has not been observed."""
        return self._run is not None and not self._run.ended

    async def ends_within(self, limit_s: float) -> bool:
        """Whether no run is under way, or the end of the one that is is observed within `limit_s` seconds."""
        return self._run is None or await self._stopping.exits_within(self._run, limit_s)

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
            await self.signal(SIGKILL)
        await self.gone.wait()

    # ---- the whole life ------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Own this container until its EXIT is told. Cancelled: stop watching, leave it running."""
        try:
            run = await self._first_run()
            while run is not None:
                watching = self._around.watch(self._watch(run), f"watch {self.id}")
                await self._verbs.serve(run)
                await watching
                run = await self._settle(run)
        finally:
            self.leave()

    def leave(self) -> None:
        """Nobody owns it any more: who waits hears so. Again is nothing."""
        self._verbs.refuse()
        self._around.unregister(self)
        self.gone.set()
        self._known.set()
        nobody = InvalidState(f"container {self.id} is no longer watched", container=self.id)
        fail(self.started, nobody)
        fail(self._final, nobody)

    # ---- the chapters, in the same order -------------------------------------------------------------------------

    async def _first_run(self) -> Run | None:
        try:
            await (self._restore_run() if self._restores else self._start_in_own_task())
        except AttachFailed as failed:
            fail(self.started, failed.__cause__ or failed)
            return None
        except Exception as failed:  # noqa: BLE001  whatever it is, who asked for the container is told
            fail(self.started, failed)
            return None
        succeed(self.started)
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
                raise
            except BaseException as failed:  # noqa: BLE001  raised again below, in the owner
                failure.append(failed)

        starting = self._starting = self._around.watch(start(), f"start {self.id}")
        try:
            await asyncio.wait((starting,))
        finally:
            self._starting = None
        if failure:
            raise failure[0]
        if starting.cancelled():
            # Perhaps before its first step: nothing in it can say so.
            raise InvalidState(f"container {self.id} was stopped while it was being started")

    async def _start(self) -> None:
        """The order of specs/lifecycle.md §3; on a failure nothing is left, and the first error is raised."""
        system = await self._around.runtime.create(self.id, self.spec, self._chosen.of_run(self._generation))
        run = Run(self._generation, system, Ending(system, self._clock, self._around.finish))
        try:
            async with self._clock.timeout(limits.CHECKPOINT_S if self._chosen.checkpoint else limits.START_S):
                await system.start()
                run.init = await self._make_init(run)
                if not self._chosen.is_servicing:
                    await run.init.connect(self.id, run.generation, self.spec.os_build)
            if self._chosen.is_servicing:
                await self._service(run)
                return
            await self._attach(run.init)
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
        self._tell(
            run,
            State.START,
            then=run.system.begun() if self._chosen.checkpoint is not None else None,
            started_at=run.init.started_at,
            started_mono=run.init.started_mono,
            restarts=self._restarts.saved(),
        )
        self._watch_oom(run, 0)
        if run.init.has_unwanted_stdin:
            # In a task of its own: a runtime that does not answer must not keep anybody from watching for the exit.
            self._around.finish(run.init.close_unwanted_stdin(), f"close stdin of {self.id}")

    async def _make_init(self, run: Run) -> Process:
        checkpoint = self._chosen.checkpoint
        if checkpoint is not None:
            port = await run.system.restore(checkpoint.name, checkpoint.directory)
        else:
            port = await run.system.create_process(self.spec.process)
        return Process("init", port, self.spec.process, self._clock)

    async def _attach(self, process: Process) -> None:
        assert process.streams is not None
        try:
            await self._around.backend.attach_streams(self.id, process.name, process.streams)
        except Exception as failed:
            raise AttachFailed from failed

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
        await self._closing.close_system(run)

    async def _undo(self, run: Run, first: BaseException) -> None:
        # In a task of its own: who is cancelled twice, or a client that closes, must not leave half of it.
        self.cleanup = self._around.finish(self._closing.undo(run, first), f"undo the start of {self.id}")
        await asyncio.shield(self.cleanup)

    async def _restore_run(self) -> None:
        """Re-attach to what outlived the engine [L06]; what can't be watched any more is ended and told of."""
        self._generation += 1
        try:
            system = await self._bounds.within(limits.START_S, "restore", self._around.runtime.open(self.id))
        except LightermanError as gone:
            self._tell_lost(str(gone))
            return
        run = Run(self._generation, system, Ending(system, self._clock, self._around.finish))
        run.restart_reason = self._first.restart_reason
        try:
            await self._bounds.within(limits.START_S, "restore", self._reopen_init(run))
            paused = await self._bounds.within(limits.START_S, "restore", system.is_paused())
            run.paused = paused is True
            run.pause_unknown = run.restored = paused is None
        except Exception as failed:
            if is_for_lack_of_descriptors(failed):
                # But for this: it is nothing of the container's, and a later engine has room for it.
                if run.init is not None:
                    await run.init.drop_streams()
                raise
            await self._closing.end_what_is_left(run, failed)
            code = await run.init.ask_exit_code() if run.init is not None else None
            await self._closing.close_what_is_left(run)
            self._tell_lost(str(failed.__cause__ or failed), run, code)
            return
        assert run.init is not None
        self._run = run
        self._known.set()
        self._tell(run, State.RESTORE, started_at=run.init.started_at, started_mono=run.init.started_mono)
        self._watch_oom(run, self._first.oom_kills)
        await self._execs.restore(run, self._first.execs)

    async def _reopen_init(self, run: Run) -> None:
        port = await run.system.open_process("init")
        # The spec may be gone: without one nobody knows of the terminal but the runtime.
        terminal = self.spec.process.terminal or port.has_terminal
        config = msgspec.structs.replace(self.spec.process, terminal=terminal)
        run.init = Process("init", port, config, self._clock)
        await run.init.connect(self.id, run.generation, self.spec.os_build)
        await self._attach(run.init)

    async def _watch(self, run: Run) -> None:
        assert run.init is not None
        try:
            self._end = await run.init.watch()
        finally:
            self._verbs.poke()

    def _watch_oom(self, run: Run, told: int) -> None:
        def tell(count: int) -> None:
            if self._run is run and not run.ended:
                self._tell(run, State.OOM, oom_kills=count)

        run.system.watch_oom(told, tell)

    async def _settle(self, run: Run) -> Run | None:
        """The init process has ended, its output is in safety: end the rest, decide, tell. Returns the next run."""
        assert run.init is not None
        end, self._end = self._end, None
        assert end is not None
        update_pending = await self._closing.has_pending_updates(run)
        await self._execs.end(run)
        counters = await self._closing.counters(run)
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
            for_good=run.ends_by_checkpoint or (end.code is not None and end.code.reason == "lease"),
        )
        self._run = None
        how = how_it_ended(run.init, end)
        how["update_pending"] = update_pending
        if counters is not None:
            how |= {"oom_killed": bool(counters.oom_kills), **msgspec.structs.asdict(counters)}
        how["error"] = run.cleanup_error
        if not isinstance(decision, RestartAfter):
            self._tell_exit(run, how)
            return None
        # Why nobody knows how it ended is said first.
        reason = decision.reason if end.code is not None else how["reason"]
        told = how | {"reason": reason, "restart_delay_s": decision.delay_s, "restarts": self._restarts.saved()}
        self._tell(run, State.RESTART, then=run.init.forget, **told)
        return await self._restart(run, decision, how)

    def _decide(self, end: RunEnd, forced: str | None = None, *, for_good: bool = False) -> Decision:
        decision: Decision
        try:
            decision = self._restarts.decide(
                end,
                manually_stopped=self._manually_stopped or for_good,
                ran_for_s=end.ran_for_s,
                now=self._clock.mono(),
                jitter=self._around.jitter(),
                forced=forced,
            )
        except BaseException as failed:  # noqa: BLE001  an exit that is never told would be worse, whatever it is
            decision = StayDown(f"the decision failed: {failed!r}", failed)
        if not isinstance(decision, RestartAfter) and decision.error is not None:
            log.error("container %s is not started again: %s", self.id, decision.reason, exc_info=decision.error)
        return decision

    async def _clean_up(self, run: Run) -> None:
        """Shut the compute system down and close it; what takes longer than SETTLE_S goes on in the background."""
        self.cleanup = self._around.finish(self._closing.shut_down_and_close(run), f"clean up {self.id}")
        try:
            async with self._clock.timeout(limits.SETTLE_S):
                await asyncio.shield(self.cleanup)
        except TimeoutError:
            log.warning("container %s: its clean-up takes longer than %g s", self.id, limits.SETTLE_S)

    async def _restart(self, ended: Run, decision: RestartAfter, how: dict[str, Any]) -> Run | None:
        """Wait the back-off and begin the next run; a run that can't be made goes to the decision again [L36]."""
        while True:
            is_cut_short = await self._restart_wait.is_cut_short(decision.delay_s)
            self._restarts.wait_over()
            if is_cut_short:
                self._tell_exit(ended, how)
                return None
            if self.cleanup is not None:
                await asyncio.shield(self.cleanup)
            self._chosen.settle_for_another_run()
            try:
                await self._start_in_own_task()
            except AttachFailed as failed:
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
        # A run of its own, of which there is nothing but that it did not begin.
        self._tell_exit(
            None,
            {
                "exit_code": -1,
                "exit_code_known": False,
                "reason": str(reason),
                "not_started": True,
                "finished_at": self._clock.wall(),
                "error": reason,
            },
        )
        return None

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
            await self._bounds.within(limit_s, "verb", act(run))

        await self._verbs.ask(bounded)

    async def ask(self, operation: str, question: Callable[[Run], Awaitable[T]]) -> T:
        """Ask the runtime about what runs. Raises: InvalidState where nothing runs, OperationTimeout."""
        return await self._bounds.within(limits.RUNTIME_CALL_S, operation, question(self._running()))

    async def _in_own_task(self, act: Coroutine[Any, Any, None], name: str) -> None:
        await in_own_task(act, self._around.finish, name, self.id)

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
        if not self._restart_wait.goes_on:
            return False
        self._manually_stopped = True
        self._restart_wait.cut()
        return True

    def _tell_exit(self, run: Run | None, how: dict[str, Any]) -> None:
        """The id is free when EXIT is told: a backend may create it anew while it hears of it [L01, L24]."""
        self._around.unregister(self)
        then = run.init.forget if run and run.init else None
        self._final.set_result(self._tell(run, State.EXIT, then=then, **how))

    def _tell_lost(self, reason: str, run: Run | None = None, code: ExitCode | None = None) -> None:
        how: dict[str, Any] = {"exit_code": -1, "exit_code_known": False}
        if run is not None and run.init is not None and code is not None:
            how = how_it_was_found(run.init, code, self._clock)
        self._tell_exit(run, how | {"reason": reason})

    def _tell(self, run: Run | None, state: State, *, then: Then | None = None, **fields: Any) -> StateInfo:
        generation, process = (run.generation, run.init) if run is not None else (self._generation, None)
        return self._teller(generation, state, process, then=then, **fields)
