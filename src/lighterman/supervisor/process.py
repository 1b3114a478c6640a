"""One process, init or exec: its streams, and the way from its end to the last byte and the closed handle."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import BrokenPipe, LightermanError, NotFound
from lighterman.flag import Flag
from lighterman.lifecycle.console import needs_backspace_swap, swap_backspace
from lighterman.runtimes.base import ComputeProcess
from lighterman.spec import ExitCode, ProcessConfig
from lighterman.supervisor.streams import ReadStream, Streams, WriteStream

__all__ = ["Process", "ProcessEnd"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a process ended: `code` is None where it can't be known."""

    code: ExitCode | None
    finished_mono: float
    finished_at: float
    drained: tuple[str, ...]


class Process:
    """Made when the runtime has started it. `watch` is its whole remaining life and is to be run once."""

    def __init__(self, name: str, port: ComputeProcess, config: ProcessConfig, clock: Clock) -> None:
        self.name = name
        self.config = config
        self.port = port
        self.started_mono, self.started_at = port.started() or (clock.mono(), clock.wall())
        self.exited = Flag()  # its code is known, or known to be unknowable; its output may still come
        self.streams: Streams | None = None
        self._clock = clock
        self.unknown = "the runtime could not tell the exit code"  # why, where it comes to that
        self._label = name
        self._closed = False

    @property
    def pid(self) -> int:
        """The platform's number, for showing."""
        return self.port.pid

    async def connect(self, container_id: str, generation: int, os_build: int | None) -> Streams:
        """Get its stdio from the runtime and make the streams of it."""
        self._label = f"container {container_id}, process {self.name}"
        stdio = await self.port.stdio()
        terminal = self.config.terminal
        change = swap_backspace if needs_backspace_swap(os_build, terminal=terminal) else None
        self.streams = Streams(
            stdin=WriteStream(stdio.stdin, self.port.close_stdin, change) if stdio.stdin else None,
            stdout=ReadStream(stdio.stdout, f"{self._label}: stdout") if stdio.stdout else None,
            stderr=ReadStream(stdio.stderr, f"{self._label}: stderr") if stdio.stderr and not terminal else None,
            terminal=terminal,
            generation=generation,
            pid=self.pid,
            start_time=self.port.start_time,
        )
        return self.streams

    async def drop_streams(self) -> None:
        """Nobody took them: its end does not wait for what is in them."""
        streams, self.streams = self.streams, None
        for stream in streams.readable if streams is not None else ():
            await stream.close()

    @property
    def has_unwanted_stdin(self) -> bool:
        """Whether there is a stdin that the spec did not ask for."""
        return not self.config.stdin and self.streams is not None and self.streams.stdin is not None

    async def close_unwanted_stdin(self) -> None:
        """Let the program read the end of a stdin that the spec did not ask for [L10]."""
        if self.streams is None or self.streams.stdin is None:
            return
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                await self.streams.stdin.close()
        except (LightermanError, TimeoutError) as failed:
            log.warning("%s: closing stdin failed: %r", self._label, failed)

    async def watch(self) -> ProcessEnd:
        """Wait for its end, learn the code, drain its streams, close the handle. Never raises for the process's sake.

        If cancelled: stop watching; the process is left as it is.
        """
        await self._wait()
        code = await self.ask_exit_code()
        # The runtime knows when it was; we hear of it later, and much later after a restart of the engine.
        finished_mono = code.finished_mono if code and code.finished_mono is not None else self._clock.mono()
        finished_at = code.finished_at if code and code.finished_at is not None else self._clock.wall()
        self.exited.set()
        drained = await self._drain()
        await self.close()
        return ProcessEnd(code, finished_mono, finished_at, drained)

    async def _wait(self) -> None:
        try:
            await self.port.wait()
        except BrokenPipe:
            pass  # how a killed compute system looks [L20]
        except Exception as failed:  # noqa: BLE001  a container whose exit nobody hears of is the worst failure
            log.warning("%s: waiting for its end failed: %r", self._label, failed)

    async def ask_exit_code(self) -> ExitCode | None:
        """How it ended; None if that can't be known [L21]."""
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                return await self.port.exit_code()
        except BrokenPipe:
            return None
        except NotFound as unknowable:
            self.unknown = str(unknowable)
            log.warning("%s: %s", self._label, unknowable)
            return None
        except Exception as failed:  # noqa: BLE001  as above: whatever it is, the exit is told
            log.warning("%s: its exit code can't be known: %r", self._label, failed)
            return None

    async def _drain(self) -> tuple[str, ...]:
        if self.streams is None:
            return ()
        readable = self.streams.readable
        for stream in readable:
            stream.begin_drain()
        # One after the other is enough: all of them drain at the same time.
        return tuple([str(await stream.wait_drained(self._clock, limits.DRAIN_S)) for stream in readable])

    async def forget(self) -> None:
        """Who had to be told of its end has been: the runtime need not keep it."""
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                await self.port.forget()
        except Exception as failed:  # noqa: BLE001  what comes after it must be told all the same
            log.warning("%s: it can't be forgotten: %r", self._label, failed)

    async def close(self) -> None:
        """Close our stdin and the handle, exactly once; a failure is logged and changes nothing [L22]."""
        if self._closed:
            return
        self._closed = True
        try:
            async with self._clock.timeout(limits.RUNTIME_CALL_S):
                await self.port.close()
        except Exception as failed:  # noqa: BLE001  as above
            log.warning("%s: closing its handle failed: %r", self._label, failed)
