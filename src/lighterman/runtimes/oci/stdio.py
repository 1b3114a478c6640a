"""The two ends of a process's streams: theirs go into the runtime call, ours are read and written here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from lighterman.errors import LimitExceeded, NotFound, RuntimeFailed
from lighterman.keeper.client import JobState, KeeperClient
from lighterman.logs.pipes import make_output_pipe
from lighterman.runtimes.base import Stdio
from lighterman.runtimes.oci.pipes import FdReadPipe, FdWritePipe
from lighterman.runtimes.oci.process import OciProcess
from lighterman.runtimes.oci.processes import open_pidfd_checked
from lighterman.runtimes.oci.tree import Members
from lighterman.scarcity import Reserve

__all__ = ["Ends", "make_ends", "taken_over"]


@dataclass(slots=True)
class Ends:
    """All descriptors of one process that is about to be started.

    Attributes:
        theirs: 0, 1 and 2 of the runtime call. hold: our ends, of which the keeper keeps duplicates.
    """

    theirs: tuple[int, int, int]
    hold: dict[str, int] = field(default_factory=dict)
    terminal: bool = False

    def ours(self, console: int | None) -> tuple[Stdio, int | None]:
        """Our side as pipes, which own the descriptors from now on, and the terminal's descriptor for its size.

        Raises: RuntimeFailed if there should be a terminal and the runtime sent none.
        """
        if not self.terminal:
            stdin = self.hold.pop("stdin", None)
            stdio = Stdio(
                stdin=FdWritePipe(stdin) if stdin is not None else None,
                stdout=FdReadPipe(self.hold.pop("stdout")),
                stderr=FdReadPipe(self.hold.pop("stderr")),
            )
            return stdio, None
        if console is None:
            raise RuntimeFailed("the runtime sent no terminal", runtime="oci", operation="run")
        made = _terminal_stdio(console, (self.hold["console_pipe_r"], self.hold["console_pipe_w"]))
        del self.hold["console_pipe_r"], self.hold["console_pipe_w"]
        return made

    def close_theirs(self) -> None:
        """The runtime has its copies."""
        for fd in set(self.theirs):
            os.close(fd)
        self.theirs = (-1, -1, -1)

    def close(self) -> None:
        """Close everything that was not given away."""
        for fd in {*self.theirs, *self.hold.values()} - {-1}:
            os.close(fd)
        self.theirs = (-1, -1, -1)
        self.hold.clear()


def make_ends(*, terminal: bool, stdin: bool) -> Ends:
    """Raises: LimitExceeded when there are no more descriptors."""
    opened: list[int] = []
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        opened.append(null)
        if terminal:
            through = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            return Ends((null, null, null), {"console_pipe_r": through[0], "console_pipe_w": through[1]}, True)
        out = make_output_pipe()
        opened += out
        err = make_output_pipe()
        opened += err
        hold = {"stdout": out[0], "stderr": err[0]}
        if not stdin:
            # The null device from the beginning: a program that reads its stdin sees the end at once.
            return Ends((null, out[1], err[1]), hold)
        their_stdin, hold["stdin"] = os.pipe2(os.O_CLOEXEC)
        os.close(null)
        return Ends((their_stdin, out[1], err[1]), hold)
    except OSError as failed:
        for fd in opened:
            os.close(fd)
        raise LimitExceeded(
            f"no descriptors for a process's streams: {failed.strerror}: raise `ulimit -n`", limit="ulimit -n"
        ) from failed


def _terminal_stdio(console: int, through: tuple[int, int] | None) -> tuple[Stdio, int]:
    """One descriptor for each direction, so that closing one does not close the other, and one for the size."""
    reading = os.dup(console)
    try:
        writing = os.dup(console)
    except OSError:
        os.close(reading)
        raise
    return Stdio(stdin=FdWritePipe(writing), stdout=FdReadPipe(reading, through=through), stderr=None), console


async def taken_over(
    keeper: KeeperClient,
    job: JobState,
    *,
    terminal: bool,
    started_mono: float,
    exits_dir: str,
    members: Callable[[int], Members] | None,
    clean_up: Callable[[], None] | None,
    reserve: Reserve,
) -> tuple[OciProcess, int | None]:
    """A process that an earlier engine has started, with the keeper's duplicates as its streams.

    Returns: with it the descriptor of the root's mount, the caller's to close; None if none was held for it.
    """
    held = await keeper.fetch(job.job)
    try:
        return _made_of(held, keeper, job, terminal, started_mono, exits_dir, members, clean_up, reserve)
    except BaseException:
        for fd in held.values():
            os.close(fd)
        raise


def _made_of(
    held: dict[str, int],
    keeper: KeeperClient,
    job: JobState,
    terminal: bool,
    started_mono: float,
    exits_dir: str,
    members: Callable[[int], Members] | None,
    clean_up: Callable[[], None] | None,
    reserve: Reserve,
) -> tuple[OciProcess, int | None]:
    """What is taken out of `held` belongs to the process."""
    pidfd = None
    if job.exit is None and job.pid is not None and job.start_time is not None:
        try:
            pidfd = held["pidfd"] = open_pidfd_checked(job.pid, job.start_time)
        except NotFound:
            pidfd = None  # it has just ended; the keeper tells how
    size: int | None = None
    if terminal and "console" in held:
        reads, writes = held.get("console_pipe_r"), held.get("console_pipe_w")
        through = (reads, writes) if reads is not None and writes is not None else None
        stdio, size = _terminal_stdio(held["console"], through)
        for name in ("console", *(("console_pipe_r", "console_pipe_w") if through else ())):
            del held[name]
    else:
        stdin, out, err = (held.pop(name, None) for name in ("stdin", "stdout", "stderr"))
        stdio = Stdio(
            stdin=FdWritePipe(stdin) if stdin is not None else None,
            stdout=FdReadPipe(out) if out is not None else None,
            stderr=FdReadPipe(err) if err is not None else None,
        )
    rootfs = held.pop("rootfs", None)
    held.pop("pidfd", None)
    while held:
        os.close(held.popitem()[1])
    process = OciProcess(
        job=job.job,
        pid=job.pid or 0,
        pidfd=pidfd,
        start_time=job.start_time,
        started_mono=started_mono,
        stdio=stdio,
        terminal=size,
        keeper=keeper,
        exits_dir=exits_dir,
        members=members,
        clean_up=clean_up,
        reserve=reserve,
    )
    return process, rootfs
