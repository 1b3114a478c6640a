"""Hearing of OOM kills while a container runs: one inotify for all of version 2, with version 1 an eventfd for each.

Version 2 notifies of a change of `memory.events`, after it has counted (the kernel's admin-guide/cgroup-v2, "Core
Interface Files"); version 1 notifies who has registered with `cgroup.event_control`, before it has
(admin-guide/cgroup-v1/memory, "OOM Control"), and only of a limit of the cgroup that was reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
from collections.abc import Callable, Sequence

from lighterman.runtimes.oci.cgroups import files
from lighterman.runtimes.oci.cgroups.cgroup import Cgroup
from lighterman.runtimes.oci.cgroups.host import CgroupHost, Hierarchy
from lighterman.runtimes.oci.syscalls import inotify_add_watch, inotify_init, inotify_rm_watch
from lighterman.threads import in_thread

__all__ = ["OomEar", "OomEars"]

log = logging.getLogger(__name__)

_IN_MODIFY, _IN_IGNORED = 0x2, 0x8000  # linux/inotify.h, with the next two
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of a name, which is 0 for a file that is watched itself
_READ_BYTES = 4096
# From a notice to a look at the count: by then it shows whether it was the init that was killed. Version 1 counts some
# time after its notice; version 2 has others to give than of kills, and many of them while memory is short.
_LOOKS_S = {1: (0.01, 0.02, 0.05, 0.1, 0.3, 1.0), 2: (0.01,)}
_PAUSE_S = 0.2  # after a notice for nothing


class OomEar:
    """Of one cgroup; made by `OomEars.listen`. Tells the count of kills when it has grown, never twice the same."""

    def __init__(
        self,
        cgroup: Cgroup,
        looks_s: Sequence[float],
        told: int,
        is_ending: Callable[[], bool],
        tell: Callable[[int], None],
    ) -> None:
        self._cgroup = cgroup
        self._looks_s = looks_s
        self._told = told
        self._is_ending = is_ending
        self._tell = tell
        self._again: Sequence[float] = ()
        self._looking: asyncio.Task[None] | None = None
        self.close_source: Callable[[], None] = _nothing

    def notice(self) -> None:
        """Something may have been killed just now."""
        self._look_again(self._looks_s)

    def look(self) -> None:
        """Something may have been killed before."""
        self._look_again(self._again or self._looks_s[:1])

    def _look_again(self, looks_s: Sequence[float]) -> None:
        self._again = looks_s
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look(), name=f"oom of {self._cgroup.path}")

    async def _look(self) -> None:
        try:
            while self._again:
                looks_s, self._again = self._again, ()
                if not await self._look_until_it_has_grown(looks_s) and self._again:
                    await asyncio.sleep(_PAUSE_S)
        finally:
            self._looking = None

    async def _look_until_it_has_grown(self, looks_s: Sequence[float]) -> bool:
        for pause_s in looks_s:
            await asyncio.sleep(pause_s)
            try:
                count = await in_thread(self._count)
            except OSError as failed:
                log.warning("cgroup %s: its OOM kills can't be read: %s", self._cgroup.path, failed)
                return False
            if count is None:
                return False
            if count > self._told:
                self._told = count
                self._tell(count)
                return True
        return False

    def _count(self) -> int | None:
        """None where it has ended, or is about to: then its exit tells the count."""
        count = self._cgroup.oom_kills()
        return None if self._is_ending() else count

    def close(self) -> None:
        """Again is nothing."""
        close_source, self.close_source = self.close_source, _nothing
        close_source()
        if self._looking is not None:
            self._looking.cancel()


class OomEars:
    """Of one engine; on its loop."""

    def __init__(self, host: CgroupHost) -> None:
        self._memory = host.hierarchy_of("memory")
        self._inotify: int | None = None
        self._ears: dict[int, OomEar] = {}  # by watch descriptor

    def listen(
        self,
        cgroup: Cgroup,
        *,
        limited: bool,
        told: int,
        is_ending: Callable[[], bool],
        tell: Callable[[int], None],
    ) -> OomEar | None:
        """Call `tell` with how many of its processes have been killed for memory when these are more than `told`.

        A few calls to cgroupfs, which is memory.

        Args:
            limited: whether it has a memory limit; without one, version 1 has nothing to notify of.
            is_ending: whether it ends anyway; then nothing is told. Asked in a thread.

        Returns: None where this host can't tell. Raises: OSError when descriptors or watches have run out.
        """
        memory = self._memory
        if memory is None or (memory.version == 1 and not limited):
            return None
        ear = OomEar(cgroup, _LOOKS_S[memory.version], told, is_ending, tell)
        found = self._watch(memory, ear, cgroup) if memory.version == 2 else self._register(memory, ear, cgroup)
        return ear if found else None

    def close(self) -> None:
        """Give the descriptor back; every ear has been closed."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = None

    # ---- version 2 ----

    def _watch(self, memory: Hierarchy, ear: OomEar, cgroup: Cgroup) -> bool:
        if self._inotify is None:
            self._inotify = inotify_init()
            asyncio.get_running_loop().add_reader(self._inotify, self._heard)
        path = f"{memory.mount_point}{cgroup.path}/memory.events"
        try:
            watch = inotify_add_watch(self._inotify, path, _IN_MODIFY)
        except OSError as failed:
            if failed.errno in files.GONE:
                return False  # it has ended already, or the controller is off
            raise
        self._ears[watch] = ear
        ear.close_source = lambda: self._unwatch(watch)
        return True

    def _unwatch(self, watch: int) -> None:
        if self._ears.pop(watch, None) is not None and self._inotify is not None:
            # EINVAL: the cgroup was removed, and the watch with it.
            with contextlib.suppress(OSError):
                inotify_rm_watch(self._inotify, watch)

    def _heard(self) -> None:
        assert self._inotify is not None
        try:
            data = os.read(self._inotify, _READ_BYTES)
        except BlockingIOError:
            return
        offset = 0
        while offset + _EVENT.size <= len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            if watch == -1:  # IN_Q_OVERFLOW: anyone may have been meant
                for ear in tuple(self._ears.values()):
                    ear.notice()
            elif (ear_of := self._ears.get(watch)) is not None and not mask & _IN_IGNORED:
                ear_of.notice()

    # ---- version 1 ----

    def _register(self, memory: Hierarchy, ear: OomEar, cgroup: Cgroup) -> bool:
        directory = files.open_directory(memory.mount_point, files.split_path(cgroup.path))
        if directory is None:
            return False
        try:
            notices = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:  # no more descriptors
            os.close(directory)
            raise
        control = None
        try:
            control = os.open("memory.oom_control", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            registered = files.write(directory, "cgroup.event_control", f"{notices} {control}")
        except OSError as failed:
            os.close(notices)
            if failed.errno in files.GONE:
                return False
            raise
        finally:
            if control is not None:
                os.close(control)
            os.close(directory)
        if not registered:
            os.close(notices)
            return False
        loop = asyncio.get_running_loop()

        def heard() -> None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(notices)
            ear.notice()

        def close() -> None:
            loop.remove_reader(notices)
            os.close(notices)

        loop.add_reader(notices, heard)
        ear.close_source = close
        return True


def _nothing() -> None:
    return
