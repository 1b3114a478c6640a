"""A container's layers: the writable one on its read-only ones, mounted while anybody uses it, removed for certain."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import LightermanError
from lighterman.runtimes.hcs.threads import CallThreads

__all__ = ["LayerFunctions", "LayerStore", "MountedLayer"]

log = logging.getLogger(__name__)

REMOVING = "-removing"


class LayerFunctions(Protocol):
    """What the storage driver can do; each call blocks. `parents` are paths, the topmost first."""

    def guid_of(self, path: str) -> str: ...
    def exists(self, path: str) -> bool: ...
    def create_sandbox(self, path: str, parents: Sequence[str]) -> None: ...
    def expand(self, path: str, size_bytes: int) -> None: ...
    def activate(self, path: str) -> None: ...
    def prepare(self, path: str, parents: Sequence[str]) -> None: ...
    def mount_path(self, path: str) -> str: ...
    def unprepare(self, path: str) -> None: ...
    def deactivate(self, path: str) -> None: ...
    def destroy(self, path: str) -> None: ...


class MountedLayer:
    """One use of a mounted layer; the last `release` unmounts it, in the background."""

    def __init__(self, store: LayerStore, folder: str, volume_path: str) -> None:
        self.volume_path = volume_path
        self._store = store
        self._folder = folder
        self._released = False

    def release(self) -> None:
        """Again is nothing."""
        if not self._released:
            self._released = True
            self._store.release(self._folder)


class LayerStore:
    """The layers of one host. Every driver call runs on a thread; what goes on in the background is waited for here."""

    def __init__(self, functions: LayerFunctions, threads: CallThreads, clock: Clock) -> None:
        self._functions = functions
        self._threads = threads
        self._clock = clock
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # A Windows bug lets parallel ones time out.
        self._preparing = asyncio.Lock()
        self._mounted: dict[str, tuple[str, int]] = {}
        self._guids: dict[str, str] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._removing: dict[str, asyncio.Task[None]] = {}

    async def identified(self, paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Each with its GUID, which Windows alone can compute."""
        for path in paths:
            if path not in self._guids:
                self._guids[path] = await self._threads.run(lambda path=path: self._functions.guid_of(path))  # type: ignore[misc]
        return tuple((self._guids[path], path) for path in paths)

    # ---- up ----

    async def ensure(self, folder: str, parents: Sequence[str], size_bytes: int = 0) -> None:
        """Make the writable layer if there is none. Under Hyper-V that is all: the VM mounts it."""
        async with self._locks[folder]:
            await self._shielded(self._ensure(folder, parents, size_bytes))

    async def mount(self, folder: str, parents: Sequence[str], size_bytes: int = 0) -> MountedLayer:
        """Make it if there is none, and mount it, or join who has. If cancelled: nothing stays mounted for it."""
        async with self._locks[folder]:
            known = self._mounted.get(folder)
            if known is None:
                mounting = asyncio.ensure_future(self._mount(folder, parents, size_bytes))
                try:
                    path = await asyncio.shield(mounting)
                except asyncio.CancelledError:
                    self._go(self._unmount_after(folder, mounting), f"unmount {folder}")
                    raise
                known = (path, 0)
            self._mounted[folder] = (known[0], known[1] + 1)
        return MountedLayer(self, folder, known[0])

    async def _ensure(self, folder: str, parents: Sequence[str], size_bytes: int) -> None:
        if await self._threads.run(lambda: self._functions.exists(folder)):
            return
        await self._threads.run(lambda: self._functions.create_sandbox(folder, parents))
        if size_bytes:
            await self._threads.run(lambda: self._functions.expand(folder, size_bytes))

    async def _mount(self, folder: str, parents: Sequence[str], size_bytes: int) -> str:
        await self._ensure(folder, parents, size_bytes)
        await self._threads.run(lambda: self._functions.activate(folder))
        try:
            async with self._preparing:
                await self._threads.run(lambda: self._functions.prepare(folder, parents))
            try:
                return await self._threads.run(lambda: self._functions.mount_path(folder))
            except LightermanError:
                await self._quietly("unprepare", lambda: self._functions.unprepare(folder))
                raise
        except LightermanError:
            await self._quietly("deactivate", lambda: self._functions.deactivate(folder))
            raise

    # ---- down ----

    def release(self, folder: str) -> None:
        """One use less; unmounted after the last."""
        path, uses = self._mounted[folder]
        self._mounted[folder] = (path, uses - 1)
        if uses == 1:
            self._go(self._unmount_unused(folder), f"unmount {folder}")

    async def _unmount_unused(self, folder: str) -> None:
        async with self._locks[folder]:
            if self._mounted.get(folder, ("", 1))[1]:
                return  # somebody has taken it up again
            del self._mounted[folder]
            await self._unmount(folder)

    async def _unmount_after(self, folder: str, mounting: asyncio.Future[str]) -> None:
        try:
            await mounting
        except LightermanError as failed:
            log.debug("layer %s: the mount that nobody waits for failed: %s", folder, failed)
            return
        async with self._locks[folder]:
            if folder not in self._mounted:
                await self._unmount(folder)

    async def _unmount(self, folder: str) -> None:
        await self._quietly("unprepare", lambda: self._functions.unprepare(folder))
        await self._quietly("deactivate", lambda: self._functions.deactivate(folder))

    async def unmount_left(self, folder: str) -> None:
        """Unmount what an earlier engine may have left mounted; that it was not is no error."""
        async with self._locks[folder]:
            if folder in self._mounted or not await self._threads.run(lambda: os.path.exists(folder)):
                return
            for what, call in (("unprepare", self._functions.unprepare), ("deactivate", self._functions.deactivate)):
                try:
                    await self._threads.run(lambda call=call: call(folder))  # type: ignore[misc]
                except LightermanError as failed:
                    log.debug("layer %s: %s: %s", folder, what, failed)

    # ---- away ----

    def remove(self, folder: str) -> asyncio.Task[None]:
        """Remove a writable layer, in the background, as often as it takes: Windows may hold it for a while."""
        known = self._removing.get(folder)
        if known is None or known.done():
            known = self._removing[folder] = self._go(self._remove(folder), f"remove {folder}")
            known.add_done_callback(lambda _: self._removing.pop(folder, None))
        return known

    async def sweep(self, root: str) -> None:
        """Go on with the removals that an earlier engine had begun below `root`. Returns when they are queued."""
        for name in await asyncio.to_thread(_names, root):
            if name.endswith(REMOVING):
                self.remove(os.path.join(root, name))

    async def _remove(self, folder: str) -> None:
        delay_s = limits.LAYER_REMOVAL_FIRST_S
        while True:
            try:
                async with self._locks[folder]:
                    await self._threads.run(lambda: self._try_to_remove(folder))
                return
            except (LightermanError, OSError) as failed:
                log.warning("layer %s: not removed yet, next try in %g s: %s", folder, delay_s, failed)
            await self._clock.sleep(delay_s)
            delay_s = min(2 * delay_s, limits.LAYER_REMOVAL_MAX_S)

    def _try_to_remove(self, folder: str) -> None:
        # Under its new name nobody takes it for a container's layer, even if we die in between.
        renamed = folder if folder.endswith(REMOVING) else folder + REMOVING
        if renamed != folder and os.path.exists(folder):
            if os.path.exists(renamed):
                self._functions.destroy(renamed)
            os.rename(folder, renamed)
        if os.path.exists(renamed):
            self._functions.destroy(renamed)

    # ---- the background ----

    async def idle(self) -> None:
        """Return when everything in the background is done, removals that are tried again apart."""
        while waiting := self._background - set(self._removing.values()):
            await asyncio.wait(waiting)

    async def close(self) -> None:
        """Finish the unmounts, give up the removals: the next engine's sweep goes on with them."""
        await self.idle()
        for task in list(self._removing.values()):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)

    def _go(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _shielded(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._go(work, "layer")
        await asyncio.shield(task)

    async def _quietly(self, what: str, call: Any) -> None:
        try:
            await self._threads.run(call)
        except LightermanError as failed:
            log.warning("%s: %s", what, failed)


def _names(root: str) -> list[str]:
    try:
        return os.listdir(root)
    except FileNotFoundError:
        return []
