"""Processes by pidfd, and what /proc tells of them. A number alone is never trusted: it may be somebody else's by now.

Reading /proc can block behind a process that is stuck in the kernel: `process_summaries` belongs into a thread.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import signal as signals
import struct
from collections.abc import Iterable

import msgspec

from lighterman.errors import AlreadyStopped, NotFound, NotSupported
from lighterman.spec import ProcessSummary

__all__ = [
    "PidRef",
    "family_of",
    "has_exited",
    "is_dying",
    "open_pidfd_checked",
    "pidfd_exit_status",
    "process_summaries",
    "read_start_time",
    "send_signal",
    "uninterruptible",
    "wait_exit_status",
    "wait_pidfd",
    "zombie_exit_status",
]

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_COMMAND_BYTES = 65536  # of one process's command line; it may be megabytes, and the process can write anything into it

# linux/pidfd.h: PIDFD_GET_INFO = _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes.
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3
_REAP_WAIT_S = 1.0  # a parent that reaps at all does so at once


class PidRef(msgspec.Struct, frozen=True):
    """One process, for ever: the number, and when it was started (clock ticks after boot, /proc/PID/stat field 22)."""

    pid: int
    start_time: int


# ---- pidfds ------------------------------------------------------------------------------------------------------


def open_pidfd_checked(pid: int, start_time: int) -> int:
    """A pidfd (close-on-exec) of the process with this number and this start time; a zombie will do.

    Raises: NotFound if there is no such process any more.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        # EINVAL, ENOENT: the number is a thread's by now, or never was one.
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            raise NotFound(f"there is no process {pid}") from error
        if error.errno == errno.ENOSYS:
            raise NotSupported("this kernel has no pidfd: Linux 5.3 or later is needed") from error
        raise
    # Checked after opening: from now on the number can't be given away without the pidfd showing it.
    try:
        found = read_start_time(pid)
        if found != start_time:
            raise NotFound(f"process {pid} that was started at tick {start_time} is gone (now: {found})")
    except BaseException:
        os.close(pidfd)
        raise
    return pidfd


def send_signal(pidfd: int, signal: int) -> None:
    """Deliver one signal. Raises: AlreadyStopped; NotSupported for a number that is no signal."""
    try:
        signals.pidfd_send_signal(pidfd, signal)
    except ProcessLookupError as error:
        raise AlreadyStopped("the process has ended") from error
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise NotSupported(f"signal {signal}: this kernel has no such signal") from error
        raise


def has_exited(pidfd: int) -> bool:
    """Whether all of its threads have ended, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def wait_pidfd(pidfd: int) -> None:
    """Return when the process has ended, reaped or not. Several may wait; closing `pidfd` meanwhile disturbs none."""
    # The loop has one reader for each descriptor: hence one of its own for each who waits.
    own = os.dup(pidfd)
    try:
        await _readable(own)
    finally:
        os.close(own)


async def wait_exit_status(pidfd: int, reap_wait_s: float = _REAP_WAIT_S, zombie: PidRef | None = None) -> int | None:
    """Wait until the process has ended; its wait status if the kernel tells (see `pidfd_exit_status`), else None.

    The kernel tells once the parent has reaped it, for which `reap_wait_s` is waited.

    Args: zombie: which process it is; then it is also looked at in /proc, before its parent has reaped it.
    """
    own = os.dup(pidfd)
    try:
        await _readable(own)
        if zombie is not None and (status := zombie_exit_status(zombie)) is not None:
            return status
        if _get_info(own, 0) is None:
            return pidfd_exit_status(own)
        # Without any event asked for, it reports nothing but POLLHUP: the process has been reaped.
        with select.epoll() as reaped:
            reaped.register(own, 0)
            try:
                async with asyncio.timeout(reap_wait_s):
                    await _readable(reaped.fileno())
            except TimeoutError:
                return None
        return pidfd_exit_status(own)
    finally:
        os.close(own)


def zombie_exit_status(process: PidRef) -> int | None:
    """The wait status of a process that has ended and was not reaped: proc(5), field 52 of stat, for root."""
    try:
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # Counted from the field after the name: state 3, start time 22, exit code 52.
    if len(fields) < 50 or fields[0] != b"Z" or int(fields[19]) != process.start_time:
        return None
    return int(fields[49])


def pidfd_exit_status(pidfd: int) -> int | None:
    """The wait status (`os.waitstatus_to_exitcode` reads it), for anybody who holds a pidfd from before the end.

    Linux 6.15 and later, and after the parent has reaped it; None otherwise.
    """
    info = _get_info(pidfd, _PIDFD_INFO_EXIT)
    if info is None or not info[0] & _PIDFD_INFO_EXIT:
        return None
    return int(info[-1])


def _get_info(pidfd: int, wanted: int) -> tuple[int, ...] | None:
    buffer = bytearray(_PIDFD_INFO.pack(wanted, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError as error:
        # ESRCH: it has been reaped, and nothing was asked for that outlives it. The others: an older kernel.
        if error.errno in (errno.ESRCH, errno.ENOTTY, errno.EINVAL):
            return None
        raise
    return _PIDFD_INFO.unpack(buffer)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_reader(descriptor, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(descriptor)


# ---- /proc -------------------------------------------------------------------------------------------------------


def read_start_time(pid: int) -> int | None:
    """Clock ticks after boot; None if there is no such process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def family_of(pid: int) -> tuple[int, int] | None:
    """Its parent and the leader of its session; None if there is no such process, or it is dead and unreaped."""
    fields = _stat(pid)
    return (int(fields[1]), int(fields[3])) if fields and fields[0] not in "ZX" else None


def is_dying(pid: int) -> bool:
    """Whether it has a SIGKILL that it has not died of yet, is on its way out, or is gone."""
    fields = _stat(pid)
    # Field 9 of stat: the kernel's flags, of which 0x4 is PF_EXITING.
    if not fields or fields[0] in "ZX" or int(fields[6]) & 0x4:
        return True
    for line in (_read(pid, "status") or b"").splitlines():
        name, _, mask = line.partition(b":")
        if name in (b"SigPnd", b"ShdPnd") and int(mask, 16) & 1 << 8:
            return True
    return False


def process_summaries(pids: Iterable[int]) -> list[ProcessSummary]:
    """What /proc says of each; those that have ended are left out. The text in it is the workload's own."""
    booted_at = _booted_at()
    found = (_summary(pid, booted_at) for pid in pids)
    return [summary for summary in found if summary is not None]


def uninterruptible(pid: int) -> str | None:
    """Where in the kernel the process sleeps so that not even SIGKILL ends it; None if it does not (state D)."""
    fields = _stat(pid)
    if not fields or fields[0] != "D":
        return None
    where = (_read(pid, "wchan") or b"").decode("ascii", "replace")
    return where if where not in ("", "0") else "unknown"


def _summary(pid: int, booted_at: float) -> ProcessSummary | None:
    text = _read(pid, "stat")
    fields = _split_stat(text)
    if text is None or not fields:
        return None
    name = text[text.index(b"(") + 1 : text.rindex(b")")]
    command = (_read(pid, "cmdline") or b"").rstrip(b"\0")
    return ProcessSummary(
        pid=pid,
        image_name=name.decode("utf-8", "replace"),
        command=tuple(part.decode("utf-8", "replace") for part in command.split(b"\0")) if command else (),
        user_s=int(fields[11]) / _TICKS_A_SECOND,
        system_s=int(fields[12]) / _TICKS_A_SECOND,
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
        started_at=booted_at + int(fields[19]) / _TICKS_A_SECOND,
    )


def _stat(pid: int) -> list[str]:
    return _split_stat(_read(pid, "stat"))


def _split_stat(text: bytes | None) -> list[str]:
    """Fields of proc_pid_stat(5) from the third (the state) on; empty if the process is gone."""
    # The second, in parentheses, is the workload's own text: blanks, parentheses and line breaks may be in it.
    return text[text.rindex(b")") + 2 :].decode("ascii").split() if text else []


def _read(pid: int, name: str) -> bytes | None:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read(_COMMAND_BYTES)
    except (FileNotFoundError, ProcessLookupError):
        return None


def _booted_at() -> float:
    """Unix time of the boot, which /proc/stat rounds to seconds."""
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            if line.startswith("btime "):
                return float(line.split()[1])
    return 0.0
