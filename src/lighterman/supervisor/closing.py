"""The last calls of a run: what the runtime is asked and told when it has ended, or could not begin.

Nothing here raises for the runtime's sake: whatever fails is logged, and the exit is told all the same.
"""

from __future__ import annotations

import logging

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import AlreadyClosed, AlreadyStopped, LightermanError, NotSupported
from lighterman.runtimes.base import SIGKILL, OomCounters
from lighterman.supervisor.process import Process
from lighterman.supervisor.run import Run

__all__ = ["Closing"]

log = logging.getLogger(__name__)


class Closing:
    """Of one container; every call has a deadline of its own."""

    def __init__(self, container_id: str, clock: Clock) -> None:
        self._id = container_id
        self._clock = clock

    async def has_pending_updates(self, run: Run) -> bool:
        """Whether the image is to be serviced; False where that can't be found out."""
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                return await run.system.has_pending_updates()
        except NotSupported:
            return False
        except Exception as failed:  # noqa: BLE001  a failing runtime must not keep the exit from being told
            log.warning("container %s: asking for pending updates failed: %r", self._id, failed)
            return False

    async def counters(self, run: Run) -> OomCounters | None:
        """What the cgroup had counted."""
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                return await run.system.oom_counters()
        except NotSupported:
            return None
        except Exception as failed:  # noqa: BLE001  likewise
            log.warning("container %s: reading the OOM counters failed: %r", self._id, failed)
            return None

    async def shut_down_and_close(self, run: Run) -> None:
        """After the init's end; a failure is kept in `run.cleanup_error`."""
        try:
            await run.ending.shutdown()
        except Exception as failed:  # noqa: BLE001  likewise
            log.warning("container %s: shutting it down failed: %s", self._id, failed)
            run.cleanup_error = failed
        await self.close_system(run)

    async def close_system(self, run: Run) -> None:
        """Give the handle back."""
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                await run.system.close()
        except AlreadyClosed:
            return
        except Exception as failed:  # noqa: BLE001  likewise
            log.warning("container %s: closing it failed: %r", self._id, failed)
            run.cleanup_error = run.cleanup_error or failed

    async def undo(self, run: Run, first: BaseException) -> None:
        """Terminate and close what a failed start has made; `first` is why."""
        await self.end_what_is_left(run, first)
        await self.close_what_is_left(run)

    async def end_what_is_left(self, run: Run, first: BaseException) -> None:
        """Kill it and wait for that."""
        try:
            await run.ending.terminate()
            if run.init is not None and not run.init.exited.is_set() and not await self.ends(run.init):
                log.error("container %s: its program did not end after a failed start", self._id)
        except Exception as failed:  # noqa: BLE001  the first error is the one to raise
            log.error("container %s: terminating it after %r failed: %s", self._id, first, failed)
        else:
            log.debug("container %s: terminated after %r", self._id, first)

    async def close_what_is_left(self, run: Run) -> None:
        """Nobody is to be told of it: streams, handles and what the runtime remembers go."""
        if run.init is not None:
            if run.init.streams is not None:
                for stream in run.init.streams.readable:
                    await stream.close()
            await run.init.close()
            await run.init.forget()
        await self.close_system(run)

    async def kill(self, process: Process) -> None:
        """SIGKILL to one process."""
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                await process.port.kill(SIGKILL)
        except AlreadyStopped:
            pass
        except Exception as failed:  # noqa: BLE001  likewise
            log.warning("container %s: killing %s failed: %r", self._id, process.name, failed)

    async def ends(self, process: Process) -> bool:
        """Wait for a process that was killed; False if it has not ended after limits.KILL_WAIT_S."""
        try:
            async with self._clock.timeout(limits.KILL_WAIT_S):
                await process.port.wait()
        except TimeoutError:
            return False
        except LightermanError:
            return True
        return True

    async def undo_process(self, process: Process) -> None:
        """An exec that nobody is to hear of."""
        await self.kill(process)
        await self.ends(process)
        await process.close()
        await process.forget()
