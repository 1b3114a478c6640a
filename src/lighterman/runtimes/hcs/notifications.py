"""What the service tells of an open system or process: latched, so that no waiter misses it and none eats it.

The service calls on threads of its own, at any time, inside of the registering call too. Here the loop hears of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from lighterman.clock import Clock
from lighterman.errors import AlreadyClosed, OperationTimeout
from lighterman.runtimes.hcs.codes import is_failure
from lighterman.runtimes.hcs.failures import ServiceLost, failure, unexpected_exit

__all__ = ["Happening", "Notification", "Record"]


class Happening(StrEnum):
    """What can be told; the numbers differ between the two DLLs."""

    SYSTEM_EXITED = "system exited"
    CREATED = "create"
    STARTED = "start"
    PAUSED = "pause"
    RESUMED = "resume"
    PROCESS_EXITED = "process exited"
    DISCONNECTED = "service disconnect"


@dataclass(frozen=True, slots=True)
class Notification:
    """The first of its kind: the HRESULT, unsigned; the JSON beside it; when it came (monotonic, Unix; seconds)."""

    status: int
    data: str | None
    mono: float
    wall: float


class Record:
    """One open handle's notifications. Made on the loop; `deliver` may be called on any thread."""

    def __init__(self, container: str, slots: frozenset[Happening], clock: Clock) -> None:
        self.container = container
        self.clock = clock
        self.closed = False
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._latched: dict[Happening, Notification] = {}
        self._changed = asyncio.Event()

    def deliver(self, happening: Happening, status: int, data: str | None) -> None:
        """From a thread of the service: only pass it on."""
        try:
            self._loop.call_soon_threadsafe(self._arrived, happening, status, data)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _arrived(self, happening: Happening, status: int, data: str | None) -> None:
        if happening not in self._slots or happening in self._latched:
            return
        self._latched[happening] = Notification(status, data, self.clock.mono(), self.clock.wall())
        self._wake()

    def got(self, happening: Happening) -> Notification | None:
        """What was latched."""
        return self._latched.get(happening)

    def clear(self, happening: Happening) -> None:
        """Before an operation is asked for again: its last completion is not this one's."""
        self._latched.pop(happening, None)

    def close(self) -> None:
        """The callback is unregistered: who still waits is told."""
        self.closed = True
        self._wake()

    def wake(self) -> None:
        """Let the waiters look again."""
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def changed(self) -> Coroutine[Any, Any, Literal[True]]:
        """To be awaited: done when something has been latched, or the record closed, since this call."""
        return self._changed.wait()

    async def wait(self, expected: Happening, operation: str, limit_s: float | None = None) -> Notification:
        """The expected notification, at the first of: it came; the system exited; the service is lost; closed; late.

        A completion that did come wins over the exit that followed it. Its failing status is raised.

        Raises: UnexpectedExit, ServiceLost, AlreadyClosed, OperationTimeout, and by the status.
        """
        try:
            async with self.clock.timeout(limit_s):
                while True:
                    found = self._look(expected, operation)
                    if found is not None:
                        return found
                    await self._changed.wait()
        except TimeoutError as late:
            raise OperationTimeout(
                f"container {self.container} encountered an error during {operation}: no answer in {limit_s:g} s",
                operation=operation,
                container=self.container,
            ) from late

    def _look(self, expected: Happening, operation: str) -> Notification | None:
        found = self._latched.get(expected)
        if found is not None:
            if is_failure(found.status):
                raise failure(found.status, operation, self.container, result=found.data)
            return found
        if Happening.SYSTEM_EXITED in self._latched:
            raise unexpected_exit(operation, self.container)
        if Happening.DISCONNECTED in self._latched:
            raise ServiceLost(
                f"container {self.container} encountered an error during {operation}: "
                "the Host Compute Service (vmcompute) disconnected",
                runtime="hcs",
                operation=operation,
                container=self.container,
            )
        if self.closed:
            raise AlreadyClosed(f"container {self.container}: its handle was closed during {operation}")
        return None
