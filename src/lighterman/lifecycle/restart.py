"""Whether and when a container that has ended is started again: policy and history in, decision and reason out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from lighterman import limits
from lighterman.errors import InvalidSpec, InvalidState
from lighterman.signal_names import SIGNAL_NUMBERS
from lighterman.spec import RestartPolicy

__all__ = [
    "Decision",
    "RestartAfter",
    "RestartManager",
    "RestartRate",
    "RestartRule",
    "RunEnd",
    "StayDown",
    "next_delay",
    "should_restart",
    "should_start_at_boot",
]


class RunEnd(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a run ended, as far as the decision cares. A run that never started is a failed one.

    Attributes:
        exit_code: 128+n when `signal` is n. known: False where nobody can tell the code.
        ran_for_s: from its start to its end. finished_at: Unix time, seconds; 0 where it is not known.
    """

    exit_code: int = 0
    known: bool = True
    started: bool = True
    signal: int | None = None
    oom_killed: bool = False
    ran_for_s: float = 0.0
    finished_at: float = 0.0

    @property
    def failed(self) -> bool:
        """Unknown counts as a failure."""
        return not self.started or not self.known or self.exit_code != 0


RestartRule = Callable[[Sequence[RunEnd]], "float | None"]
"""A policy as code: the last limits.RESTART_ENDS_KEPT ends, the newest last, to a delay or None for no restart."""


class RestartAfter(msgspec.Struct, frozen=True):
    """Start it again after `delay_s` seconds."""

    delay_s: float
    reason: str


class StayDown(msgspec.Struct, frozen=True):
    """Leave it as it is; `error` is what a rule raised."""

    reason: str
    error: BaseException | None = None


Decision = RestartAfter | StayDown


def should_restart(policy: RestartPolicy, end: RunEnd, *, manually_stopped: bool, restarts: int) -> tuple[bool, str]:
    """Whether the policy asks for another run, and why [L32].

    Args:
        restarts: how many restarts came before this end since the last run that lasted.
    """
    if manually_stopped:
        return False, "stopped by request"
    if (code := _named(policy.prevent_codes, end)) is not None:
        return False, f"{code} prevents a restart"
    if (code := _named(policy.force_codes, end)) is not None:
        return True, f"{code} forces a restart"
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


def _named(codes: Sequence[int | str], end: RunEnd) -> int | str | None:
    """The entry of a list that stands for this end, if any; an unknown end is none of them."""
    if not end.started or not end.known:
        return None
    return next((code for code in codes if end.exit_code == code or _is_signal(code, end.signal)), None)


def _is_signal(code: int | str, signal: int | None) -> bool:
    # By number: some signals have two names.
    return isinstance(code, str) and signal is not None and SIGNAL_NUMBERS.get(code) == signal


def should_start_at_boot(policy: RestartPolicy, *, manually_stopped: bool, last_end: RunEnd) -> bool:
    """Whether it is to be started after a host reboot or an orderly stop of the engine [L32]."""
    if _named(policy.prevent_codes, last_end) is not None:
        return False
    if not manually_stopped and _named(policy.force_codes, last_end) is not None:
        return True
    match policy.name:
        case "no":
            return False
        case "always":
            return True
        case "unless-stopped":
            return not manually_stopped
        case "on-failure":
            return not manually_stopped and last_end.failed


def next_delay(previous_s: float | None, *, ran_for_s: float, policy: RestartPolicy | None = None) -> float:
    """The back-off before the next run, in seconds: growing, bounded, back to the first after a long run [L33]."""
    policy = policy or RestartPolicy()
    if previous_s is None or _resets(policy, ran_for_s):
        return min(policy.initial_delay_s, policy.max_delay_s)
    return min(max(previous_s, policy.initial_delay_s) * policy.multiplier, policy.max_delay_s)


def _resets(policy: RestartPolicy, ran_for_s: float) -> bool:
    return policy.reset_after_s is not None and ran_for_s >= policy.reset_after_s


class _Saved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    restarts: int = 0
    delay_s: float | None = None
    ends: tuple[RunEnd, ...] = ()
    starts: tuple[float, ...] = ()


class RestartManager:
    """Decides for one container, one end at a time; remembers the back-off and counts the restarts in a row.

    Args: saved: what an earlier one's `saved` gave, in the same life of the host. Raises: InvalidSpec if it did not.
    """

    def __init__(self, policy: RestartPolicy | RestartRule, saved: bytes = b"") -> None:
        self.policy = policy  # a changed one takes effect at the next decision [L35]
        before = _decoded(saved) if saved else _Saved()
        self.restarts = before.restarts
        self._delay_s = before.delay_s
        self._waiting = False
        # Lists, since an empty deque is 760 bytes and most containers never end twice.
        self._history: list[RunEnd] = list(before.ends)
        self._starts: list[float] = list(before.starts)

    def saved(self) -> bytes:
        """What the next decisions rest on, for one that goes on in its place; empty before the first end."""
        if not self._history:
            return b""
        return msgspec.json.encode(
            _Saved(
                restarts=self.restarts,
                delay_s=self._delay_s,
                ends=tuple(self._history),
                starts=tuple(self._starts),
            )
        )

    def decide(
        self,
        end: RunEnd,
        *,
        manually_stopped: bool,
        ran_for_s: float,
        now: float = 0.0,
        jitter: float = 0.0,
        forced: str | None = None,
    ) -> Decision:
        """Decide after an end; when it is RestartAfter, `wait_over` must be called before the next one [L38].

        Args:
            now: monotonic, seconds. jitter: drawn by the caller from -1 to 1; the policy says how much it counts.
            forced: why another run is asked for whatever the policy; a stop by request comes before it.
        Raises: InvalidState while the last decision is still being waited for.
        """
        if self._waiting:
            raise InvalidState("a restart is being waited for already")
        policy = self.policy if isinstance(self.policy, RestartPolicy) else RestartPolicy()
        self._history = [*self._history[1 - limits.RESTART_ENDS_KEPT :], end]
        self._starts = [*self._starts[1 - limits.RESTART_ENDS_KEPT :], now - ran_for_s]
        if _resets(policy, ran_for_s):
            self.restarts = 0
        if not isinstance(self.policy, RestartPolicy) and not manually_stopped and forced is None:
            decision = self._ask(self.policy)
        else:
            again, reason = should_restart(policy, end, manually_stopped=manually_stopped, restarts=self.restarts)
            if forced is not None and not manually_stopped:
                again, reason = True, forced
            if not again:
                return StayDown(reason)
            decision = self._backed_off(policy, reason, ran_for_s, now, jitter)
        if isinstance(decision, RestartAfter):
            self.restarts += 1
            self._waiting = True
        return decision

    def _ask(self, rule: RestartRule) -> Decision:
        try:
            delay_s = rule(tuple(self._history))
            if delay_s is None:
                return StayDown("the restart function says stop")
            if not 0 <= delay_s < float("inf"):
                raise ValueError(f"the delay {delay_s!r} is not a number of seconds of 0 or more")
        except BaseException as failed:  # noqa: BLE001  whatever a user's function raises, it is told and no restart follows
            return StayDown(f"the restart function failed: {failed!r}", failed)
        return RestartAfter(float(delay_s), "the restart function says so")

    def _backed_off(self, policy: RestartPolicy, reason: str, ran_for_s: float, now: float, jitter: float) -> Decision:
        self._delay_s = next_delay(self._delay_s, ran_for_s=ran_for_s, policy=policy)
        delay_s = min(self._delay_s * (1 + policy.jitter * jitter), policy.max_delay_s)
        if policy.burst:
            since = now + delay_s - policy.interval_s
            starts = sum(1 for start in self._starts if start > since)
            if starts >= policy.burst:
                return StayDown(f"start limit: {starts} starts within {policy.interval_s:g} s")
        return RestartAfter(delay_s, reason)

    def wait_over(self) -> None:
        """The delay has passed, or the wait was cancelled."""
        self._waiting = False


_SAVED = msgspec.json.Decoder(_Saved)  # at import, see `recovery`


def _decoded(saved: bytes) -> _Saved:
    try:
        return _SAVED.decode(saved)
    except (msgspec.DecodeError, msgspec.ValidationError) as wrong:
        raise InvalidSpec(f"a restart history can't be read: {wrong}: it is of another version") from wrong


class RestartRate:
    """A limit on restarts a second over many containers: a token bucket that holds one second's worth.

    Args: per_s: more than 0. now: monotonic, seconds; it begins full.
    """

    def __init__(self, per_s: float) -> None:
        self._gap_s = 1.0 / per_s
        self._slack_s = max(1.0, self._gap_s) - self._gap_s
        self._due: float | None = None

    def take(self, now: float) -> float:
        """Take the next place; returns how many seconds there are until it. First come, first served."""
        due = now - self._slack_s if self._due is None else max(self._due, now - self._slack_s)
        self._due = due + self._gap_s
        return max(0.0, due - now)
