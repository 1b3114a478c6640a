"""A cgroup of its own for each exec, below its container's: all that it starts is in there, whoever its parent is.

Only with cgroup version 2, and a runtime that has the program in there from its first instruction on: crun clones into
it, runc moves its child before that becomes the program.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import Callable

from lighterman.ends import to_its_end
from lighterman.runtimes.oci.cgroups import Cgroup
from lighterman.threads import in_thread

__all__ = ["ExecCgroups", "OwnCgroup", "can_exec_into"]

_PREFIX = "lighterman-exec-"
_SINCE = {"crun": (1, 4), "runc": (1, 1)}  # versions that have `exec --cgroup`
_LOOKS = 16  # at the cgroups of ended execs in which something lives on, with each further exec that ends
_KILL_S = 2.0  # what takes longer to die is left to the end of its container


def can_exec_into(runtime: str, version: str) -> bool:
    """Whether this build has `exec --cgroup`."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    since = _SINCE.get(runtime)
    return since is not None and numbers is not None and (int(numbers[1]), int(numbers[2])) >= since


class OwnCgroup:
    """One exec's; see `tree.Members`."""

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup

    @property
    def name(self) -> str:
        """Of its directory, in the container's."""
        return self._cgroup.name

    def look(self) -> set[int]:
        return self._cgroup.pids()

    def kill(self) -> None:
        self._cgroup.kill(_KILL_S)

    def remove(self) -> bool:
        """Whether it is gone; False while something is in it."""
        return self._cgroup.remove()


class ExecCgroups:
    """Those of one container."""

    def __init__(self, container: Cgroup, *, possible: bool) -> None:
        self._container = container
        # Not even a thread's turn where it can't be.
        self._possible = possible and container.host.has_parts
        self._left: deque[OwnCgroup] = deque()

    async def make(self) -> OwnCgroup | None:
        """An empty one; None where that can't be: the exec lives in its container's then. Cancelled: there is none."""
        if not self._possible:
            return None
        making = asyncio.ensure_future(in_thread(self._make))
        try:
            return await to_its_end(making)
        except asyncio.CancelledError:
            if making.exception() is None and (made := making.result()) is not None:
                await to_its_end(in_thread(self.leave, made))
            raise

    def _make(self) -> OwnCgroup | None:
        made = self._container.make_child(f"{_PREFIX}{os.urandom(6).hex()}")
        return OwnCgroup(made) if made is not None else None

    def leave(self, own: OwnCgroup) -> None:
        """Its exec has ended: remove it, now or with a later one, once what lives on in there has ended. Blocking."""
        self._left.append(own)
        for _ in range(min(_LOOKS, len(self._left))):
            try:
                oldest = self._left.popleft()
            except IndexError:  # another thread was faster
                return
            if not oldest.remove():
                self._left.append(oldest)

    # ---- taking over ----

    def found(self, name: str | None) -> OwnCgroup | None:
        """The one that an earlier engine has made for an exec."""
        return OwnCgroup(self._container.child(name)) if name is not None else None

    def of_process(self, pid: int) -> OwnCgroup | None:
        """The one that a process is in, where nobody knows its name any more. Blocking."""
        names = self._container.children() if self._possible else []
        owns = (OwnCgroup(self._container.child(name)) for name in names if name.startswith(_PREFIX))
        return next((own for own in owns if pid in own.look()), None)

    def leaving(self, name: str | None) -> Callable[[], None] | None:
        """What to do when an earlier engine's exec has ended."""
        own = self.found(name)
        return None if own is None else lambda: self.leave(own)

    async def take_up(self, known: set[str | None]) -> None:
        """What earlier engines could not remove yet is ours to remove; `known` belong to execs."""
        if self._possible:
            names = await in_thread(self._container.children)
            left = [name for name in names if name.startswith(_PREFIX) and name not in known]
            self._left.extend(OwnCgroup(self._container.child(name)) for name in left)
