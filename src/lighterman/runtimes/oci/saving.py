"""Making a checkpoint of what runs, and going on from one: one container's calls of CRIU, through its runtime."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal as signals
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec

from lighterman import limits
from lighterman.ends import to_its_end
from lighterman.errors import AlreadyStopped, InvalidState, NotFound, NotSupported, RuntimeFailed, StoreError
from lighterman.keeper.client import Job, KeeperClient
from lighterman.roots import default_run
from lighterman.runtimes.oci.cgroups import Cgroup, CgroupHost, MountOptions
from lighterman.runtimes.oci.checkpointing import SavedState, criu_environment, raise_loopback
from lighterman.runtimes.oci.process import OciProcess
from lighterman.threads import in_own_thread, in_thread

__all__ = ["Saving", "restoring"]

log = logging.getLogger(__name__)


class _Command(Protocol):
    """See `OciSystem.command`."""

    async def __call__(self, operation: str, *words: str, env: dict[str, str], timeout_s: float) -> None: ...


def restoring(job: Job) -> Job:
    """The same call, with what it takes when it goes on from a checkpoint."""
    return msgspec.structs.replace(job, env={**job.env, **criu_environment()}, timeout_s=limits.CHECKPOINT_S)


@asynccontextmanager
async def keeping_options(host: CgroupHost) -> AsyncIterator[None]:
    """For the time of a call of CRIU's: see `MountOptions`. Raises: StoreError."""
    options = MountOptions(host, default_run())
    try:
        try:
            await to_its_end(in_thread(options.begin))
        except OSError as failed:
            what = "the mount options of the cgroup tree can't be written down"
            raise StoreError(f"{what} in {default_run()}: {failed.strerror}") from failed
        yield
    finally:
        try:
            await to_its_end(in_thread(options.end))
        except OSError as failed:
            log.error("the cgroup tree may have lost mount options: %s", failed)


async def _ended(work: asyncio.Future[None]) -> None:
    await asyncio.wait((work,))


class Saving:
    """Of one container.

    Args:
        command: calls its runtime. why_not: why there are no checkpoints here; None where there are.
        own_network: whether it has a network namespace of its own.
    Attributes: idle: no call is under way that the container's removal would disturb.
    """

    def __init__(
        self,
        id: str,
        runtime: str,
        cgroup: Cgroup,
        keeper: Callable[[], KeeperClient],
        command: _Command,
        why_not: str | None,
        own_network: bool,
    ) -> None:
        self._id = id
        self._runtime = runtime
        self._cgroup = cgroup
        self._keeper = keeper
        self._command = command
        self._why_not = why_not
        self._own_network = own_network
        self._copying: asyncio.Future[None] | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    def must_be_possible(self, operation: str) -> None:
        """Raises: NotSupported."""
        if self._why_not is not None:
            raise NotSupported(
                f"{self._runtime}: {operation} is not possible here: {self._why_not}",
                operation=operation,
                container=self._id,
            )

    async def save(
        self,
        saved: SavedState,
        init: OciProcess,
        beside: Sequence[OciProcess],
        upper: str | None,
        leave_running: bool,
    ) -> None:
        """Frozen all the while: between what is saved and its end, or its going on, it does nothing.

        Args: beside: exec processes that run. upper: the root's writable layer.
        Raises: InvalidState, RuntimeFailed, StoreError; then it goes on. AlreadyStopped if it was killed meanwhile.
        """
        if beside:
            raise InvalidState(
                f"container {self._id} runs exec processes, which can't be a part of a checkpoint: end them first",
                operation="checkpoint",
                container=self._id,
            )
        self.idle.clear()
        try:
            await self._save(saved, init, upper, leave_running=leave_running)
        finally:
            self.idle.set()

    def give_up(self) -> None:
        """It is being killed: what is copied now is of no use any more."""
        if self._copying is not None:
            self._copying.cancel()

    async def _save(self, saved: SavedState, init: OciProcess, upper: str | None, *, leave_running: bool) -> None:
        making = saved.being_made
        await in_thread(making.make)
        was_paused = await in_thread(self._cgroup.is_frozen)
        if not was_paused:
            await in_thread(self._cgroup.freeze)
        go_on = True
        try:
            await self._dump(making)
            if upper is not None:
                await self._copy(making, upper)
            # It has its name before the container ends: whoever dies in between, one of the two is there.
            await in_thread(saved.complete)
            go_on = leave_running
        finally:
            if go_on and not was_paused:
                with contextlib.suppress(NotFound):  # it was killed meanwhile
                    await in_thread(self._cgroup.thaw)
        if not leave_running:
            with contextlib.suppress(AlreadyStopped):
                await init.kill(signals.SIGKILL)
            await in_thread(self._cgroup.kill)

    async def _copy(self, making: SavedState, upper: str) -> None:
        copying = self._copying = asyncio.ensure_future(making.save_files(self._keeper(), upper, self._id))
        try:
            # Not by itself: whether it was given up, or who waits for it was cancelled, is told apart by who did it.
            await asyncio.wait((copying,))
        except asyncio.CancelledError:
            copying.cancel()
            await to_its_end(_ended(copying))
            raise
        finally:
            self._copying = None
        if copying.cancelled():
            raise AlreadyStopped(f"container {self._id} was killed while it was being saved", container=self._id)
        await copying

    async def _dump(self, saved: SavedState) -> None:
        words = saved.words("--leave-running", self._id)
        async with keeping_options(self._cgroup.host):
            try:
                await self._command("checkpoint", *words, env=criu_environment(), timeout_s=limits.CHECKPOINT_S)
            except RuntimeFailed as failed:
                raise await in_thread(saved.blame, failed, "dump.log") from failed

    async def restore(self, saved: SavedState, call: Callable[[Sequence[str]], Awaitable[OciProcess]]) -> OciProcess:
        """Go on from it. `call` is given words of the runtime's command line.

        Raises: NotFound if it is no whole checkpoint, RuntimeFailed.
        """
        await in_thread(saved.require_whole, self._id)
        async with keeping_options(self._cgroup.host):
            try:
                init = await call(saved.words())
            except RuntimeFailed as failed:
                raise await in_thread(saved.blame, failed, "restore.log") from failed
        if self._own_network:
            await self._raise_loopback(init)
        return init

    async def _raise_loopback(self, init: OciProcess) -> None:
        try:
            await in_own_thread(lambda: raise_loopback(init.pid))
        except OSError as failed:
            if not init.has_exited:
                log.warning("container %s: its loopback interface stays down: %s", self._id, failed)
