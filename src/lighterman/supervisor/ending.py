"""Shutdown and terminate of one compute system: asked at any moment, twice, and at the same time as an exit [L31]."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import AlreadyStopped, LightermanError, OperationPending, OperationTimeout
from lighterman.runtimes.base import ComputeSystem
from lighterman.supervisor.delivery import Spawn

__all__ = ["Ending"]


class Ending:
    """Who asked first counts: after a terminate, a shutdown only waits [L30]; a second terminate joins the first."""

    def __init__(
        self,
        system: ComputeSystem,
        clock: Clock,
        finish: Spawn,
        *,
        shutdown_s: float = limits.SHUTDOWN_S,
        terminate_s: float = limits.TERMINATE_S,
    ) -> None:
        self._system = system
        self._clock = clock
        self._finish = finish
        self._shutdown_s = shutdown_s
        self._terminate_s = terminate_s
        self._terminating: asyncio.Future[None] | None = None

    @property
    def terminate_asked(self) -> bool:
        """Whether a terminate is under way or done."""
        return self._terminating is not None

    async def shutdown(self) -> None:
        """Ask it to end and wait for that; what fails is terminated, and the shutdown's error raised [L28]."""
        if self._terminating is not None:
            await self.terminate()
            return
        try:
            await self._ask_shutdown()
        except LightermanError as failed:
            if self._terminating is not None and isinstance(failed, OperationTimeout):
                raise
            try:
                await self.terminate()
            except LightermanError as worse:
                # The shutdown's error is the one to raise; how the terminate failed stays beside it.
                failed.__context__ = worse
            raise

    async def _ask_shutdown(self) -> None:
        try:
            await self._within("shutdown", self._shutdown_s, self._system.shutdown)
        except AlreadyStopped:
            return

    async def terminate(self) -> None:
        """End all of it and wait for that [L29]. Cancelled: only the waiting ends."""
        await asyncio.shield(self.begin_terminate())

    def allow_another(self) -> None:
        """The terminate under way has taken too long: it goes on, and the next who asks makes an attempt of his own."""
        self._terminating = None

    def begin_terminate(self) -> asyncio.Future[None]:
        """Ask for it without waiting."""
        if self._terminating is None:
            self._terminating = asyncio.get_running_loop().create_future()
            self._finish(self._terminate(self._terminating), f"terminate {self._system.id}")
        return self._terminating

    async def _terminate(self, done: asyncio.Future[None]) -> None:
        try:
            await self._within("terminate", self._terminate_s, self._system.terminate)
        except AlreadyStopped:
            pass
        except Exception as failed:  # noqa: BLE001  belongs to who asked
            # Another attempt is allowed after a failed one.
            if self._terminating is done:
                self._terminating = None
            done.set_exception(failed)
            done.exception()  # who asked may have been cancelled meanwhile
            return
        except asyncio.CancelledError:
            done.set_exception(OperationTimeout(f"terminating container {self._system.id} was given up at the close"))
            done.exception()
            raise
        done.set_result(None)

    async def _within(self, operation: str, limit_s: float, ask: Callable[[], Awaitable[None]]) -> None:
        """Ask, and wait where that is pending; a runtime that never answers the asking is late as well."""
        try:
            async with self._clock.timeout(limit_s):
                try:
                    await ask()
                except OperationPending:
                    await self._system.wait()
        except TimeoutError as late:
            raise OperationTimeout(
                f"{operation} of container {self._system.id} was not done after {limit_s:g} s",
                operation=operation,
                container=self._system.id,
            ) from late
