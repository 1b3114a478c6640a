"""A running container in the foreground: its streams, signals and terminal are ours, to its end or until we leave."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from lighterman.cli.failures import ENGINE_ERROR, say
from lighterman.cli.passing import ConsumerGone, Output, feed, pass_on, pass_records
from lighterman.cli.signals import Signals
from lighterman.cli.terminal import RawMode, terminal_size
from lighterman.container import Container
from lighterman.errors import AlreadyStopped, InvalidState
from lighterman.logs.reader import LogRecord
from lighterman.spec import ExitRecord
from lighterman.stdin import StdinWriter

__all__ = ["Session", "exit_code", "leave_by_force", "output_failed"]

_SIGPIPE_CODE = 128 + 13  # what a program gets that writes on although nobody reads


class Session:
    """One container, from its start or from when we come on.

    Args: terminal: its program has one.
    """

    def __init__(self, container: Container, *, terminal: bool) -> None:
        self._container = container
        self._terminal = terminal
        self._passing: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def take_signals(self, signals: Signals, *, deliver: bool = True) -> None:
        """Signals are the program's from now on, unless not `deliver`; its terminal has the size of ours."""
        if deliver:
            signals.deliver_to(lambda number: self._spawn(self._signal(number)))
        if self._terminal:
            signals.on_resize(lambda: self._spawn(self._resize()))

    def pass_streams(self) -> None:
        """Pass on what this run writes, from its first byte. The program waits for a slow consumer."""
        self._pass(pass_on(self._container.stdout, Output(1)))
        if not self._terminal:
            self._pass(pass_on(self._container.stderr, Output(2)))

    def pass_records(self, records: AsyncIterator[LogRecord]) -> None:
        """Pass on records of its log, until they end. The program does not wait."""
        self._pass(pass_records(records, Output(1), Output(2)))

    def feed(self, stdin: StdinWriter) -> None:
        """Pass our stdin on, to its end of file."""
        feed(0, stdin, asyncio.get_running_loop())

    async def wait(self) -> ExitRecord:
        """How it ended, once every byte has been passed on. Raises: ConsumerGone, OSError if they can't be."""
        try:
            await asyncio.gather(*self._passing)
            return await self._container.wait()
        finally:
            for one in self._passing:
                one.cancel()

    def _pass(self, passing: Coroutine[Any, Any, None]) -> None:
        self._passing.append(asyncio.ensure_future(passing))

    async def _signal(self, number: int) -> None:
        # Too early, or too late: between two runs, or at the very end.
        with contextlib.suppress(InvalidState, AlreadyStopped):
            await self._container.kill(number)

    async def _resize(self) -> None:
        size = terminal_size()
        if size is not None:
            with contextlib.suppress(InvalidState, AlreadyStopped):
                await self._container.resize(height=size.height, width=size.width)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            say(str(failed))


def exit_code(ended: ExitRecord) -> int:
    """The container's, which is ours; where it has none, why not is said."""
    if ended.unknown is not None:
        say(f"how the container ended is not known: {ended.unknown}")
    elif ended.not_started is not None:
        say(f"the container could not be started again: {ended.not_started}")
    return ended.shell_code


def output_failed(failed: ConsumerGone | OSError) -> int:
    """Our exit code where its output can't be passed on."""
    if isinstance(failed, ConsumerGone):
        return _SIGPIPE_CODE
    say(f"can't write the output: {failed.strerror}")
    return ENGINE_ERROR


def leave_by_force(raw: RawMode | None) -> Callable[[int], None]:
    """For who insists although even the ending does not end. What is left is ended by the keeper, or swept."""

    def leave(number: int) -> None:
        if raw is not None:
            raw.restore()
        say("gave up waiting for the container's end")
        os._exit(128 + number)

    return leave
