"""Runtime calls whose keeper was killed: they go on by themselves, and would make what nobody knows of any more."""

from __future__ import annotations

import contextlib
import os
import select
import signal as signals
import time

from lighterman.runtimes.oci.processes import family_of

__all__ = ["end_orphans"]

_WAIT_S = 5.0  # for their ends, all together; a system call that is under way is finished first


def end_orphans(states: str, keeper: int, container: str | None = None) -> list[int]:
    """End every call of a runtime with a state directory below `states` that is not of the keeper with that pid.

    Args: container: only those for this one.
    Blocking. Returns: their pids, once they have ended, or after some seconds.
    """
    ended: list[int] = []
    pidfds: list[int] = []
    try:
        for entry in os.listdir("/proc"):
            if entry.isdigit() and _is_call(int(entry), states, container):
                pid = int(entry)
                with contextlib.suppress(OSError):
                    pidfd = os.pidfd_open(pid)
                    pidfds.append(pidfd)
                    # Looked at again: from now on the number stays its own.
                    if _is_call(pid, states, container) and not _descends(pid, keeper):
                        signals.pidfd_send_signal(pidfd, signals.SIGKILL)
                        ended.append(pid)
                    else:
                        os.close(pidfds.pop())
        _wait(pidfds)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
    return ended


def _is_call(pid: int, states: str, container: str | None) -> bool:
    """Whether its arguments are those of `RuntimeCall.argv`."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(65536).split(b"\0")
    except OSError:
        return False
    if container is not None and container.encode() not in words:
        return False
    place = words.index(b"--root") + 1 if b"--root" in words else len(words)
    return place < len(words) and words[place].startswith(os.fsencode(f"{states}/")) and b"--log-format" in words


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        family = family_of(pid)
        if family is None:
            return False
        pid = family[0]
    return False


def _wait(pidfds: list[int]) -> None:
    deadline = time.monotonic() + _WAIT_S
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    left = len(pidfds)
    while left and (left_s := deadline - time.monotonic()) > 0:
        for pidfd, _ in poll.poll(left_s * 1000):
            poll.unregister(pidfd)
            left -= 1
