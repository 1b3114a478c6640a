"""One maker at a time in the image cache, among the processes of a user and among the threads of one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["cache_lock"]

# A record lock belongs to the process: two threads of one would both get it.
_threads = threading.Lock()


@contextmanager
def cache_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of the cache at `directory`; waits for whoever has it. Gone with the process, however it ends."""
    # Here, so that images can be spoken of on a system that has no such module.
    import fcntl

    with _threads:
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
