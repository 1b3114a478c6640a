"""One container's cgroup: the directory of one path in every hierarchy, whichever version each of them has."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from lighterman.errors import NotFound, OperationTimeout
from lighterman.runtimes.oci.cgroups import files, v1, v2
from lighterman.runtimes.oci.cgroups.host import CgroupHost, Hierarchy
from lighterman.runtimes.oci.cgroups.killing import kill_listed
from lighterman.runtimes.oci.processes import is_dying
from lighterman.spec import Statistics

__all__ = ["Cgroup"]

_FREEZE_WAIT_S = 10.0  # a process in uninterruptible sleep delays it; everything else takes milliseconds
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.02
# What rmdir says of a cgroup with processes, or with others below.
_BUSY = frozenset({errno.EBUSY, errno.ENOTEMPTY})
# What mkdir says where there can be none below: gone, cgroup.max.descendants or .depth reached, read-only, forbidden.
_NO_CHILD = files.GONE | {errno.EAGAIN, errno.EROFS, errno.EACCES, errno.EPERM}


class _Freezer(Protocol):
    """What the modules `v1` and `v2` both have."""

    def set_frozen(self, directory: int, frozen: bool) -> bool: ...
    def frozen_state(self, directory: int) -> bool | None: ...


class Cgroup:
    """A cgroup by the path that the OCI document's `linux.cgroupsPath` has, as the cgroupfs driver understands it.

    crun and runc both make `MOUNT_POINT/lighterman/ID` in every mounted hierarchy, named and version 2 ones included.

    Every method is synchronous: file I/O of the kernel's, short unless a machine is in trouble, so it belongs into a
    thread. Each holds true while others create, empty or remove the cgroup at the same time; what is gone has no
    processes, is not frozen, and counts nothing.

    Args:
        path: absolute, as `/lighterman/ID`; relative to each hierarchy's mount point.

    Raises: InvalidSpec for a path that is not absolute or tries to climb.
    """

    def __init__(self, path: str, host: CgroupHost) -> None:
        self.path = path
        self.host = host
        self._components = files.split_path(path)

    def __repr__(self) -> str:
        return f"<Cgroup {self.path} ({self.host.layout})>"

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._components[-1]

    # ---- what is there -------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """In any hierarchy."""
        return any(True for _ in self._directories())

    def remaining(self) -> list[str]:
        """The directories that exist, one for each hierarchy: what an incomplete `remove` has left."""
        return [os.path.join(hierarchy.mount_point, *self._components) for hierarchy, _ in self._directories()]

    def pids(self) -> set[int]:
        """Of every process in it and below. A number alone names no process for long: see `processes.PidRef`."""
        return {pid for _, directory in self._directories() for pid in _listed(directory) if pid > 0}

    def is_empty(self) -> bool:
        """No process is in it or below, in any hierarchy. A zombie is not in it any more."""
        for hierarchy, directory in self._directories():
            populated = v2.populated(directory) if hierarchy.version == 2 else None
            # A process of a pid namespace that we can't see is listed as 0: it counts here.
            if populated if populated is not None else any(True for _ in _listed(directory)):
                return False
        return True

    # ---- a part of it --------------------------------------------------------------------------------------------

    def child(self, name: str) -> Cgroup:
        """The cgroup of that name directly below, there or not. Raises: InvalidSpec for a name that could climb."""
        return Cgroup(f"{self.path}/{name}", self.host)

    def make_child(self, name: str) -> Cgroup | None:
        """Make one below for a part of its processes, with no limits of its own: no controller is switched on for it.

        None where a runtime can't put a process there: version 1, where each part would need all limits again; a cgroup
        that is gone, may have no more below it, is read-only, or that its workload has made threaded.
        """
        if not self.host.has_parts:
            return None
        hierarchy = self.host.hierarchies[0]
        directory = files.open_directory(hierarchy.mount_point, self._components)
        if directory is None:
            return None
        try:
            try:
                os.mkdir(name, 0o755, dir_fd=directory)
            except OSError as refused:
                if refused.errno in _NO_CHILD:
                    return None
                raise
            if not v2.takes_processes(directory, name):
                _removed(directory, name)
                return None
        finally:
            os.close(directory)
        return self.child(name)

    def children(self) -> list[str]:
        """Names of the cgroups directly below, in any hierarchy."""
        return sorted({name for _, directory in self._directories() for name in files.subdirectories(directory)})

    # ---- freezing ------------------------------------------------------------------------------------------------

    def freeze(self, wait_s: float = _FREEZE_WAIT_S) -> None:
        """Stop every process in it from running; return when all have stopped.

        Raises: NotFound if there is no such cgroup or no freezer; OperationTimeout if a process did not stop within
            `wait_s`; then all are let go again.
        """
        deadline = time.monotonic() + wait_s
        with self._freezer() as (version, directory):
            for pause in _pauses():
                if not version.set_frozen(directory, True):
                    raise NotFound(f"cgroup {self.path} is gone", operation="pause")
                if version.frozen_state(directory):
                    return
                if time.monotonic() >= deadline:
                    version.set_frozen(directory, False)
                    raise OperationTimeout(
                        f"cgroup {self.path} was not frozen within {wait_s:g} s: a process can't be interrupted",
                        operation="pause",
                    )
                time.sleep(pause)

    def thaw(self) -> None:
        """Let every process run that `freeze` stopped; what the workload froze below by itself stays so.

        Raises: NotFound as `freeze`.
        """
        with self._freezer() as (version, directory):
            if not version.set_frozen(directory, False):
                raise NotFound(f"cgroup {self.path} is gone", operation="resume")

    def is_frozen(self) -> bool:
        """Whether all of it is frozen."""
        try:
            with self._freezer() as (version, directory):
                return version.frozen_state(directory) is True
        except NotFound:
            return False

    # ---- the end -------------------------------------------------------------------------------------------------

    def kill(self, wait_s: float = 1.0) -> bool:
        """SIGKILL for every process in it and below, frozen ones included, until none is left or `wait_s` is over.

        Returns: whether it is empty. One pass is made even with `wait_s=0`. Processes that can't be killed now (in
        uninterruptible sleep) leave it False; calling again is harmless.
        """
        deadline = time.monotonic() + wait_s
        for pause in _pauses():
            self._kill_once()
            if self.is_empty():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
        raise AssertionError("the pauses never end")

    def _kill_once(self) -> None:
        for hierarchy, directory in self._directories():
            if hierarchy.version == 2 and v2.kill(directory):
                # What a workload has moved about in v1 is found below.
                break
        kill_listed(self.pids)
        # v1's freezer holds back SIGKILL too. Thawed after the signal, a process runs no further instruction.
        freezer = self.host.freezer
        if freezer is not None and freezer.version == 1:
            for hierarchy, directory in self._directories():
                if hierarchy is freezer:
                    for below, _ in files.walk(directory):
                        v1.set_frozen(below, False)

    def let_die(self, pids: Set[int]) -> None:
        """Let those of its processes that have a SIGKILL die of it though all of it is frozen; the others stay so."""
        freezer = self.host.freezer
        if freezer is None or freezer.version == 2 or not self._is_held_back():
            return
        outside = files.open_directory(freezer.mount_point, self._components[:-1])
        if outside is None:
            return
        try:
            for pid in pids & self.pids():
                # v1's freezer holds back SIGKILL too, but not outside of it; there it runs no further instruction.
                if is_dying(pid):
                    with suppress(ProcessLookupError):
                        files.write(outside, "cgroup.procs", str(pid))
        finally:
            os.close(outside)

    def _is_held_back(self) -> bool:
        try:
            with self._freezer() as (version, directory):
                # Also while it is being frozen.
                return version.frozen_state(directory) is not False
        except NotFound:
            return False

    def remove(self) -> bool:
        """Remove its directories, the deepest first, in every hierarchy. Nothing is killed.

        Returns: whether all are gone; False while a process is left in one (`remaining` says where). Again is fine.
        """
        gone = True
        for hierarchy in self.host.hierarchies:
            gone &= self._remove_in(hierarchy)
        return gone

    def _remove_in(self, hierarchy: Hierarchy) -> bool:
        parent = files.open_directory(hierarchy.mount_point, self._components[:-1])
        if parent is None:
            return True
        name = self._components[-1]
        try:
            if _removed(parent, name):
                return True
            top = files.open_child(parent, name)
            if top is None:
                return True
            try:
                for directory, _ in files.walk(top):
                    for child in files.subdirectories(directory):
                        _removed(directory, child)
            finally:
                os.close(top)
            return _removed(parent, name)
        finally:
            os.close(parent)

    # ---- counters ------------------------------------------------------------------------------------------------

    def oom_kills(self) -> int | None:
        """How many processes of it and below the kernel has killed for memory; None where that is not counted.

        Version 1 forgets what was counted in a cgroup below that has been removed since.
        """
        memory = self.host.hierarchy_of("memory")
        for hierarchy, directory in self._directories():
            if hierarchy is not memory:
                continue
            if hierarchy.version == 2 and not hierarchy.local_events:
                return v2.oom_kills(directory)
            count_one = v1.oom_kills if hierarchy.version == 1 else v2.local_oom_kills
            counts = [count_one(each) for each, _ in files.walk(directory)]
            known = [count for count in counts if count is not None]
            return sum(known) if known else None
        return None

    def final_counters(self) -> tuple[int | None, int | None, int | None]:
        """OOM kills, peak memory in bytes, CPU time in ns: what is worth keeping when it ends, by a few small reads.

        None for what is not counted, or gone.
        """
        oom_kills, peak, cpu = None, None, None
        for controller in ("memory", "cpuacct") if self.host.layout != "v2" else ("memory",):
            hierarchy = self.host.hierarchy_of(controller)
            if hierarchy is None:
                continue
            directory = files.open_directory(hierarchy.mount_point, self._components)
            if directory is None:
                continue
            try:
                if hierarchy.version == 2:
                    return self.oom_kills(), files.read_number(directory, "memory.peak"), v2.cpu_ns(directory)
                if controller == "cpuacct":
                    cpu = files.read_number(directory, "cpuacct.usage")
                else:
                    peak = files.read_number(directory, "memory.max_usage_in_bytes")
                    counts = [v1.oom_kills(each) for each, _ in files.walk(directory)]
                    known = [count for count in counts if count is not None]
                    oom_kills = sum(known) if known else None
            finally:
                os.close(directory)
        return oom_kills, peak, cpu

    def statistics(self) -> Statistics:
        """Its counters now; `read_at` is Unix time in seconds.

        Raises: NotFound if it exists in no hierarchy.
        """
        counters: dict[str, Any] = {}
        found = False
        read_at = time.time()
        for hierarchy, directory in self._directories():
            found = True
            readers: Mapping[str, Callable[[int], v1.Counters]] = {1: v1.STATISTICS, 2: v2.STATISTICS}[
                hierarchy.version
            ]
            for controller, reader in readers.items():
                if controller in hierarchy.controllers or self.host.layout == "v2":
                    counters.update(reader(directory))
        if not found:
            raise NotFound(f"there is no cgroup {self.path}", operation="statistics")
        return Statistics(read_at=read_at, oom_kills=self.oom_kills(), **counters)

    # ---- directories ---------------------------------------------------------------------------------------------

    def _directories(self) -> Iterator[tuple[Hierarchy, int]]:
        """Its directory in each hierarchy that has it; each descriptor is closed when the next is taken."""
        for hierarchy in self.host.hierarchies:
            directory = files.open_directory(hierarchy.mount_point, self._components)
            if directory is None:
                continue
            try:
                yield hierarchy, directory
            finally:
                os.close(directory)

    @contextmanager
    def _freezer(self) -> Iterator[tuple[_Freezer, int]]:
        freezer = self.host.freezer
        if freezer is None:
            raise NotFound("this host has no freezer cgroup: mount it, or use cgroup v2", operation="pause")
        directory = files.open_directory(freezer.mount_point, self._components)
        if directory is None:
            raise NotFound(f"there is no cgroup {self.path}", operation="pause")
        try:
            yield (v1 if freezer.version == 1 else v2), directory
        finally:
            os.close(directory)


def _listed(directory: int) -> Iterator[int]:
    for each, _ in files.walk(directory):
        listed = files.read(each, "cgroup.procs")
        yield from v2.threads_processes(each) if listed is None else map(int, listed.split())


def _removed(parent: int, name: str) -> bool:
    """Whether the directory is gone now; False if it is in use."""
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in files.GONE:
            raise
    return True


def _pauses() -> Iterator[float]:
    """Seconds to wait between two looks: short at first, since most of it takes well under a millisecond."""
    pause = _FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(pause * 2, _LONGEST_PAUSE_S)
