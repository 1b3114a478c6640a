"""One process in a compute system of the service."""

from __future__ import annotations

import asyncio
import logging

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import (
    AlreadyClosed,
    AlreadyStopped,
    BrokenPipe,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
)
from lighterman.runtimes.base import Stdio, console_size
from lighterman.runtimes.hcs.answers import ProcessStatus, decode_process_status
from lighterman.runtimes.hcs.binding import ProcessHandle
from lighterman.runtimes.hcs.choices import EXIT_CODE_FROM_NOTIFICATION
from lighterman.runtimes.hcs.codes import Meaning, code_of, meaning_of
from lighterman.runtimes.hcs.documents import CLOSE_STDIN, console_size_change
from lighterman.runtimes.hcs.failures import ServiceLost, code_behind
from lighterman.runtimes.hcs.notifications import Happening, Notification, Record
from lighterman.runtimes.hcs.std import StdPipes
from lighterman.spec import ExitCode

__all__ = ["HcsProcess"]

log = logging.getLogger(__name__)

KILL = 9  # `signal` has no SIGKILL on Windows
# How terminating a process that has ended already is answered: nothing is wrong then.
_KILLED_ALREADY = (
    Meaning.ENDED_OR_UNKNOWN,
    Meaning.ALREADY_STOPPED,
    Meaning.ACCESS_DENIED,
    Meaning.NOT_FOUND,
)
# After these answers of a kill the notice of the end may never come.
_MAY_STAY_UNHEARD = (Meaning.INVALID_STATE, Meaning.NOT_FOUND, Meaning.ENDED_OR_UNKNOWN)


class HcsProcess:
    """See `runtimes.base.ComputeProcess`. `system` is the record of the compute system that it lives in."""

    def __init__(
        self,
        container: str,
        handle: ProcessHandle,
        system: Record,
        std: StdPipes,
        clock: Clock,
        *,
        terminal: bool,
        piped: bool,
    ) -> None:
        self.started_at = (clock.mono(), clock.wall())
        self._container = container
        self._handle = handle
        self._system = system
        self._std = std
        self._clock = clock
        self._terminal = terminal
        self._stdio: Stdio | None = None if piped else Stdio(None, None, None)
        self._stdio_asked: asyncio.Task[Stdio] | None = None
        self._exit: ExitCode | None = None
        self._why_unknown: LightermanError | None = None
        self._unheard = False
        self._ended = asyncio.Event()
        self._killed = False
        self._closed = False
        self._watching = asyncio.create_task(self._watch(), name=f"process {handle.pid} in {container}")

    @property
    def pid(self) -> int:
        return self._handle.pid

    @property
    def has_ended(self) -> bool:
        """Whether its end is known here."""
        return self._ended.is_set()

    @property
    def start_time(self) -> int | None:
        return None

    @property
    def has_terminal(self) -> bool:
        return self._terminal

    def started(self) -> tuple[float, float]:
        return self.started_at

    # ---- its streams ----

    async def stdio(self) -> Stdio:
        if self._stdio is not None:
            return self._stdio
        self._must_be_open()
        if self._stdio_asked is None:
            self._stdio_asked = asyncio.create_task(self._ask_stdio())
        try:
            return await asyncio.shield(self._stdio_asked)
        finally:
            if self._stdio is None and self._stdio_asked.done():
                self._stdio_asked = None

    async def _ask_stdio(self) -> Stdio:
        handles = await self._handle.std_handles()
        self._stdio = Stdio(
            self._std.writer(handles.stdin) if handles.stdin else None,
            self._std.reader(handles.stdout) if handles.stdout else None,
            self._std.reader(handles.stderr) if handles.stderr else None,
        )
        return self._stdio

    async def close_stdin(self) -> None:
        # Only the request lets the program read the end of its stdin; our own end being closed does not.
        self._must_run(NotFound)
        await self._handle.modify(CLOSE_STDIN)

    async def resize_console(self, height: int, width: int) -> None:
        size = console_size(height, width)
        self._must_run(AlreadyStopped)
        if not self._terminal:
            raise InvalidState(f"process {self.pid} has no terminal", operation="resize", container=self._container)
        await self._handle.modify(console_size_change(size.height, size.width))

    # ---- its end ----

    async def kill(self, signal: int) -> None:
        if signal != KILL:
            raise NotSupported(
                f"hcs: signal {signal}: Windows has none but KILL (9)", operation="kill", container=self._container
            )
        self._must_run(AlreadyStopped)
        if self._killed:
            return
        try:
            await self._handle.kill()
        except LightermanError as failed:
            meaning = meaning_of(code_behind(failed) or 0)
            if meaning in _MAY_STAY_UNHEARD:
                self._expect_end()
            if meaning not in _KILLED_ALREADY:
                raise
        self._killed = True

    def _expect_end(self) -> None:
        """The service sometimes never tells of an end that it knows."""
        if self._unheard:
            return
        self._unheard = True
        self._handle.record.wake()

    async def wait(self) -> None:
        await self._ended.wait()
        if self._exit is None and self._why_unknown is not None:
            raise self._why_unknown

    async def exit_code(self) -> ExitCode:
        if not self._ended.is_set():
            raise InvalidState(f"process {self.pid} runs", operation="exit_code", container=self._container)
        if self._exit is None:
            raise self._why_unknown or NotFound(
                f"how process {self.pid} ended is not known", operation="exit_code", container=self._container
            )
        return self._exit

    async def _watch(self) -> None:
        """Learn of its end once, for any number of waiters."""
        try:
            told = await self._heard()
            if told is not None:
                await self._learn_code(told)
        except LightermanError as failed:
            self._why_unknown = failed
        finally:
            self._ended.set()

    async def _heard(self) -> Notification | None:
        """The notice of its end; None where it ended and none came. Raises: BrokenPipe, ServiceLost, AlreadyClosed."""
        record = self._handle.record
        while True:
            told = record.got(Happening.PROCESS_EXITED)
            if told is not None:
                return told
            if record.got(Happening.DISCONNECTED) is not None:
                raise ServiceLost(
                    f"process {self.pid} in container {self._container}: the Host Compute Service disconnected",
                    runtime="hcs",
                    operation="wait",
                    container=self._container,
                )
            if record.closed:
                raise AlreadyClosed(f"process {self.pid} in container {self._container} was closed")
            if self._unheard or self._system_is_gone():
                return await self._heard_late(record)
            await self._either_changed(record)

    async def _heard_late(self, record: Record) -> Notification | None:
        try:
            async with self._clock.timeout(limits.HCS_UNHEARD_S):
                while (told := record.got(Happening.PROCESS_EXITED)) is None:
                    await record.changed()
                return told
        except TimeoutError as unheard:
            if self._system_is_gone():
                # How a process looks that was killed with its container.
                raise BrokenPipe(
                    f"process {self.pid} in container {self._container} went with its compute system",
                    container=self._container,
                ) from unheard
            log.warning("container %s: the service never told of the end of process %d", self._container, self.pid)
            return None

    def _system_is_gone(self) -> bool:
        return self._system.got(Happening.SYSTEM_EXITED) is not None

    async def _either_changed(self, record: Record) -> None:
        waiting = [asyncio.ensure_future(record.changed()), asyncio.ensure_future(self._system.changed())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    async def _learn_code(self, told: Notification) -> None:
        """Ask once, at the notice: later the system, and with it the answer, may be gone."""
        status = self._status_told(told)
        if status is None:
            status = decode_process_status(await self._handle.status())
        if not status.exited:
            raise InvalidState(f"process {self.pid} in container {self._container} runs, says the service")
        if status.last_wait:
            log.warning(
                "container %s: waiting for process %d failed: 0x%x",
                self._container,
                self.pid,
                code_of(status.last_wait),
            )
            return
        self._exit = ExitCode(code=status.exit_code, finished_mono=told.mono, finished_at=told.wall)

    def _status_told(self, told: Notification) -> ProcessStatus | None:
        if not EXIT_CODE_FROM_NOTIFICATION or not told.data:
            return None
        try:
            status = decode_process_status(told.data)
        except LightermanError as wrong:
            log.debug("container %s: %s", self._container, wrong)
            return None
        return status if status.exited else None

    # ---- the handle ----

    async def close(self) -> None:
        self._must_be_open()
        self._closed = True
        if self._stdio is not None:
            for pipe in (self._stdio.stdin, self._stdio.stdout, self._stdio.stderr):
                if pipe is not None:
                    await pipe.close()
        await self._handle.close()
        await asyncio.wait([self._watching])

    async def forget(self) -> None:
        """Nobody keeps ends here."""

    def _must_be_open(self) -> None:
        if self._closed:
            raise AlreadyClosed(f"process {self.pid} in container {self._container} is closed")

    def _must_run(self, ended: type[LightermanError]) -> None:
        self._must_be_open()
        if self._ended.is_set():
            raise ended(f"process {self.pid} in container {self._container} has ended", container=self._container)
