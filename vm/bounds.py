"""How long a run may take: each host, and all of them."""

from __future__ import annotations

import dataclasses
import math
import time

from vm.errors import Failed

__all__ = ["AROUND_S", "LEAST_S", "Bounds"]

# Of a host's bound: the machine starts, what is interrupted ends or is killed (120 s), its results come back.
AROUND_S = 180.0
LEAST_S = AROUND_S + 60.0  # an emulated machine needs this long to collect the tests and to run one
MOST_S = 7 * 86400.0


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What is left at any time. `host_s`: for each host. `whole_s`: for everything from now on.

    Raises: Failed if one of them is no useful time.
    """

    host_s: float
    whole_s: float
    _started: float = dataclasses.field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        for option, value in (("--timeout-s", self.host_s), ("--whole-timeout-s", self.whole_s)):
            if not math.isfinite(value) or not LEAST_S <= value <= MOST_S:
                raise Failed(
                    f"{option} {value:g} is not between {LEAST_S:.0f} and {MOST_S:.0f}: {AROUND_S:.0f} s of it are for "
                    "starting a machine and bringing back its results"
                )

    def next_s(self) -> float:
        """For the next host. Raises: Failed if what is left of the whole is too little for one."""
        left_s = self.whole_s - (time.monotonic() - self._started)
        if left_s < LEAST_S:
            raise Failed(f"cut: not run, for the {self.whole_s:.0f} s of the whole (--whole-timeout-s) were over")
        return min(self.host_s, left_s)
