"""Runtime calls whose keeper was killed: they go on by themselves, and would make what nobody knows of any more."""

from __future__ import annotations

import contextlib
import os
import select
import signal as signals
import time

from lighterman.errors import InvalidSpec
from lighterman.runtimes.oci.bundle import check_id
from lighterman.runtimes.oci.processes import family_of

__all__ = ["end_orphans"]

_WAIT_S = 5.0  # for their ends, all together; a system call that is under way is finished first


def end_orphans(states: str, keeper: int, container: str | None = None) -> set[str]:
    """End every call of a runtime with a state directory below `states` that is not of the keeper with that pid.

    Args: container: only those for this one.
    Blocking. Returns: their containers, once they have ended, or after some seconds.
    """
    ended: set[str] = set()
    pidfds: list[int] = []
    try:
        for entry in os.listdir("/proc"):
            if entry.isdigit() and _container_of(int(entry), states, container) is not None:
                pid = int(entry)
                with contextlib.suppress(OSError):
                    pidfd = os.pidfd_open(pid)
                    pidfds.append(pidfd)
                    # Looked at again: from now on the number stays its own.
                    found = _container_of(pid, states, container)
                    if found is not None and not _descends(pid, keeper):
                        signals.pidfd_send_signal(pidfd, signals.SIGKILL)
                        ended.add(found)
                    else:
                        os.close(pidfds.pop())
        _wait(pidfds)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
    return ended


def _container_of(pid: int, states: str, wanted: str | None) -> str | None:
    """What it is called for, if its arguments are those of `RuntimeCall.argv`: the last of them."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(65536).removesuffix(b"\0").split(b"\0")
    except OSError:
        return None
    if wanted is not None and words[-1] != wanted.encode():
        return None
    place = words.index(b"--root") + 1 if b"--root" in words else len(words)
    ours = place < len(words) and words[place].startswith(os.fsencode(f"{states}/")) and b"--log-format" in words
    if not ours:
        return None
    try:
        # Any program can have any arguments.
        check_id(id := os.fsdecode(words[-1]))
    except InvalidSpec:
        return None
    return id


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
