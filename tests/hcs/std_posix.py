"""The double's streams on Linux: descriptors as handles."""

from __future__ import annotations

import os

from lighterman.runtimes.base import ReadPipe, WritePipe
from lighterman.runtimes.oci.pipes import FdReadPipe, FdWritePipe


class PosixStdPipes:
    """See `lighterman.runtimes.hcs.std.StdPipes`."""

    def reader(self, handle: int) -> ReadPipe:
        return FdReadPipe(handle)

    def writer(self, handle: int) -> WritePipe:
        return FdWritePipe(handle)

    def close(self, handle: int) -> None:
        os.close(handle)
