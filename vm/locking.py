"""One run at a time: the image, and what goes into the machines, are in one folder."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vm.errors import Failed

__all__ = ["alone"]

WAIT_S = 1200.0  # a smoke run's bound; nobody waits for a whole one
SAID_AFTER_S = 1.0
POLL_S = 0.2


@contextmanager
def alone(path: Path, wait_s: float = WAIT_S, said_after_s: float = SAID_AFTER_S) -> Iterator[None]:
    """Hold the lock `path`, which names its holder, after waiting for another run for at most `wait_s`.

    Raises: Failed if that run is not over by then.
    """
    with path.open("a+") as lock:
        started = time.monotonic()
        said = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            waited_s = time.monotonic() - started
            if waited_s >= wait_s:
                raise Failed(f"another run was not over within {wait_s:.0f} s: {_holder(path)} holds {path}")
            if waited_s >= said_after_s and not said:
                said = True
                print(
                    f"vm: waiting for another run, at most {wait_s:.0f} s: {_holder(path)}", file=sys.stderr, flush=True
                )
            time.sleep(POLL_S)
        lock.truncate(0)
        lock.write(f"pid {os.getpid()}, {' '.join(sys.argv[1:]) or 'no arguments'}, since {time.strftime('%H:%M:%S')}")
        lock.flush()
        yield


def _holder(path: Path) -> str:
    return path.read_text() or "one that has not said its name"
