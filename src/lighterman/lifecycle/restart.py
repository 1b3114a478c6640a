"""Whether and when a container that has ended is started again: policy and history in, decision and reason out."""

from __future__ import annotations

import msgspec

from lighterman import limits
from lighterman.errors import InvalidState
from lighterman.spec import RestartPolicy

__all__ = ["Decision", "RestartAfter", "RestartManager", "RunEnd", "StayDown", "should_restart", "should_start_at_boot"]


class RunEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended, as far as the decision cares. A run that never started is a failed one."""

    exit_code: int = 0
    known: bool = True
    started: bool = True

    @property
    def failed(self) -> bool:
        """Unknown counts as a failure."""
        return not self.started or not self.known or self.exit_code != 0


class RestartAfter(msgspec.Struct, frozen=True):
    """Start it again after `delay_s` seconds."""

    delay_s: float
    reason: str


class StayDown(msgspec.Struct, frozen=True):
    """Leave it as it is."""

    reason: str


Decision = RestartAfter | StayDown


def should_restart(policy: RestartPolicy, end: RunEnd, *, manually_stopped: bool, restarts: int) -> tuple[bool, str]:
    """Whether the policy asks for another run, and why [L32].

    Args:
        restarts: how many restarts came before this end since the last run that lasted.
    """
    if manually_stopped:
        return False, "stopped by request"
    match policy.name:
        case "no":
            return False, "policy no"
        case "always" | "unless-stopped":
            return True, f"policy {policy.name}"
        case "on-failure":
            if not end.failed:
                return False, "on-failure: it succeeded"
            if policy.max_retries and restarts >= policy.max_retries:
                return False, f"on-failure: {policy.max_retries} restarts are used up"
            return True, "on-failure: it failed"


def should_start_at_boot(policy: RestartPolicy, *, manually_stopped: bool, last_end: RunEnd) -> bool:
    """Whether it is to be started after a host reboot or an orderly stop of the engine [L32]."""
    match policy.name:
        case "no":
            return False
        case "always":
            return True
        case "unless-stopped":
            return not manually_stopped
        case "on-failure":
            return not manually_stopped and last_end.failed


def next_delay(previous_s: float | None, *, ran_for_s: float) -> float:
    """The back-off before the next run, in seconds: doubling, bounded, back to the first after a long run [L33]."""
    if previous_s is None or ran_for_s >= limits.RESTART_RESET_S:
        return limits.RESTART_BACKOFF_FIRST_S
    return min(previous_s * 2, limits.RESTART_BACKOFF_MAX_S)


class RestartManager:
    """Decides for one container, one end at a time; remembers the back-off and counts the restarts in a row."""

    def __init__(self, policy: RestartPolicy) -> None:
        self.policy = policy  # a changed one takes effect at the next decision [L35]
        self.restarts = 0
        self._delay_s: float | None = None
        self._waiting = False

    def decide(self, end: RunEnd, *, manually_stopped: bool, ran_for_s: float) -> Decision:
        """Decide after an end; when it is RestartAfter, `wait_over` must be called before the next one [L38].

        Raises: InvalidState while the last decision is still being waited for.
        """
        if self._waiting:
            raise InvalidState("a restart is being waited for already")
        if ran_for_s >= limits.RESTART_RESET_S:
            self.restarts = 0
        again, reason = should_restart(self.policy, end, manually_stopped=manually_stopped, restarts=self.restarts)
        if not again:
            return StayDown(reason)
        self._delay_s = next_delay(self._delay_s, ran_for_s=ran_for_s)
        self.restarts += 1
        self._waiting = True
        return RestartAfter(self._delay_s, reason)

    def wait_over(self) -> None:
        """The delay has passed, or the wait was cancelled."""
        self._waiting = False
