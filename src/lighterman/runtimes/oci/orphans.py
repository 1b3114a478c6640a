"""What goes on of runtime calls that nobody waits for any more, and would make what nobody knows of.

A call whose keeper was killed goes on by itself. Of a call that was killed goes on what it had forked: crun, told to
detach, forks at once, and it is the child, in a session of its own, that makes the cgroups and the container.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal as signals
import time
from collections.abc import Collection
from functools import partial

from lighterman import limits
from lighterman.errors import InvalidSpec, LimitExceeded, OperationTimeout
from lighterman.runtimes.oci.bundle import check_id
from lighterman.runtimes.oci.processes import family_of
from lighterman.threads import look_at_files

__all__ = ["end_orphans", "look_for_orphans"]

log = logging.getLogger(__name__)

_WHOLE_S = limits.HOST_FILES_S / 2  # all of it: a workload can look like calls, and fork
_WAIT_S = 5.0  # for their ends, all together; a system call that is under way is finished first
_MAKERS = frozenset({b"run", b"restore", b"exec"})
_KEEPER = b"/keeper/__main__.py"


def end_orphans(
    states: str, keeper: int, container: str | None = None, *, settled: bool = False, known: Collection[int] = ()
) -> set[str]:
    """End what makes processes of containers, of every runtime with a state directory below `states`.

    Args: keeper: what descends from that process is left alone, unless `settled`: no call is under way in it.
        container: only those for this one. known: processes of containers; one that was started just now may still
            bear its runtime's arguments.
    Blocking. Returns: their containers, once they have ended, or after some seconds.
    """
    ended: set[str] = set()
    deadline = time.monotonic() + _WHOLE_S
    # Again until there are none: one that was found may have forked another meanwhile.
    while found := _end_found(states, keeper, container, known, deadline, settled=settled):
        ended.update(id for _, id in found if id)
        try:
            all_ended = _wait([pidfd for pidfd, _ in found])
        finally:
            for pidfd, _ in found:
                os.close(pidfd)
        if not all_ended:
            break
    return ended


async def look_for_orphans(
    states: str, keeper: int, container: str | None = None, *, settled: bool = False, known: Collection[int] = ()
) -> set[str]:
    """`end_orphans`, for who can't block. To read a process's arguments can wait for one that hangs in the kernel: what
    was not found in time goes on, and that is said."""
    look = partial(end_orphans, states, keeper, container, settled=settled, known=known)
    try:
        return await look_at_files("what runtime calls go on", look)
    except (OperationTimeout, LimitExceeded, OSError) as failed:
        log.error("runtime calls that nobody waits for may go on: %s", failed)
        return set()


def _end_found(
    states: str, keeper: int, container: str | None, known: Collection[int], deadline: float, *, settled: bool
) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in known:
            continue
        pid = int(entry)
        if _container_of(pid, states, keeper, container) is None:
            continue
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            # Looked at again: from now on the number stays its own.
            id = _container_of(pid, states, keeper, container)
            if id is None or (_descends(pid, keeper) and not settled) or not _sees(pid, states):
                os.close(pidfd)
                continue
            if time.monotonic() > deadline:
                # Nobody waits for this any more, and what runs now may be wanted.
                os.close(pidfd)
                break
            found.append((pidfd, id))
            signals.pidfd_send_signal(pidfd, signals.SIGKILL)
    return found


def _sees(pid: int, states: str) -> bool:
    """Whether that directory is the same for it: an engine in a container has paths like ours, and others' directories.

    A container's first process, on its way, may see neither: that one ends with who has made it, or by its cgroup.
    """
    run_dir = os.path.dirname(states)
    try:
        theirs, ours = os.stat(f"/proc/{pid}/root{run_dir}"), os.stat(run_dir)
    except OSError:
        return False
    return os.path.samestat(theirs, ours)


def _container_of(pid: int, states: str, keeper: int, wanted: str | None) -> str | None:
    """What it is called for, if its arguments are those of `RuntimeCall.argv`: the last of them; else None.

    Empty: it is a lost keeper's, and about to be a call. Between fork and exec it bears the keeper's own arguments.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(65536).removesuffix(b"\0").split(b"\0")
    except OSError:
        return None
    if pid != keeper and wanted is None and _is_keeper(words, os.fsencode(os.path.dirname(states))):
        return ""
    if wanted is not None and words[-1] != wanted.encode():
        return None
    place = words.index(b"--root") + 1 if b"--root" in words else len(words)
    ours = place < len(words) and words[place].startswith(os.fsencode(f"{states}/")) and b"--log-format" in words
    if not ours or _MAKERS.isdisjoint(words[place:]):
        return None
    try:
        # Any program can have any arguments.
        check_id(id := os.fsdecode(words[-1]))
    except InvalidSpec:
        return None
    return id


def _is_keeper(words: list[bytes], run_dir: bytes) -> bool:
    return run_dir in words and any(word.endswith(_KEEPER) for word in words)


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        family = family_of(pid)
        if family is None:
            return False
        pid = family[0]
    return False


def _wait(pidfds: list[int]) -> bool:
    deadline = time.monotonic() + _WAIT_S
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    left = len(pidfds)
    while left and (left_s := deadline - time.monotonic()) > 0:
        for pidfd, _ in poll.poll(left_s * 1000):
            poll.unregister(pidfd)
            left -= 1
    return not left
