"""SIGKILL for a set of listed processes, without ever hitting a number that has been given to somebody else."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

# Each is a descriptor; a workload may have many thousands of processes, and `ulimit -n` may be 1024.
_AT_A_TIME = 128


def kill_listed(list_pids: Callable[[], set[int]]) -> None:
    """One pass over what `list_pids` says; what is forked meanwhile needs another.

    A number may be recycled between listing and opening. So all are listed again once the pidfds are open: a number
    still listed belonged to a listed process at that moment, and its pidfd either is that process or a dead one.
    """
    left = sorted(list_pids())
    while left:
        batch, left = left[:_AT_A_TIME], left[_AT_A_TIME:]
        opened: dict[int, int] = {}
        try:
            for pid in batch:
                _open(pid, opened)
            still_listed = list_pids()
            for pid, pidfd in opened.items():
                if pid in still_listed:
                    _kill(pidfd)
        finally:
            for pidfd in opened.values():
                os.close(pidfd)


def _open(pid: int, opened: dict[int, int]) -> None:
    try:
        opened[pid] = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError as error:
        # The number is a thread's by now, not a process's: recycled. EINVAL before Linux 6.9, ENOENT since.
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
