"""The port below the runtime: what a DLL of the service is asked, whichever it is. Documents are JSON text.

Failures are raised by their codes (`failures.failure`). Nothing here is retried, and nothing above blocks a thread.
"""

from __future__ import annotations

from typing import Protocol

from lighterman.runtimes.hcs.notifications import Record

__all__ = ["Binding", "ProcessHandle", "StdHandles", "SystemHandle"]


class StdHandles(Protocol):
    """A process's number and our ends of its streams, as the platform numbers them; 0 for what was not asked for."""

    @property
    def pid(self) -> int: ...
    @property
    def stdin(self) -> int: ...
    @property
    def stdout(self) -> int: ...
    @property
    def stderr(self) -> int: ...


class ProcessHandle(Protocol):
    """An open process."""

    @property
    def pid(self) -> int: ...
    @property
    def record(self) -> Record: ...

    async def std_handles(self) -> StdHandles:
        """Those made with the process the first time, further ones later; who gets a set closes it."""

    async def status(self) -> str:
        """The `ProcessStatus` document."""

    async def modify(self, settings: str) -> None: ...

    async def kill(self) -> None:
        """Ask for its end; it may be gone later only."""

    async def close(self) -> None:
        """Unregister, close. Waits for calls under way. Raises: AlreadyClosed."""


class SystemHandle(Protocol):
    """An open compute system."""

    @property
    def id(self) -> str: ...
    @property
    def record(self) -> Record: ...

    async def start(self) -> None:
        """Return when it runs."""

    async def shutdown(self) -> None:
        """Ask it to end; asked is not done."""

    async def terminate(self) -> None:
        """End it; asked is not done."""

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...

    async def wait_exit(self) -> None:
        """Return when it is gone. Raises: UnexpectedExit, ServiceLost, AlreadyClosed."""

    async def properties(self, query: str) -> str: ...
    async def modify(self, request: str) -> None: ...

    async def create_process(self, document: str) -> ProcessHandle: ...
    async def open_process(self, pid: int) -> ProcessHandle: ...

    async def close(self) -> None:
        """Unregister, close; neither stops it nor waits for that. Raises: AlreadyClosed."""


class Binding(Protocol):
    """One of the two DLLs."""

    @property
    def name(self) -> str: ...

    @property
    def schema(self) -> int:
        """1 or 2: the shape of the configuration of `create`."""

    async def create(self, id: str, configuration: str) -> SystemHandle:
        """Return when it is created. On a failure, a cancellation too, nothing is left of it."""

    async def open(self, id: str) -> SystemHandle: ...
    async def enumerate(self, query: str) -> str: ...
    async def service_properties(self, query: str) -> str: ...
