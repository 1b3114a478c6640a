"""One process of an OCI container: its exit from the keeper, signals by pidfd, never by a bare pid."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal as signals
import struct
import termios
import time
from collections.abc import Callable

from lighterman.errors import (
    AlreadyClosed,
    AlreadyStopped,
    InvalidState,
    KeeperLost,
    NotFound,
    RuntimeFailed,
)
from lighterman.keeper.client import JobExit, KeeperClient
from lighterman.runtimes.base import Stdio
from lighterman.runtimes.oci.pipes import FdReadPipe, FdWritePipe
from lighterman.runtimes.oci.processes import PidRef, has_exited, send_signal, wait_exit_status
from lighterman.runtimes.oci.recorded import recorded_exit
from lighterman.runtimes.oci.tree import Members
from lighterman.scarcity import Reserve
from lighterman.spec import ExitCode
from lighterman.threads import in_thread

__all__ = ["OciProcess"]


class OciProcess:
    """Init or exec; the two differ in nothing here.

    Args:
        pidfd: ours to close; None if it had been reaped before anybody could take one.
        terminal: a further descriptor of the terminal's master for its size, ours to close.
        members: of an exec, by its pid: all that it has started. None for an init process.
        clean_up: takes away what was there for it alone, when nobody waits any more; blocking.
        reserve: to kill all that it has started where there are no descriptors left.
        start_time: clock ticks after boot; with `pid` it is this process for ever.
        keeper: None for one whose keeper was lost; known_exit: what that one had written down of its end.
        exits_dir: where keepers write ends down, for when this one is lost; None where none does.
    """

    def __init__(
        self,
        *,
        job: str,
        pid: int,
        pidfd: int | None,
        started_mono: float,
        stdio: Stdio,
        terminal: int | None,
        keeper: KeeperClient | None,
        exits_dir: str | None = None,
        known_exit: JobExit | None = None,
        start_time: int | None = None,
        members: Callable[[int], Members] | None = None,
        clean_up: Callable[[], None] | None = None,
        reserve: Reserve | None = None,
    ) -> None:
        self.job = job
        self._pid = pid
        self._pidfd = pidfd
        self._identity = PidRef(pid, start_time) if start_time is not None else None
        self._started_mono = started_mono
        self._stdio = stdio
        self._terminal = terminal
        self._keeper = keeper
        self._exits_dir = exits_dir
        self._members = members
        self._clean_up = clean_up
        self._reserve = reserve
        self._exit = known_exit
        self._gone = known_exit is not None
        self._closed = False

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def start_time(self) -> int | None:
        return self._identity.start_time if self._identity is not None else None

    @property
    def has_terminal(self) -> bool:
        return self._terminal is not None

    def duplicate_pidfd(self) -> int | None:
        """A pidfd of it, the caller's to close; None once it has been closed here."""
        return os.dup(self._pidfd) if self._pidfd is not None else None

    @property
    def has_exited(self) -> bool:
        """Whether its end has been seen here."""
        return self._gone

    def members(self) -> Members | None:
        """Of an exec: all that it has started, itself included."""
        return self._members(self._pid) if self._members is not None else None

    def started(self) -> tuple[float, float] | None:
        return self._started_mono, time.time() - (time.monotonic() - self._started_mono)

    async def stdio(self) -> Stdio:
        return self._stdio

    async def wait(self) -> None:
        if self._gone:
            return
        try:
            if self._keeper is None:
                raise KeeperLost("keeper lost")
            self._exit = await self._keeper.wait_exit(self.job)
        except KeeperLost:
            await self._wait_without_keeper()
        self._gone = True

    async def _wait_without_keeper(self) -> None:
        """The kernel still tells when it ends, and from Linux 6.15 on how; the keeper may have written it down."""
        status = None
        if self._pidfd is not None:
            status = await wait_exit_status(self._pidfd, zombie=self._identity)
        if self._identity is not None and self._exits_dir is not None:
            # First: it has the time of the end, and whether a lease was behind it.
            container, _, _ = self.job.partition(":")
            self._exit = await in_thread(recorded_exit, self._exits_dir, container, self._identity)
        if self._exit is None and status is not None:
            self._exit = JobExit(job=self.job, status=status, mono=time.monotonic(), wall=time.time())

    async def exit_code(self) -> ExitCode:
        if not self._gone:
            raise InvalidState(f"process {self._pid} has not ended")
        if self._exit is None:
            raise NotFound("keeper lost")
        code = os.waitstatus_to_exitcode(self._exit.status)
        return ExitCode(
            code=code if code >= 0 else 128 - code,
            signal=-code if code < 0 else None,
            finished_mono=self._exit.mono,
            finished_at=self._exit.wall,
            reason="lease" if self._exit.lease_ended else None,
        )

    async def kill(self, signal: int) -> None:
        if self._gone or self._pidfd is None:
            raise AlreadyStopped(f"process {self._pid} has ended")
        if signal == signals.SIGKILL and self._members is not None and not has_exited(self._pidfd):
            refused: OSError | None = None
            try:
                # To list them reads files too.
                await in_thread(self._kill_all, self._members)
            except OSError as failed:
                refused = failed
            if self._pidfd is not None:
                # The process is part of its tree: gone by now is what was asked for.
                with contextlib.suppress(AlreadyStopped):
                    send_signal(self._pidfd, signal)
            if refused is not None:
                raise RuntimeFailed(
                    f"what process {self._pid} has started can't be killed: {(refused.strerror or '').lower()}",
                    runtime="linux",
                    operation="kill",
                ) from refused
        elif self._pidfd is not None:
            send_signal(self._pidfd, signal)

    def _kill_all(self, members: Callable[[int], Members]) -> None:
        if self._reserve is None:
            members(self._pid).kill()
        else:
            self._reserve.use(lambda: members(self._pid).kill())

    async def resize_console(self, height: int, width: int) -> None:
        if self._terminal is None:
            raise InvalidState(f"process {self._pid} has no terminal")
        if self._gone:
            raise AlreadyStopped(f"process {self._pid} has ended")
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    async def close_stdin(self) -> None:
        if self._stdio.stdin is None:
            raise InvalidState(f"process {self._pid} has no stdin")
        if self._terminal is not None:
            # A terminal has no end of file of its own: the program sees one when it reads the EOF character.
            raise InvalidState("a terminal's input can't be closed apart from its output")
        if self._keeper is not None:
            # A lost keeper's duplicate is closed.
            with contextlib.suppress(KeeperLost):
                await self._keeper.close_held(self.job, ["stdin"])

    async def close(self) -> None:
        if self._closed:
            raise AlreadyClosed(f"the handle of process {self._pid} is closed")
        self._closed = True
        for pipe in (self._stdio.stdin, self._stdio.stdout, self._stdio.stderr):
            if isinstance(pipe, FdReadPipe | FdWritePipe):
                pipe.close_now()
        for fd in (self._terminal, self._pidfd):
            if fd is not None:
                os.close(fd)
        self._terminal = self._pidfd = None

    async def forget(self) -> None:
        # A lost keeper's slots are read by whoever starts the next one.
        with contextlib.suppress(KeeperLost):
            if self._keeper is not None:
                await self._keeper.acknowledge(self.job)
        clean_up, self._clean_up = self._clean_up, None
        if clean_up is not None:
            await in_thread(clean_up)

    def __repr__(self) -> str:
        return f"<OciProcess {self.job} pid {self._pid}>"
