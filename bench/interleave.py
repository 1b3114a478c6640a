"""Contenders take turns, shuffled each round: what else the machine does hits all of them alike.

A fixed order would not do, turned or not: what one leaves to the kernel to clean up would always hit the same next one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench.numbers import Samples
from bench.trouble import Trouble

__all__ = ["Contender", "take_turns"]

WARM_UPS = 2
# A daemon goes on working after its answer; a peer's time must not hold another's clean-up.
AFTER_DAEMON_S = 0.1


@dataclass
class Contender:
    """Something to be timed.

    Attributes:
        once: does it once and gives the seconds that count. every: takes part in each n-th round only (slow peers).
        daemon: whether something goes on in the background after `once`.
        failed: why it was given up.
    """

    name: str
    once: Callable[[], Awaitable[float]]
    every: int = 1
    daemon: bool = False
    failed: str | None = None
    times: list[float] = field(default_factory=list)

    @property
    def samples(self) -> Samples | None:
        return Samples.of(self.times) if self.times else None


async def take_turns(contenders: Sequence[Contender], rounds: int, *, idle_s: float = 0.0) -> None:
    """Fill in the times. One that fails is given up and says why; the others go on."""
    for number in range(-WARM_UPS, rounds):
        order = list(contenders)
        # Seeded: the same order in each run of the benchmark.
        random.Random(number).shuffle(order)
        for contender in order:
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
            if contender.daemon:
                await asyncio.sleep(AFTER_DAEMON_S)
