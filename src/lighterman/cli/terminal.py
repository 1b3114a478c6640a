"""The terminal that the user sits at: its size, and raw mode while the program has it."""

from __future__ import annotations

import os
import termios
import tty
from types import TracebackType

from lighterman.spec import ConsoleSize

__all__ = ["RawMode", "terminal_size"]


def terminal_size() -> ConsoleSize | None:
    """That of the first standard descriptor that is a terminal; None where none is, or it has no size."""
    for fd in (1, 0, 2):
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            continue
        return ConsoleSize(height=size.lines, width=size.columns) if size.lines and size.columns else None
    return None


class RawMode:
    """A block in which every key goes to the program, Ctrl-C too. At its end the terminal is as it was."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[int | list[bytes | int]] | None = None

    def __enter__(self) -> RawMode:
        self._before = termios.tcgetattr(self._fd)
        # TCSANOW: what was typed ahead is kept.
        tty.setraw(self._fd, termios.TCSANOW)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Again is nothing."""
        before, self._before = self._before, None
        if before is None:
            return
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, before)
        except termios.error:
            return  # it was hung up: there is nothing to restore
