"""Whether and when an ended container is started again: pure, in milliseconds [L32, L33, L35, L38]."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighterman import limits
from lighterman.errors import InvalidSpec, InvalidState
from lighterman.lifecycle.restart import (
    RestartAfter,
    RestartManager,
    RunEnd,
    StayDown,
    next_delay,
    should_restart,
    should_start_at_boot,
)
from lighterman.spec import RestartPolicy

SUCCESS = RunEnd(exit_code=0)
FAILURE = RunEnd(exit_code=3)
UNKNOWN = RunEnd(exit_code=-1, known=False)
UNKNOWN_ZERO = RunEnd(exit_code=0, known=False)
NOT_STARTED = RunEnd(started=False)
POLICIES = ["no", "always", "unless-stopped", "on-failure", "on-failure:3"]
ENDS = [SUCCESS, FAILURE, UNKNOWN, UNKNOWN_ZERO, NOT_STARTED]


def policy(text: str) -> RestartPolicy:
    return RestartPolicy.parse(text)


def restarts(text: str, end: RunEnd, *, manually_stopped: bool = False, restarts: int = 0) -> bool:
    again, reason = should_restart(policy(text), end, manually_stopped=manually_stopped, restarts=restarts)
    assert reason
    return again


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("end", ENDS)
def test_L32_never_after_a_manual_stop(text: str, end: RunEnd) -> None:
    assert not restarts(text, end, manually_stopped=True)


@pytest.mark.parametrize(
    ("text", "end", "again"),
    [
        ("no", SUCCESS, False),
        ("no", FAILURE, False),
        ("no", UNKNOWN, False),
        ("always", SUCCESS, True),
        ("always", FAILURE, True),
        ("unless-stopped", SUCCESS, True),
        ("unless-stopped", FAILURE, True),
        ("on-failure", SUCCESS, False),
        ("on-failure", FAILURE, True),
        ("on-failure", UNKNOWN, True),
        ("on-failure", UNKNOWN_ZERO, True),
        ("on-failure", NOT_STARTED, True),
    ],
)
def test_L32_policy_and_end_decide(text: str, end: RunEnd, again: bool) -> None:
    assert restarts(text, end) == again


@pytest.mark.parametrize(("done", "again"), [(0, True), (2, True), (3, False), (4, False)])
def test_L32_on_failure_until_its_maximum(done: int, again: bool) -> None:
    assert restarts("on-failure:3", FAILURE, restarts=done) == again


@given(st.integers(min_value=0))
def test_L32_zero_maximum_has_no_limit(done: int) -> None:
    assert restarts("on-failure", FAILURE, restarts=done)
    assert restarts("on-failure:0", FAILURE, restarts=done)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("manual", [False, True])
def test_L32_at_boot(end: RunEnd, manual: bool) -> None:
    def starts(text: str) -> bool:
        return should_start_at_boot(policy(text), manually_stopped=manual, last_end=end)

    assert not starts("no")
    assert starts("always")
    assert starts("unless-stopped") == (not manual)
    assert starts("on-failure") == (not manual and end.failed)
    assert starts("on-failure:3") == (not manual and end.failed)


@pytest.mark.parametrize("text", ["no", "always", "unless-stopped", "on-failure"])
@pytest.mark.parametrize("manual", [False, True])
def test_L32_at_boot_the_codes_count_as_at_every_end(text: str, manual: bool) -> None:
    def starts(end: RunEnd, **codes: tuple[int | str, ...]) -> bool:
        asked = RestartPolicy(name=policy(text).name, **codes)  # type: ignore[arg-type]
        return should_start_at_boot(asked, manually_stopped=manual, last_end=end)

    failed, killed = RunEnd(exit_code=3), RunEnd(exit_code=137, signal=9)
    assert not starts(failed, prevent_codes=(3,))
    assert not starts(killed, prevent_codes=("SIGKILL",), force_codes=("SIGKILL",))
    assert starts(failed, force_codes=(3,)) == (not manual or text == "always")
    assert starts(UNKNOWN, prevent_codes=(255,)) == starts(UNKNOWN)


@pytest.mark.parametrize("text", ["", "sometimes", "always:3", "on-failure:x", "on-failure:-1", "on-failure:", "no:"])
def test_L32_wrong_policy_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="restart policy"):
        RestartPolicy.parse(text)


def test_L33_first_delay_then_doubling_then_the_ceiling() -> None:
    delays: list[float] = []
    for _ in range(13):
        delays.append(next_delay(delays[-1] if delays else None, ran_for_s=0))
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60, 60])
    assert (limits.RESTART_BACKOFF_FIRST_S, limits.RESTART_BACKOFF_MAX_S, limits.RESTART_RESET_S) == (0.1, 60, 10)


@pytest.mark.parametrize(("ran_for_s", "delay_s"), [(0, 60), (9.999, 60), (10, 0.1), (86400, 0.1)])
def test_L33_a_run_of_ten_seconds_resets_it(ran_for_s: float, delay_s: float) -> None:
    assert next_delay(60, ran_for_s=ran_for_s) == delay_s


@given(st.lists(st.floats(min_value=0, max_value=20), max_size=50))
def test_L33_always_within_its_bounds(runs: list[float]) -> None:
    delay: float | None = None
    for ran_for_s in runs:
        delay = next_delay(delay, ran_for_s=ran_for_s)
        assert 0.1 <= delay <= 60


def decide(manager: RestartManager, end: RunEnd = FAILURE, **kwargs: float) -> RestartAfter | StayDown:
    return manager.decide(end, manually_stopped=False, ran_for_s=kwargs.get("ran_for_s", 0))


def test_L33_manager_remembers_the_delay() -> None:
    manager = RestartManager(policy("always"))
    delays = []
    for ran_for_s in (0, 0, 0, 10, 0):
        decision = decide(manager, ran_for_s=ran_for_s)
        assert isinstance(decision, RestartAfter)
        delays.append(decision.delay_s)
        manager.wait_over()
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.1, 0.2])


def test_L32_a_long_run_resets_the_count() -> None:
    manager = RestartManager(policy("on-failure:1"))
    assert isinstance(decide(manager), RestartAfter)
    manager.wait_over()
    assert isinstance(decide(manager, ran_for_s=10), RestartAfter)
    manager.wait_over()
    assert isinstance(decide(manager), StayDown)


def test_L35_changed_policy_counts_from_the_next_decision() -> None:
    manager = RestartManager(policy("no"))
    assert isinstance(decide(manager), StayDown)
    manager.policy = policy("always")
    assert isinstance(decide(manager), RestartAfter)
    manager.policy = policy("no")
    manager.wait_over()
    assert isinstance(decide(manager), StayDown)


def test_L38_second_decision_during_a_wait_is_an_error() -> None:
    manager = RestartManager(policy("always"))
    assert isinstance(decide(manager), RestartAfter)
    with pytest.raises(InvalidState):
        decide(manager)
    manager.wait_over()
    again = decide(manager)
    assert isinstance(again, RestartAfter)
    assert again.delay_s == pytest.approx(0.2)


def test_L38_staying_down_waits_for_nothing() -> None:
    manager = RestartManager(policy("no"))
    assert isinstance(decide(manager), StayDown)
    assert isinstance(decide(manager), StayDown)


# ---- over a restart of the engine ----


def goes_on(manager: RestartManager) -> RestartManager:
    """What another engine has of it."""
    return RestartManager(manager.policy, manager.saved())


def test_P03_back_off_goes_on_where_it_was() -> None:
    manager = RestartManager(policy("always"))
    delays = []
    for _ in range(5):
        decision = decide(manager)
        assert isinstance(decision, RestartAfter)
        delays.append(decision.delay_s)
        manager = goes_on(manager)
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])


def test_P03_retries_are_counted_on() -> None:
    manager = RestartManager(policy("on-failure:2"))
    for _ in range(2):
        assert isinstance(decide(manager), RestartAfter)
        manager = goes_on(manager)
    assert isinstance(decide(manager), StayDown)


def test_P03_starts_are_counted_on() -> None:
    manager = RestartManager(RestartPolicy(name="always", burst=3, interval_s=100, initial_delay_s=0))
    for now in (1.0, 2.0):
        assert isinstance(manager.decide(FAILURE, manually_stopped=False, ran_for_s=0, now=now), RestartAfter)
        manager = goes_on(manager)
    assert isinstance(manager.decide(FAILURE, manually_stopped=False, ran_for_s=0, now=3.0), StayDown)
    manager = goes_on(manager)
    # Those that are longer ago than the interval count no more.
    assert isinstance(manager.decide(FAILURE, manually_stopped=False, ran_for_s=0, now=103.5), RestartAfter)


def test_P03_a_rule_sees_the_ends_before() -> None:
    seen: list[int] = []

    def rule(history: Sequence[RunEnd]) -> float:
        seen.append(len(history))
        assert [end.exit_code for end in history] == list(range(len(history)))
        return 0.0

    manager = RestartManager(rule)
    for number in range(3):
        manager.decide(RunEnd(exit_code=number), manually_stopped=False, ran_for_s=0)
        manager = goes_on(manager)
    assert seen == [1, 2, 3]


def test_P03_nothing_is_kept_of_who_never_ended() -> None:
    assert RestartManager(policy("always")).saved() == b""


def test_P03_a_history_of_another_version_is_refused() -> None:
    for wrong in (b"?", b"[]", b'{"restarts": "many"}'):
        with pytest.raises(InvalidSpec, match="another version"):
            RestartManager(policy("always"), wrong)
