"""Our ends of a process's streams: how a handle that the service gave becomes a pipe of the port."""

from __future__ import annotations

from typing import Protocol

from lighterman.runtimes.base import ReadPipe, WritePipe

__all__ = ["StdPipes"]


class StdPipes(Protocol):
    """The platform's way; each method takes the handle over."""

    def reader(self, handle: int) -> ReadPipe: ...
    def writer(self, handle: int) -> WritePipe: ...
    def close(self, handle: int) -> None: ...
