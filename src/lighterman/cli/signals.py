"""Signals to this program: until the container runs they end us, then they are the container's."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from types import TracebackType

__all__ = ["Signals"]

# Those that ask for something. SIGTSTP, SIGCONT and the like are about this program's own terminal.
_FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
# With a terminal the keys reach the program as bytes; what comes as a signal means us.
_ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
_INSISTS = 3  # this many Ctrl-C ...
_INSISTS_WITHIN_S = 3.0  # ... within this time kill


class Signals:
    """A block in which they are handled.

    Args: give_up: called at further Ctrl-C when even the kill has not ended it. terminal: the program has one.
    Attributes: ended_by: the signal that ended us; None if none did.
    """

    def __init__(self, *, give_up: Callable[[int], None], terminal: bool) -> None:
        self.ended_by: int | None = None
        self._give_up = give_up
        self._terminal = terminal
        self._deliver: Callable[[int], None] | None = None
        self._interrupts: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._owner = asyncio.current_task()

    def __enter__(self) -> Signals:
        for number in _FORWARDED:
            self._loop.add_signal_handler(number, self._came, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (*_FORWARDED, signal.SIGWINCH):
            self._loop.remove_signal_handler(number)

    def deliver_to(self, deliver: Callable[[int], None]) -> None:
        """The container runs: without a terminal, signals are its own from now on."""
        self._deliver = deliver

    def on_resize(self, resize: Callable[[], None]) -> None:
        """Call back when the terminal's size has changed, and now: it may have changed before."""
        self._loop.add_signal_handler(signal.SIGWINCH, resize)
        resize()

    def _came(self, number: int) -> None:
        interrupts = self._count(number)
        if self._deliver is None or (self._terminal and number in _ENDING):
            self._end_us(number, interrupts)
        elif interrupts > 2 * _INSISTS:
            self._give_up(number)
        elif interrupts >= _INSISTS:
            self._deliver(signal.SIGKILL)
        elif not self._terminal:
            self._deliver(number)

    def _count(self, number: int) -> int:
        if number != signal.SIGINT:
            return 0
        now = time.monotonic()
        self._interrupts = [then for then in self._interrupts if now - then <= _INSISTS_WITHIN_S]
        self._interrupts.append(now)
        return len(self._interrupts)

    def _end_us(self, number: int, interrupts: int) -> None:
        if self.ended_by is None:
            self.ended_by = int(number)
            if self._owner is not None:
                self._owner.cancel()
        elif interrupts >= _INSISTS:
            self._give_up(number)
