"""One container in the foreground: made, started, its streams and signals passed on, its exit code ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine
from typing import Any

import msgspec

from lighterman.cli.asked import Asked, Wanted
from lighterman.cli.failures import ENGINE_ERROR, log_errors, say
from lighterman.cli.passing import ConsumerGone, Output, feed, pass_on, pass_records
from lighterman.cli.signals import Signals
from lighterman.cli.terminal import RawMode, terminal_size
from lighterman.container import Container
from lighterman.engine import Engine
from lighterman.errors import AlreadyStopped, InvalidState, UsageError
from lighterman.spec import ExitRecord, Timings

__all__ = ["run_in_foreground"]

_SIGPIPE_CODE = 128 + 13  # what a program gets that writes on although nobody reads


def run_in_foreground(asked: Asked) -> int:
    """Returns the exit code. Raises: LightermanError."""
    began = time.monotonic()
    wanted = asked.wanted()
    log_errors()
    if asked.interactive and asked.tty and not os.isatty(0):
        raise UsageError("the input device is not a TTY")
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(RawMode(0)) if asked.interactive and asked.tty else None
        return asyncio.run(_Foreground(asked, wanted, began, raw).run())


class _Foreground:
    """The life of the one container that this program is for."""

    def __init__(self, asked: Asked, wanted: Wanted, began: float, raw: RawMode | None) -> None:
        self._asked = asked
        self._wanted = wanted
        self._began = began
        self._raw = raw
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Returns the exit code. Raises: LightermanError."""
        with Signals(give_up=self._give_up, terminal=self._asked.tty) as signals:
            try:
                async with Engine(self._asked.root) as engine:
                    return await self._run(engine, signals)
            except asyncio.CancelledError:
                if signals.ended_by is None:
                    raise
                return 128 + signals.ended_by

    async def _run(self, engine: Engine, signals: Signals) -> int:
        if self._asked.tty:
            self._wanted.options["console_size"] = terminal_size()
        lives_on = self._asked.root is not None and not self._asked.rm
        container = await engine.create(
            self._wanted.image,
            self._wanted.argv,
            name=self._asked.name,
            stdin=self._asked.interactive,
            lease=None if lives_on else "process",
            **self._wanted.options,
        )
        asked_to_start = time.monotonic()
        try:
            await container.start()
        except BaseException:
            await container.remove(force=True)
            raise
        # From here on the program is there to take its signals.
        signals.deliver_to(lambda number: self._spawn(self._signal(container, number)))
        if self._asked.tty:
            signals.on_resize(lambda: self._spawn(self._resize(container)))
        try:
            ended = await self._serve(container)
        except ConsumerGone:
            await container.kill()
            return _SIGPIPE_CODE
        except OSError as failed:
            await container.kill()
            say(f"can't write the output: {failed.strerror}")
            return ENGINE_ERROR
        except asyncio.CancelledError:
            await container.kill()
            raise
        if self._asked.timings:
            self._show(container.timings, asked_to_start)
        return self._code(ended)

    async def _serve(self, container: Container) -> ExitRecord:
        """Pass the streams on. Returns how it ended, once every byte has been passed on."""
        out, err = Output(1), Output(2)
        passing: list[Coroutine[Any, Any, None]]
        if self._asked.restarts:
            passing = [pass_records(container.logs(follow=True), out, err)]
        else:
            passing = [pass_on(container.stdout, out)]
            if not self._asked.tty:
                passing.append(pass_on(container.stderr, err))
        if self._asked.interactive:
            feed(0, container.stdin, asyncio.get_running_loop())
        tasks = [asyncio.ensure_future(one) for one in passing]
        try:
            await asyncio.gather(*tasks)
            return await container.wait()
        finally:
            for task in tasks:
                task.cancel()

    # ---- signals and the terminal --------------------------------------------------------------------------------

    async def _signal(self, container: Container, number: int) -> None:
        # Too early, or too late: between two runs, or at the very end.
        with contextlib.suppress(InvalidState, AlreadyStopped):
            await container.kill(number)

    async def _resize(self, container: Container) -> None:
        size = terminal_size()
        if size is not None:
            with contextlib.suppress(InvalidState, AlreadyStopped):
                await container.resize(height=size.height, width=size.width)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            say(str(failed))

    def _give_up(self, number: int) -> None:
        """Even the ending of the container does not end: leave. What is left is ended by the keeper, or swept."""
        if self._raw is not None:
            self._raw.restore()
        say("gave up waiting for the container's end")
        os._exit(128 + number)

    # ---- the end -------------------------------------------------------------------------------------------------

    def _code(self, ended: ExitRecord) -> int:
        if ended.unknown is not None:
            say(f"how the container ended is not known: {ended.unknown}")
        elif ended.not_started is not None:
            say(f"the container could not be started again: {ended.not_started}")
        return ended.shell_code

    def _show(self, inner: Timings, asked_to_start: float) -> None:
        """As the user has waited: what lies before the start is preparation, and passing the output on is draining."""
        total = time.monotonic() - self._began
        known = (inner.total or 0.0) + asked_to_start - self._began
        phases = msgspec.structs.replace(
            inner,
            prepare=None if inner.prepare is None else inner.prepare + asked_to_start - self._began,
            drain=None if inner.drain is None else inner.drain + max(0.0, total - known),
            total=total,
        )
        lines = [
            f"{name:<8}{value * 1000:>10.1f} ms\n"
            for name, value in msgspec.structs.asdict(phases).items()
            if value is not None
        ]
        # A terminal in raw mode does not return the carriage by itself.
        text = "".join(lines).replace("\n", "\r\n") if self._raw is not None else "".join(lines)
        os.write(2, text.encode())
