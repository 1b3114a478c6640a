"""Whether a container is healthy, from what probes have found: times and answers in, status and next probe out."""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Literal

import msgspec

from lighterman import limits
from lighterman.checks import HealthCheck

__all__ = ["Health", "HealthMonitor", "HealthReport", "ProbeResult", "Which"]

Which = Literal["startup", "liveness"]


class Health(StrEnum):
    """Docker's words."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one probe found.

    Attributes:
        output: for people; at most limits.PROBE_OUTPUT_BYTES. at: its end, Unix time. took_s: seconds.
        counted: False for a failure in the start period.
    """

    ok: bool
    output: str = ""
    at: float = 0.0
    took_s: float = 0.0
    which: Which = "liveness"
    counted: bool = True


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """The health of a run as it is now: `log` holds the last limits.HEALTH_RESULTS_KEPT results, the newest last."""

    status: Health
    failing_streak: int
    log: tuple[ProbeResult, ...]


class HealthMonitor:
    """Decides for one run of one container.

    Args:
        started: monotonic, seconds. status: what an earlier engine had found of this run. startup_over: likewise,
            whether the startup probe had succeeded.

    Attributes: startup_over: whether it has, or there is none.
    """

    def __init__(
        self,
        check: HealthCheck,
        *,
        started: float,
        status: Health = Health.STARTING,
        startup_over: bool = False,
    ) -> None:
        self.check = check
        self.status = status
        self._started = started
        self._streak = 0
        self._log: deque[ProbeResult] = deque(maxlen=limits.HEALTH_RESULTS_KEPT)
        self.startup_over = check.startup is None or startup_over or status is Health.HEALTHY
        self._at_once = False

    @property
    def report(self) -> HealthReport:
        """What is known."""
        return HealthReport(status=self.status, failing_streak=self._streak, log=tuple(self._log))

    def next_probe(self, now: float) -> tuple[float, Which]:
        """After how many seconds to look next, and with which probe."""
        which: Which = "liveness" if self.startup_over else "startup"
        if self._at_once:
            return 0.0, which
        check = self.check
        if self.status is Health.STARTING and (not self._log or self._in_start_period(now)):
            return min(check.start_interval_s, check.interval_s), which
        return check.interval_s, which

    def is_last_try(self, now: float) -> bool:
        """Whether a probe that fails now makes it unhealthy."""
        counts = self.status is not Health.STARTING or not self._in_start_period(now)
        return counts and self.status is not Health.UNHEALTHY and self._streak + 1 >= self.check.retries

    def observe(self, result: ProbeResult, now: float) -> Health | None:
        """Take in what a probe found; the new status if it has changed."""
        self._at_once = False
        if result.ok:
            self._log.append(result)
            self._streak = 0
            if result.which == "startup":
                # It is up: whether it is healthy is asked at once.
                self.startup_over = self._at_once = True
                return None
            return self._become(Health.HEALTHY)
        if self.status is Health.STARTING and self._in_start_period(now):
            self._log.append(msgspec.structs.replace(result, counted=False))
            return None
        self._log.append(result)
        self._streak += 1
        return self._become(Health.UNHEALTHY) if self._streak >= self.check.retries else None

    def _in_start_period(self, now: float) -> bool:
        return now - self._started < self.check.start_period_s

    def _become(self, status: Health) -> Health | None:
        if self.status is status:
            return None
        self.status = status
        return status
