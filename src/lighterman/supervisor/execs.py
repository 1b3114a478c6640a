"""The exec processes of one container: they start side by side, and each tells its end before the container does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import AlreadyExists, AlreadyStopped, LightermanError, OperationTimeout
from lighterman.lifecycle.events import State
from lighterman.runtimes.base import ComputeProcess, KnownExec
from lighterman.spec import ProcessConfig, Spec
from lighterman.supervisor.answers import fail, succeed
from lighterman.supervisor.backend import AttachFailed
from lighterman.supervisor.closing import Closing
from lighterman.supervisor.delivery import Spawn
from lighterman.supervisor.process import Process, ProcessEnd
from lighterman.supervisor.run import ExecLife, Run
from lighterman.supervisor.telling import Teller, how_it_ended

__all__ = ["Execs"]

log = logging.getLogger(__name__)


class Execs:
    """Of one container; what runs stands in the run, so that an exec of an earlier one never leaks into the next."""

    def __init__(
        self,
        container_id: str,
        spec: Spec,
        *,
        clock: Clock,
        watch: Spawn,
        finish: Spawn,
        tell: Teller,
        closing: Closing,
        attach: Callable[[Process], Awaitable[None]],
    ) -> None:
        self._id = container_id
        self._spec = spec
        self._clock = clock
        self._watch = watch
        self._finish = finish
        self._tell = tell
        self._closing = closing
        self._attach = attach

    async def add(self, run: Run, name: str, config: ProcessConfig) -> int:
        """Start one and return its pid [L03]. Cancelled: it starts all the same."""
        if name in run.execs or name == "init":
            raise AlreadyExists(f"container {self._id} runs a process {name!r} already", container=self._id)
        if not config.cwd:
            config = msgspec.structs.replace(config, cwd=self._spec.process.cwd)
        life = ExecLife(name)
        run.execs[name] = life
        pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        life.task = self._watch(self._live(run, life, config, pid), f"exec {name} in {self._id}")
        # Cancelled, perhaps before its first step.
        life.task.add_done_callback(lambda _: fail(pid, self._ended()))
        return await asyncio.shield(pid)

    async def restore(self, run: Run, known: Sequence[KnownExec]) -> None:
        """Take up those that an earlier engine has started; one that can't be is left as it is.

        Args: known: of which that engine has told: the runtime may not know of them any more.
        """
        by_name = dict.fromkeys(await self._names(run)) | {each.name: each for each in known}
        for name, written in by_name.items():
            port = await self._reopen(run, name, written)
            if port is None:
                continue
            # Its own terminal or none, whatever the init process has.
            process = Process(name, port, ProcessConfig(terminal=port.has_terminal), self._clock)
            try:
                await process.connect(self._id, run.generation, self._spec.os_build)
                await self._attach(process)
            except (LightermanError, AttachFailed) as failed:
                why = failed.__cause__ if isinstance(failed, AttachFailed) else failed
                log.warning("container %s: exec %s is watched without its streams: %s", self._id, name, why)
                await process.drop_streams()
            life = run.execs[name] = ExecLife(name, process, told_start=True)
            life.task = self._watch(self._live_to_end(run, life, process), f"exec {name} in {self._id}")

    async def _reopen(self, run: Run, name: str, written: KnownExec | None) -> ComputeProcess | None:
        try:
            return await run.system.open_process(name)
        except LightermanError as failed:
            if written is None:
                log.warning("container %s: exec %s can't be taken up again: %s", self._id, name, failed)
                return None
        try:
            return await run.system.adopt_exec(written)
        except LightermanError as failed:
            log.warning("container %s: exec %s can't be taken up again: %s", self._id, name, failed)
            return None

    async def end(self, run: Run) -> None:
        """End those that are still alive; their ends are told first [L25]."""
        for life in run.execs.values():
            if life.process is None and life.task is not None:
                life.task.cancel()
        alive = [life.process for life in run.execs.values() if life.process and not life.process.exited.is_set()]
        await asyncio.gather(*(self._closing.kill(process) for process in alive))
        tasks = [life.task for life in run.execs.values() if life.task is not None]
        if not tasks:
            return
        try:
            async with self._clock.timeout(limits.KILL_WAIT_S + limits.DRAIN_S):
                await asyncio.wait(tasks)
        except TimeoutError:
            log.error("container %s: exec processes did not end: %s", self._id, ", ".join(run.execs))
        for life in list(run.execs.values()):
            if life.task is not None:
                life.task.cancel()
            if life.process is not None and life.told_start:
                self._forget(run, life, ProcessEnd(None, self._clock.mono(), self._clock.wall(), ()))
                await life.process.close()
        run.execs.clear()

    # ---- the life of one ----

    async def _live(self, run: Run, life: ExecLife, config: ProcessConfig, pid: asyncio.Future[int]) -> None:
        """Start, tell START_PROCESS, watch, tell EXIT_PROCESS."""
        try:
            process = await self._start(run, life, config)
        except BaseException as failed:
            run.execs.pop(life.name, None)
            if isinstance(failed, asyncio.CancelledError):
                raise
            fail(pid, failed.__cause__ if isinstance(failed, AttachFailed) and failed.__cause__ else failed)
            return
        life.told_start = True
        self._tell(
            run.generation,
            State.START_PROCESS,
            process,
            started_at=process.started_at,
            started_mono=process.started_mono,
        )
        succeed(pid, process.pid)
        if process.has_unwanted_stdin:
            self._finish(process.close_unwanted_stdin(), f"close stdin of {life.name} in {self._id}")
        await self._live_to_end(run, life, process)

    def _ended(self) -> AlreadyStopped:
        return AlreadyStopped(f"container {self._id} ended meanwhile", container=self._id)

    async def _start(self, run: Run, life: ExecLife, config: ProcessConfig) -> Process:
        try:
            async with self._clock.timeout(limits.EXEC_START_S):
                port = await run.system.create_process(config, exec_id=life.name)
        except TimeoutError as late:
            raise OperationTimeout(
                f"process {life.name!r} of container {self._id} had not started after {limits.EXEC_START_S:g} s",
                operation="exec",
                container=self._id,
            ) from late
        process = Process(life.name, port, config, self._clock)
        try:
            await process.connect(self._id, run.generation, self._spec.os_build)
            await self._attach(process)
        except BaseException:
            # In a task of its own: the container's end gives up what is being started, and must not leave half of it.
            undoing = self._finish(self._closing.undo_process(process), f"undo exec {life.name} in {self._id}")
            await asyncio.shield(undoing)
            raise
        life.process = process
        return process

    async def _live_to_end(self, run: Run, life: ExecLife, process: Process) -> None:
        try:
            end = await process.watch()
        except asyncio.CancelledError:
            life.task = None
            raise
        self._forget(run, life, end)

    def _forget(self, run: Run, life: ExecLife, end: ProcessEnd) -> None:
        """[L23]"""
        assert life.process is not None
        if run.execs.pop(life.name, None) is None:
            return
        how = how_it_ended(life.process, end)
        self._tell(run.generation, State.EXIT_PROCESS, life.process, then=life.process.forget, **how)

    async def _names(self, run: Run) -> Sequence[str]:
        try:
            return await run.system.exec_ids()
        except LightermanError as failed:
            log.warning("container %s: its exec processes can't be listed: %s", self._id, failed)
            return ()
