"""What a runtime's `exec` had started when it failed, or was ended, before it could say so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from lighterman.runtimes.oci.processes import family_of
from lighterman.runtimes.oci.tree import kill_tree
from lighterman.scarcity import Reserve
from lighterman.threads import in_thread

__all__ = ["Strays"]

log = logging.getLogger(__name__)


class Strays:
    """Of one container with a pid namespace of its own: there only exec'd processes have the keeper as their parent.

    Args: pids: the container's processes. known: those that belong to somebody. keeper: its pid.
    """

    def __init__(
        self,
        pids: Callable[[], set[int]],
        known: Callable[[], set[int]],
        keeper: Callable[[], int],
        reserve: Reserve,
    ) -> None:
        self._pids = pids
        self._known = known
        self._keeper = keeper
        self._reserve = reserve
        self._starting = 0
        self._due = False
        self._ending: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def starting(self) -> AsyncIterator[None]:
        """Around one start. After one that fails, what nobody knows is ended as soon as no other is under way."""
        await self.settled()
        self._starting += 1
        try:
            yield
        except BaseException:
            self._due = True
            raise
        finally:
            self._starting -= 1
            if self._due and not self._starting:
                self._due = False
                self._ending = asyncio.get_running_loop().create_task(self._end(), name="end strays")

    async def settled(self) -> None:
        """Return when none is being ended."""
        while self._ending is not None and not self._ending.done():
            await asyncio.wait((self._ending,))

    async def _end(self) -> None:
        ending = partial(_end_strays, self._pids, self._known(), self._keeper())
        try:
            await in_thread(self._reserve.use, ending)
        except OSError as failed:
            log.error("what an exec that failed had started may be left: %s", failed)


def _end_strays(pids: Callable[[], set[int]], known: set[int], keeper: int) -> None:
    for pid in pids() - known:
        family = family_of(pid)
        if family is not None and family[0] == keeper:
            kill_tree(pid, pids)
