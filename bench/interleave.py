"""Contenders take turns, in another order each round: what else the machine does hits all of them alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench.numbers import Samples
from bench.trouble import Trouble

__all__ = ["Contender", "take_turns"]

WARM_UPS = 2


@dataclass
class Contender:
    """Something to be timed.

    Attributes:
        once: does it once and gives the seconds that count. every: takes part in each n-th round only (slow peers).
        failed: why it was given up.
    """

    name: str
    once: Callable[[], Awaitable[float]]
    every: int = 1
    failed: str | None = None
    times: list[float] = field(default_factory=list)

    @property
    def samples(self) -> Samples | None:
        return Samples.of(self.times) if self.times else None


async def take_turns(contenders: Sequence[Contender], rounds: int, *, idle_s: float = 0.0) -> None:
    """Fill in the times. One that fails is given up and says why; the others go on."""
    for number in range(-WARM_UPS, rounds):
        shift = number % len(contenders)
        for contender in (*contenders[shift:], *contenders[:shift]):
            if contender.failed is not None or number % contender.every:
                continue
            if idle_s:
                await asyncio.sleep(idle_s)
            try:
                seconds = await contender.once()
            except Trouble as trouble:
                contender.failed = str(trouble)
                contender.times.clear()
                continue
            if number >= 0:
                contender.times.append(seconds)
