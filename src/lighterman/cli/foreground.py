"""One container in the foreground: made, started, its streams and signals passed on, its exit code ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import msgspec

from lighterman.cli.asked import Asked, Wanted
from lighterman.cli.failures import log_errors
from lighterman.cli.passing import ConsumerGone
from lighterman.cli.session import Session, exit_code, leave_by_force, output_failed
from lighterman.cli.signals import Signals
from lighterman.cli.terminal import RawMode, terminal_size
from lighterman.engine import Engine
from lighterman.errors import UsageError
from lighterman.spec import Timings

__all__ = ["run_in_foreground"]


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

    async def run(self) -> int:
        """Returns the exit code. Raises: LightermanError."""
        with Signals(give_up=leave_by_force(self._raw), terminal=self._asked.tty) as signals:
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
        session = Session(container, terminal=self._asked.tty)
        session.take_signals(signals)
        try:
            if self._asked.restarts:
                session.pass_records(container.logs(follow=True))
            else:
                session.pass_streams()
            if self._asked.interactive:
                session.feed(container.stdin)
            ended = await session.wait()
        except (ConsumerGone, OSError) as failed:
            await container.kill()
            return output_failed(failed)
        except asyncio.CancelledError:
            await container.kill()
            raise
        if self._asked.timings:
            self._show(container.timings, asked_to_start)
        return exit_code(ended)

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
