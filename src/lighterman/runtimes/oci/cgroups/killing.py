"""SIGKILL for a set of listed processes, without ever hitting a number that has been given to somebody else."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

# Each is a descriptor; a workload may have many thousands of processes, and `ulimit -n` may be 1024.
_AT_A_TIME = 128
_FOR_LISTING = 3


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
            left += _open_all(batch, opened)
            still_listed = list_pids()
            for pid, pidfd in opened.items():
                if pid in still_listed:
                    _kill(pidfd)
        finally:
            for pidfd in opened.values():
                os.close(pidfd)


def _open_all(pids: list[int], opened: dict[int, int]) -> list[int]:
    """Returns those for which this process has no descriptors left, and leaves room for a listing."""
    for done, pid in enumerate(pids):
        try:
            _open(pid, opened)
        except OSError as error:
            if error.errno != errno.EMFILE or len(opened) <= _FOR_LISTING:
                raise
            given_up = [opened.popitem() for _ in range(_FOR_LISTING)]
            for _, pidfd in given_up:
                os.close(pidfd)
            return [*pids[done:], *(number for number, _ in given_up)]
    return []


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
