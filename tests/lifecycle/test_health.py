"""When a container is healthy, from answers and times alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck as Slow
from hypothesis import given, settings
from hypothesis import strategies as st

from lighterman import limits
from lighterman.checks import Exec, File, HealthCheck, Http, LogPattern, Port, SdNotify, Tcp, UnixSocket, storable
from lighterman.errors import InvalidSpec
from lighterman.lifecycle.health import Health, HealthMonitor, ProbeResult, Which
from lighterman.spec import ContainerSpec

PORT = Tcp(80)


def monitor(status: Health = Health.STARTING, startup_over: bool = False, **options: Any) -> HealthMonitor:
    return HealthMonitor(HealthCheck(PORT, **options), started=100.0, status=status, startup_over=startup_over)


def good(which: Which = "liveness") -> ProbeResult:
    return ProbeResult(ok=True, which=which)


def bad(which: Which = "liveness") -> ProbeResult:
    return ProbeResult(ok=False, output="no", which=which)


# ---- the status --------------------------------------------------------------------------------------------------


def test_first_success_makes_it_healthy_and_is_told_once() -> None:
    watched = monitor()
    assert watched.status is Health.STARTING
    assert watched.observe(good(), 101) is Health.HEALTHY
    assert watched.observe(good(), 131) is None


def test_so_many_failures_in_a_row_make_it_unhealthy() -> None:
    watched = monitor(retries=3)
    assert [watched.observe(bad(), 101 + n) for n in range(4)] == [None, None, Health.UNHEALTHY, None]
    assert watched.report.failing_streak == 4
    assert watched.observe(good(), 110) is Health.HEALTHY
    assert watched.report.failing_streak == 0


def test_a_success_between_failures_begins_the_count_anew() -> None:
    watched = monitor(retries=2)
    watched.observe(good(), 101)
    for n in range(10):
        assert watched.observe(bad(), 102 + 2 * n) is None
        assert watched.observe(good(), 103 + 2 * n) is None
    assert watched.status is Health.HEALTHY


def test_failures_in_the_start_period_do_not_count() -> None:
    watched = monitor(retries=1, start_period_s=60)
    for n in range(59):
        assert watched.observe(bad(), 100 + n) is None
    assert not any(result.counted for result in watched.report.log)
    assert watched.observe(bad(), 160) is Health.UNHEALTHY


def test_once_healthy_the_start_period_is_over() -> None:
    watched = monitor(retries=1, start_period_s=60)
    watched.observe(good(), 101)
    assert watched.observe(bad(), 102) is Health.UNHEALTHY


def test_status_of_an_earlier_engine_is_gone_on_with() -> None:
    watched = monitor(Health.HEALTHY, retries=1, start_period_s=1000, startup=PORT)
    assert watched.next_probe(100) == (30, "liveness")
    assert watched.observe(bad(), 101) is Health.UNHEALTHY


def test_startup_probe_that_an_earlier_engine_saw_fail_goes_on() -> None:
    """Unhealthy is no sign that it ever was up."""
    assert monitor(Health.UNHEALTHY, startup=PORT).next_probe(100)[1] == "startup"
    assert monitor(Health.STARTING, startup_over=True, startup=PORT).next_probe(100)[1] == "liveness"
    assert monitor(Health.UNHEALTHY, startup_over=True, startup=PORT).next_probe(100)[1] == "liveness"


# ---- when and what -----------------------------------------------------------------------------------------------


def test_first_probe_comes_after_the_start_interval() -> None:
    watched = monitor(interval_s=30, start_interval_s=2)
    assert watched.next_probe(100) == (2, "liveness")
    watched.observe(bad(), 102)
    assert watched.next_probe(102) == (30, "liveness")


def test_start_interval_holds_in_the_start_period_until_healthy() -> None:
    watched = monitor(interval_s=30, start_interval_s=2, start_period_s=10)
    watched.observe(bad(), 102)
    assert watched.next_probe(102)[0] == 2
    assert watched.next_probe(110)[0] == 30
    watched.observe(good(), 104)
    assert watched.next_probe(104)[0] == 30


def test_a_shorter_interval_is_not_made_longer_at_the_start() -> None:
    assert monitor(interval_s=0.5, start_interval_s=5).next_probe(100)[0] == 0.5


def test_startup_probe_takes_the_place_of_the_other_until_it_succeeds() -> None:
    watched = monitor(startup=Exec(["x"]), retries=5)
    assert watched.next_probe(100) == (1, "startup")
    watched.observe(bad("startup"), 101)
    assert watched.next_probe(101)[1] == "startup"
    assert watched.observe(good("startup"), 102) is None
    assert watched.status is Health.STARTING
    assert watched.next_probe(102) == (0, "liveness")
    assert watched.observe(good(), 102) is Health.HEALTHY
    assert watched.next_probe(103) == (30, "liveness")


def test_startup_probe_that_never_succeeds_makes_it_unhealthy() -> None:
    watched = monitor(startup=Exec(["x"]), retries=2, start_period_s=10)
    assert watched.observe(bad("startup"), 105) is None
    assert watched.observe(bad("startup"), 111) is None
    assert watched.observe(bad("startup"), 112) is Health.UNHEALTHY


@settings(suppress_health_check=[Slow.too_slow])  # the first draw loads tables, which takes a second on a loaded host
@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5), st.floats(0, 50))
def test_whatever_comes_the_report_is_bounded_and_true(answers: list[bool], retries: int, start: float) -> None:
    watched = monitor(retries=retries, start_period_s=start)
    told = [Health.STARTING]
    for n, ok in enumerate(answers):
        change = watched.observe(good() if ok else bad(), 100 + n)
        if change is not None:
            assert change is not told[-1]
            told.append(change)
        if ok:
            assert watched.status is Health.HEALTHY
    assert watched.status is told[-1]
    assert len(watched.report.log) == min(len(answers), limits.HEALTH_RESULTS_KEPT)
    if watched.status is Health.UNHEALTHY:
        assert watched.report.failing_streak >= retries


# ---- the values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Tcp, (0,)),
        (Tcp, (65536,)),
        (Tcp, ("80",)),
        (Tcp, (True,)),
        (Tcp, (80, "localhost")),
        (Http, (80, "no-slash")),
        (Http, (80, "/a b")),
        (Http, (80, "/a\r\nX: y")),
        (Http, (80, "/", 42)),
        (Exec, ("true",)),
        (Exec, ([],)),
        (UnixSocket, ("relative",)),
        (UnixSocket, ("/nul\0",)),
        (File, ("/" + 5000 * "x",)),
        (File, ("/x", 0)),
        (Port, (-1,)),
        (LogPattern, ("(",)),
        (HealthCheck, ("true",)),
        (HealthCheck, (None,)),
    ],
)
def test_nonsense_is_refused(kind: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidSpec):
        kind(*arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"interval_s": 0},
        {"interval_s": float("nan")},
        {"timeout_s": -1},
        {"timeout_s": "1"},
        {"retries": 0},
        {"retries": 1.5},
        {"start_period_s": float("inf")},
        {"startup": "x"},
        {"on_unhealthy": "reboot"},
    ],
)
def test_nonsense_of_a_check_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec):
        HealthCheck(PORT, **options)


@pytest.mark.parametrize("probe", [Exec(["a", "b"]), PORT, Http(80, "/x", 204), UnixSocket("/s"), File("/f", 2.5)])
@pytest.mark.parametrize("ready", [LogPattern("up$", "stderr"), Port(3), SdNotify(), None])
def test_stored_and_read_back(probe: Any, ready: Any) -> None:
    check = HealthCheck(probe, startup=PORT, retries=7, on_unhealthy="kill")
    spec = ContainerSpec(image="busybox", health=check, ready=ready)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ContainerSpec) == spec


def test_functions_are_not_stored() -> None:
    def probe(_: object) -> bool:
        return True

    assert storable(None) is None
    assert storable(HealthCheck(probe)) is None
    assert storable(HealthCheck(PORT, startup=probe, on_unhealthy=probe)) == HealthCheck(PORT)
    assert storable(HealthCheck(PORT, on_unhealthy="stop")) == HealthCheck(PORT, on_unhealthy="stop")
