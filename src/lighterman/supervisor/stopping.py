"""How a run is brought to its end: signals, a thaw on the way, a terminate, and what is said when none of it helps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import (
    AlreadyClosed,
    AlreadyStopped,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    Unkillable,
)
from lighterman.lifecycle.events import State
from lighterman.runtimes.base import Runtime
from lighterman.supervisor.bounds import Bounds
from lighterman.supervisor.delivery import Spawn
from lighterman.supervisor.run import Run

__all__ = ["Stopping"]

log = logging.getLogger(__name__)


class Stopping:
    """Of one container. Args: tell: a change of a run's state."""

    def __init__(
        self,
        container_id: str,
        runtime: Runtime,
        clock: Clock,
        finish: Spawn,
        bounds: Bounds,
        tell: Callable[[Run, State], object],
    ) -> None:
        self._id = container_id
        self._runtime = runtime
        self._clock = clock
        self._finish = finish
        self._bounds = bounds
        self._tell = tell

    async def end_system(self, run: Run, *, kill: bool) -> None:
        """End the compute system by shutdown or terminate; only the latter is waited for."""
        if not kill:
            # A platform without signals: whatever is asked for, the system is asked to shut down.
            self._finish(self._shut_down_quietly(run), f"shutdown {self._id}")
            return
        # A frozen process of cgroup v1 takes note of SIGKILL only once it is thawed: terminate may wait for that.
        run.killed_at = run.killed_at or self._clock.wall()
        run.ending.begin_terminate()
        await asyncio.sleep(0)
        # Its end tells of it, where there is one.
        untold = False
        try:
            untold = await self.thaw(run, tell=False)
        except LightermanError as failed:
            log.warning("container %s: it can't be thawed, it may not take note of SIGKILL: %s", self._id, failed)
        # Where there are signals, SIGKILL takes moments, or does not come through at all.
        limit_s = limits.KILL_WAIT_S if self._runtime.features().signals else None
        try:
            async with self._clock.timeout(limit_s):
                await run.ending.terminate()
        except TimeoutError:
            if not run.ended:
                run.ending.allow_another()
                raise await self._unkillable(run) from None
        except BaseException:
            if untold and not run.ended:
                self._tell(run, State.RESUME)
            raise

    async def _shut_down_quietly(self, run: Run) -> None:
        try:
            await run.ending.shutdown()
        except LightermanError as failed:
            log.warning("container %s: shutting it down failed: %s", self._id, failed)

    async def end_run(self, run: Run, stop_signal: int, grace_s: float) -> None:
        """Ask it to end, and end it by force after `grace_s` seconds. Raises: Unkillable."""
        assert run.init is not None
        # A stop by request that is under way has its own grace, and waits for the same end.
        if grace_s > 0 and self._runtime.features().signals:
            try:
                await self._bounds.within(limits.RUNTIME_CALL_S, "signal", run.init.port.kill(stop_signal))
                await self.thaw(run, tell=True)
            except AlreadyStopped:
                return
            except LightermanError as failed:
                log.warning("container %s: its stop signal can't be delivered: %s", self._id, failed)
                grace_s = 0.0
        elif grace_s > 0:
            await self.end_system(run, kill=False)
        if not await self.exits_within(run, grace_s):
            try:
                await self.end_system(run, kill=True)
            except AlreadyStopped:
                log.debug("container %s ended in the same moment", self._id)
            await self.must_exit(run)

    async def thaw(self, run: Run, *, tell: bool) -> bool:
        """Let it run if it is paused, or may be: nothing frozen takes note of a signal.

        Returns: whether somebody was told that it is paused, and not that it runs again.
        """
        run.thaw_wanted = True
        if not run.paused and not run.pause_unknown:
            return False
        try:
            await self._bounds.within(limits.RUNTIME_CALL_S, "resume", run.system.resume())
        except (AlreadyStopped, AlreadyClosed, InvalidState, NotFound, NotSupported) as not_paused:
            run.pause_unknown = False
            # One that was thawed while its pause was still on the way was told to be paused afterwards.
            if not (isinstance(not_paused, InvalidState) and run.paused):
                return False
        return self.thawed(run, tell=tell and not run.ended)

    def thawed(self, run: Run, *, tell: bool) -> bool:
        """It runs again: told to whom its pause was. Returns: whether that was to be told, and was not."""
        was_told = run.paused or run.restored
        run.paused = run.pause_unknown = run.restored = False
        if was_told and tell:
            self._tell(run, State.RESUME)
        return was_told and not tell

    async def exits_within(self, run: Run, limit_s: float) -> bool:
        """Whether its init process ends within `limit_s` seconds."""
        assert run.init is not None
        return await self._bounds.is_set(run.init.exited, limit_s)

    async def must_exit(self, run: Run) -> None:
        """Wait for its end after SIGKILL. Raises: Unkillable."""
        if not await self.exits_within(run, limits.KILL_WAIT_S):
            raise await self._unkillable(run)

    async def _unkillable(self, run: Run) -> Unkillable:
        assert run.init is not None
        since_s = self._clock.wall() - (run.killed_at or self._clock.wall())
        where = None
        try:
            where = await self._bounds.within(limits.RUNTIME_CALL_S, "stuck", run.system.stuck())
            seen = (
                f"in uninterruptible sleep: {where}" if where else "none of its processes is in uninterruptible sleep"
            )
        except LightermanError as failed:
            seen = f"where it hangs can't be told: {failed}"
        return Unkillable(
            f"container {self._id} is unkillable: pid {run.init.pid} has not ended {since_s:.0f} s after SIGKILL; "
            f"{seen}",
            pid=run.init.pid,
            since_s=since_s,
            where=where,
            operation="terminate",
            container=self._id,
        )
