"""The calls of a runtime that start a container's processes: each is undone once nobody wants it any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
from collections.abc import Callable

from lighterman import limits
from lighterman.errors import LightermanError, LimitExceeded, OperationTimeout, RuntimeFailed
from lighterman.keeper.client import Job, KeeperClient, Spawned
from lighterman.runtimes.oci.calls import RuntimeCall
from lighterman.runtimes.oci.orphans import look_for_orphans

__all__ = ["Spawning"]


class Spawning:
    """Of one container."""

    def __init__(self, id: str, call: RuntimeCall, keeper: Callable[[], KeeperClient]) -> None:
        self._id = id
        self._call = call
        self._keeper = keeper
        self._undoing: set[asyncio.Future[None]] = set()
        self._call_failed = False  # what one has forked may go on, whether it was killed or its keeper

    async def spawn(self, job: Job, operation: str) -> Spawned:
        """A cancelled start waits for the runtime that it ends: what that has made is known, and taken away, then.

        So is what can't be held for lack of descriptors. Raises: LimitExceeded, RuntimeFailed, and as `KeeperClient`.
        """
        spawning = asyncio.ensure_future(self._keeper().spawn(job))
        spawning.add_done_callback(self._note_failure)  # whether or not anybody asks for that any more
        try:
            return await asyncio.shield(spawning)
        except RuntimeFailed as failed:
            raise RuntimeFailed(
                f"{self._call.name} {operation} of container {self._id}: {self._call.executable}: {failed}",
                runtime=self._call.name,
                operation=operation,
                container=self._id,
            ) from failed
        except (asyncio.CancelledError, LimitExceeded):
            await self._undo(job.job, spawning)
            raise

    async def take_away(self, job: str, spawned: Spawned) -> None:
        """End what a call has made, and forget it. Cancelled, nobody waits for that, and it goes on."""
        done: asyncio.Future[Spawned] = asyncio.get_running_loop().create_future()
        done.set_result(spawned)
        await self._undo(job, done)

    async def _undo(self, job: str, spawning: asyncio.Future[Spawned]) -> None:
        undoing = asyncio.ensure_future(self._undo_spawn(job, spawning))
        self._undoing.add(undoing)
        undoing.add_done_callback(self._undoing.discard)
        await asyncio.shield(undoing)

    async def _undo_spawn(self, job: str, spawning: asyncio.Future[Spawned]) -> None:
        # Nobody wants it any more.
        try:
            with contextlib.suppress(OperationTimeout):  # it is asked, and does it as soon as it can
                await self._keeper().abort(job)
            try:
                await self._discard(job, await spawning)
            except LimitExceeded:
                # Nothing here needs a descriptor. Asked again: before it had seen the call end it had nothing to kill.
                await self._keeper().abort(job)
                async with asyncio.timeout(limits.KILL_WAIT_S):
                    await self._forget(job)
        except (LightermanError, TimeoutError):
            return  # there is nothing then, or the next keeper finds it

    def _note_failure(self, spawning: asyncio.Future[Spawned]) -> None:
        if not spawning.cancelled():
            self._call_failed |= spawning.exception() is not None or spawning.result().status != 0

    async def undone(self) -> None:
        """Return when no call is under way that was given up, and could still make something; or when it takes long."""
        if self._undoing:
            await asyncio.wait(self._undoing, timeout=limits.RUNTIME_CALL_S)
        if self._call_failed:
            states = os.path.dirname(self._call.root)
            await look_for_orphans(states, self._keeper().pid, self._id, settled=True)

    async def _discard(self, job: str, spawned: Spawned) -> None:
        if spawned.console is not None:
            os.close(spawned.console)
        if spawned.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signals.pidfd_send_signal(spawned.pidfd, signals.SIGKILL)
            os.close(spawned.pidfd)
        if spawned.pid is not None:
            await self._forget(job)

    async def _forget(self, job: str) -> None:
        await self._keeper().wait_exit(job)
        await self._keeper().acknowledge(job)
