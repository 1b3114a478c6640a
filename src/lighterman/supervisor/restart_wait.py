"""The wait between two runs of one container: its back-off, then its turn; who asks for a stop cuts it short."""

from __future__ import annotations

from lighterman.clock import Clock
from lighterman.flag import Flag
from lighterman.lifecycle.restart import RestartRate
from lighterman.supervisor.bounds import Bounds

__all__ = ["RestartWait"]


class RestartWait:
    """Args: rate: how many restarts all containers together may make."""

    def __init__(self, bounds: Bounds, clock: Clock, rate: RestartRate | None) -> None:
        self._bounds = bounds
        self._clock = clock
        self._rate = rate
        self._cut: Flag | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the next run is waited for."""
        return self._cut is not None

    def cut(self) -> None:
        """End it, if it goes on."""
        if self._cut is not None:
            self._cut.set()

    async def is_cut_short(self, delay_s: float) -> bool:
        """Wait `delay_s` seconds, then for the turn; True at once when it is cut."""
        self._cut = cut = Flag()
        try:
            if await self._bounds.is_set(cut, delay_s):
                return True
            held_s = self._rate.take(self._clock.mono()) if self._rate is not None else 0.0
            return held_s > 0 and await self._bounds.is_set(cut, held_s)
        finally:
            self._cut = None
