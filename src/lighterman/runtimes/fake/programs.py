"""What runs in a fake container: async functions that read, write, wait, catch signals and return an exit code."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from lighterman.errors import BrokenPipe
from lighterman.spec import ExitCode

if TYPE_CHECKING:
    from lighterman.runtimes.fake.platform import SimulatedProcess

__all__ = ["PROGRAMS", "FakeProgram", "ProgramContext"]


class ProgramContext:
    """What a program sees of the world. Every method waits while its container is frozen."""

    def __init__(self, process: SimulatedProcess) -> None:
        self._process = process

    @property
    def args(self) -> tuple[str, ...]:
        """The argument vector."""
        return self._process.config.args

    @property
    def env(self) -> dict[str, str]:
        """The environment."""
        return self._process.config.env

    @property
    def cwd(self) -> str:
        """The working directory."""
        return self._process.config.cwd

    @property
    def console(self) -> tuple[int, int] | None:
        """The terminal's (height, width), None without a terminal or before a size was set."""
        return self._process.console

    async def read(self, max_bytes: int = 65536) -> bytes:
        """From stdin; `b""` at its end."""
        return await self._process.read_stdin(max_bytes)

    async def write(self, data: bytes) -> None:
        """To stdout. Raises: BrokenPipe if nobody reads it."""
        await self._process.write_output("stdout", data)

    async def write_error(self, data: bytes) -> None:
        """To stderr, which with a terminal is stdout."""
        await self._process.write_output("stderr", data)

    def close_output(self) -> None:
        """Close stdout and stderr, as a daemon does: the streams end early."""
        self._process.close_outputs()

    async def sleep(self, delay_s: float) -> None:
        """Seconds on the fake's clock; `math.inf` is for ever."""
        await self._process.sleep(delay_s)

    def ignore(self, signal: int) -> None:
        """Let a signal do nothing (KILL can't be ignored)."""
        self._process.handlers[signal] = lambda: None

    def catch(self, signal: int, handler: Callable[[], None]) -> None:
        """Call `handler` when the signal is delivered."""
        self._process.handlers[signal] = handler

    def leave_grandchild(self, hold_s: float = math.inf, writes: bytes = b"") -> None:
        """Leave a child of one's own that holds stdout and stderr open, then writes, then lets them go."""
        self._process.leave_grandchild(hold_s, writes)


FakeProgram = Callable[[ProgramContext], Awaitable[int | ExitCode | None]]


async def _true(context: ProgramContext) -> int:
    return 0


async def _false(context: ProgramContext) -> int:
    return 1


async def _exit(context: ProgramContext) -> int:
    return int(context.args[1]) if len(context.args) > 1 else 0


async def _echo(context: ProgramContext) -> int:
    await context.write(" ".join(context.args[1:]).encode() + b"\n")
    return 0


async def _cat(context: ProgramContext) -> int:
    try:
        while data := await context.read():
            await context.write(data)
    except BrokenPipe:
        return 1
    return 0


async def _sleep(context: ProgramContext) -> int:
    await context.sleep(float(context.args[1]) if len(context.args) > 1 else math.inf)
    return 0


async def _ignore_term(context: ProgramContext) -> int:
    context.ignore(15)
    await context.sleep(math.inf)
    return 0


async def _grandchild(context: ProgramContext) -> int:
    hold_s = float(context.args[1]) if len(context.args) > 1 else math.inf
    await context.write(b"before\n")
    context.leave_grandchild(hold_s, b"late\n")
    return 0


# By argv[0]: `exit N`, `sleep S`, `grandchild S` (leaves a child that holds the streams for S seconds).
PROGRAMS: dict[str | tuple[str, ...], FakeProgram] = {
    "true": _true,
    "false": _false,
    "exit": _exit,
    "echo": _echo,
    "cat": _cat,
    "sleep": _sleep,
    "ignore-term": _ignore_term,
    "grandchild": _grandchild,
}
