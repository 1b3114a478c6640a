"""Restart options as systemd has them, a policy as code, and the limit over many containers: pure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighterman.errors import InvalidSpec
from lighterman.lifecycle.restart import (
    Decision,
    RestartAfter,
    RestartManager,
    RestartRate,
    RunEnd,
    StayDown,
    next_delay,
    should_restart,
)
from lighterman.spec import RestartPolicy

FAILURE = RunEnd(exit_code=3)


def always(**options: Any) -> RestartPolicy:
    return RestartPolicy(name="always", **options)


def decided(manager: RestartManager, end: RunEnd = FAILURE, **more: Any) -> Decision:
    decision = manager.decide(
        end, manually_stopped=more.pop("manually_stopped", False), ran_for_s=end.ran_for_s, **more
    )
    manager.wait_over()
    return decision


def delay(decision: Decision) -> float:
    assert isinstance(decision, RestartAfter), decision
    return decision.delay_s


# ---- the delay ---------------------------------------------------------------------------------------------------


def test_first_delay_multiplier_and_bound_are_the_policys() -> None:
    manager = RestartManager(always(initial_delay_s=2, multiplier=3, max_delay_s=50))
    assert [delay(decided(manager)) for _ in range(5)] == [2, 6, 18, 50, 50]


def test_a_fixed_delay() -> None:
    manager = RestartManager(always(initial_delay_s=5, multiplier=1))
    assert [delay(decided(manager)) for _ in range(3)] == [5, 5, 5]


def test_no_delay_at_all() -> None:
    manager = RestartManager(always(initial_delay_s=0))
    assert [delay(decided(manager)) for _ in range(3)] == [0, 0, 0]


def test_a_longer_first_delay_than_the_last_counts_at_once() -> None:
    assert next_delay(0.1, ran_for_s=0, policy=always(initial_delay_s=5)) == 10


@pytest.mark.parametrize(("ran_for_s", "wanted"), [(29.9, 0.2), (30, 0.1)])
def test_reset_is_the_policys(ran_for_s: float, wanted: float) -> None:
    assert next_delay(0.1, ran_for_s=ran_for_s, policy=always(reset_after_s=30)) == wanted


@given(st.floats(min_value=-1, max_value=1), st.floats(min_value=0, max_value=1), st.integers(1, 12))
def test_jitter_stays_within_its_fraction_and_the_bound(drawn: float, fraction: float, times: int) -> None:
    plain, jittered = RestartManager(always()), RestartManager(always(jitter=fraction))
    for _ in range(times):
        base = delay(decided(plain))
        shown = delay(decided(jittered, jitter=drawn))
        assert shown >= 0
        assert base * (1 - fraction) <= shown + 1e-9
        assert shown <= min(base * (1 + fraction), 60) + 1e-9


def test_jitter_does_not_accumulate() -> None:
    manager = RestartManager(always(jitter=0.5))
    assert [delay(decided(manager, jitter=1)) for _ in range(3)] == pytest.approx([0.15, 0.3, 0.6])


# ---- codes -------------------------------------------------------------------------------------------------------

KILLED = RunEnd(exit_code=137, signal=9)


@pytest.mark.parametrize(
    ("policy", "end", "again"),
    [
        (always(prevent_codes=(3,)), FAILURE, False),
        (always(prevent_codes=(4,)), FAILURE, True),
        (always(prevent_codes=(0,)), RunEnd(), False),
        (always(prevent_codes=("SIGKILL",)), KILLED, False),
        (always(prevent_codes=(137,)), KILLED, False),
        (always(prevent_codes=("SIGKILL",)), RunEnd(exit_code=137), True),
        (always(prevent_codes=("SIGPOLL",)), RunEnd(exit_code=157, signal=29), False),
        (always(prevent_codes=("SIGKILL",)), RunEnd(exit_code=163, signal=35), True),
        (RestartPolicy(force_codes=(3,)), FAILURE, True),
        (RestartPolicy(force_codes=(3,)), RunEnd(exit_code=4), False),
        (RestartPolicy(name="on-failure", force_codes=(0,)), RunEnd(), True),
        (RestartPolicy(force_codes=(3,), prevent_codes=(3,)), FAILURE, False),
        (always(prevent_codes=(0,)), RunEnd(started=False), True),
        (always(prevent_codes=(0,)), RunEnd(known=False), True),
        (RestartPolicy(force_codes=(0,)), RunEnd(started=False), False),
    ],
)
def test_codes_force_and_prevent(policy: RestartPolicy, end: RunEnd, again: bool) -> None:
    assert should_restart(policy, end, manually_stopped=False, restarts=0)[0] == again


def test_L32_no_code_forces_after_a_manual_stop() -> None:
    policy = RestartPolicy(force_codes=(3,))
    assert not should_restart(policy, FAILURE, manually_stopped=True, restarts=0)[0]
    assert policy.can_restart
    assert not RestartPolicy().can_restart


# ---- the start limit ---------------------------------------------------------------------------------------------


def test_start_limit_counts_the_first_start_too() -> None:
    manager = RestartManager(always(burst=3, interval_s=10, initial_delay_s=0))
    assert [type(decided(manager, now=100.0 + n)) for n in range(3)] == [RestartAfter, RestartAfter, StayDown]
    last = decided(manager, now=103)
    assert isinstance(last, StayDown)
    assert "start limit" in last.reason


def test_starts_outside_of_the_interval_do_not_count() -> None:
    manager = RestartManager(always(burst=2, interval_s=10, initial_delay_s=0))
    for n in range(20):
        assert isinstance(decided(manager, now=100.0 + 10 * n), RestartAfter)


def test_a_delay_that_carries_it_out_of_the_interval_is_no_burst() -> None:
    manager = RestartManager(always(burst=1, interval_s=10, initial_delay_s=10))
    assert isinstance(decided(manager, now=100), RestartAfter)


# ---- forced ------------------------------------------------------------------------------------------------------


def test_forced_restart_backs_off_and_holds_the_start_limit() -> None:
    manager = RestartManager(RestartPolicy(burst=3, initial_delay_s=1))
    decision = decided(manager, RunEnd(), now=1, forced="unhealthy")
    assert decision == RestartAfter(1, "unhealthy")
    assert delay(decided(manager, RunEnd(), now=2, forced="unhealthy")) == 2
    assert isinstance(decided(manager, RunEnd(), now=3, forced="unhealthy"), StayDown)


def test_forced_restart_does_not_survive_a_manual_stop() -> None:
    manager = RestartManager(always())
    assert isinstance(decided(manager, forced="unhealthy", manually_stopped=True), StayDown)


# ---- a policy as code --------------------------------------------------------------------------------------------


def test_rule_gets_the_history_and_its_answer_counts() -> None:
    seen: list[tuple[int, ...]] = []

    def rule(history: Sequence[RunEnd]) -> float | None:
        seen.append(tuple(end.exit_code for end in history))
        return 7.5 if len(history) < 3 else None

    manager = RestartManager(rule)
    answers = [decided(manager, RunEnd(exit_code=n)) for n in (1, 2, 3)]
    assert [type(answer) for answer in answers] == [RestartAfter, RestartAfter, StayDown]
    assert delay(answers[0]) == 7.5
    assert seen == [(1,), (1, 2), (1, 2, 3)]


def test_rule_is_not_asked_after_a_manual_stop() -> None:
    manager = RestartManager(lambda _: pytest.fail("asked"))
    assert isinstance(decided(manager, manually_stopped=True), StayDown)


@pytest.mark.parametrize("answer", [-1, float("nan"), float("inf"), "soon"])
def test_rule_that_answers_nonsense_stops(answer: Any) -> None:
    decision = decided(RestartManager(lambda _: answer))
    assert isinstance(decision, StayDown)
    assert decision.error is not None


def test_rule_that_raises_stops_and_its_error_is_kept() -> None:
    wrong = LookupError("x")

    def rule(_: Sequence[RunEnd]) -> float | None:
        raise wrong

    decision = decided(RestartManager(rule))
    assert isinstance(decision, StayDown)
    assert decision.error is wrong


@pytest.mark.parametrize("failure", [asyncio.CancelledError("mistake"), SystemExit("mistake")])
def test_rule_that_raises_what_ends_tasks_stops(failure: BaseException) -> None:
    def rule(_: Sequence[RunEnd]) -> float | None:
        raise failure

    decision = decided(RestartManager(rule))
    assert isinstance(decision, StayDown)
    assert decision.error is failure


def test_history_is_bounded() -> None:
    lengths: list[int] = []

    def rule(history: Sequence[RunEnd]) -> float:
        lengths.append(len(history))
        return 0

    manager = RestartManager(rule)
    for _ in range(150):
        decided(manager)
    assert max(lengths) == 100


# ---- over many containers ----------------------------------------------------------------------------------------


def test_rate_lets_one_seconds_worth_through_and_then_one_at_a_time() -> None:
    rate = RestartRate(4)
    assert [rate.take(100.0) for _ in range(7)] == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 0.75])
    assert rate.take(102.0) == 0


def test_rate_of_less_than_one_a_second() -> None:
    rate = RestartRate(0.5)
    assert [rate.take(100.0) for _ in range(3)] == pytest.approx([0, 2, 4])


@given(st.lists(st.floats(min_value=0, max_value=3), min_size=1, max_size=60), st.sampled_from([0.5, 1.0, 3.0, 10.0]))
def test_rate_never_exceeds_its_bound(gaps: list[float], per_s: float) -> None:
    rate, now, begins = RestartRate(per_s), 0.0, []
    for gap in gaps:
        now += gap
        begins.append(now + rate.take(now))
    for begin in begins:
        within = sum(1 for other in begins if begin <= other < begin + 10 - 1e-6)
        assert within <= max(per_s, 1) + 10 * per_s + 1e-6


# ---- the values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_delay_s": -1},
        {"initial_delay_s": float("nan")},
        {"max_delay_s": float("inf")},
        {"multiplier": 0.5},
        {"multiplier": float("nan")},
        {"jitter": 1.5},
        {"burst": -1},
        {"burst": 101},
        {"max_retries": -1},
        {"force_codes": ("SIGNOTHING",)},
        {"prevent_codes": ("TERM",)},
        {"name": "sometimes"},
        {"name": ["always"]},
        {"initial_delay_s": "1"},
        {"reset_after_s": float("nan")},
        {"reset_after_s": -1},
        {"max_delay_s": None},
        {"multiplier": "2"},
        {"jitter": None},
        {"burst": 1.5},
        {"max_retries": 1.5},
        {"force_codes": (3.5,)},
        {"prevent_codes": (True,)},
        {"force_codes": 3},
        {"force_codes": "SIGTERM"},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="restart policy"):
        RestartPolicy(**wrong)


@pytest.mark.parametrize("never", [None, float("inf")])
def test_reset_that_never_comes_is_stored(never: float | None) -> None:
    policy = always(reset_after_s=never)
    assert next_delay(0.1, ran_for_s=1e9, policy=policy) == 0.2
    assert msgspec.json.decode(msgspec.json.encode(policy), type=RestartPolicy) == policy
    manager = RestartManager(policy)
    for _ in range(3):
        decided(manager, RunEnd(exit_code=3, ran_for_s=1e9))
    assert manager.restarts == 3


def test_codes_in_a_list_are_taken() -> None:
    assert always(force_codes=[3, "SIGTERM"]) == always(force_codes=(3, "SIGTERM"))


def test_what_an_older_release_stored_is_read() -> None:
    read = msgspec.json.decode(b'{"name":"on-failure","max_retries":2}', type=RestartPolicy)
    assert read == RestartPolicy(name="on-failure", max_retries=2)
    assert msgspec.json.decode(msgspec.json.encode(read), type=RestartPolicy) == read
