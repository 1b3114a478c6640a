"""Watching: one probe after the other on the clock, each with a deadline, whatever a probe does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest_asyncio

from lighterman import limits
from lighterman.checks import HealthCheck, Tcp
from lighterman.lifecycle.health import Health, HealthMonitor, Which
from lighterman.supervisor.health import Answer, watch_health
from lighterman.supervisor.tasks import OwnedTasks
from lighterman.testing import FakeClock


class Watched:
    """A watch over a probe that the test scripts."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.tasks = OwnedTasks()
        self.asked: list[tuple[float, Which]] = []
        self.told: list[tuple[float, Health]] = []
        self.up_at: list[float] = []
        self.frozen = False
        self.end_s: float | None = None  # so long after a probe its container is seen to have ended
        self.answer: Callable[[], Any] = lambda: (True, "fine")
        self.in_flight = 0
        self.most = 0

    def begin(self, **options: Any) -> HealthMonitor:
        self.began = self.clock.mono()
        monitor = HealthMonitor(HealthCheck(Tcp(80), **options), started=self.began)
        self.task = self.tasks.watch(
            watch_health(
                monitor,
                self._probe,
                self._changed,
                clock=self.clock,
                spawn=self.tasks.watch,
                cannot_answer=lambda: self.frozen,
                end_may_come=self._end_may_come,
            ),
            "watch",
        )
        return monitor

    async def _probe(self, which: Which) -> Answer:
        self.asked.append((self.clock.mono() - self.began, which))
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            answer = self.answer()
            found: Answer = await answer if asyncio.iscoroutine(answer) else answer
            return found
        finally:
            self.in_flight -= 1

    async def _end_may_come(self) -> None:
        if self.end_s is not None:
            await self.clock.sleep(self.end_s)
            self.frozen = True

    async def _changed(self, status: Health | None) -> None:
        now = self.clock.mono() - self.began
        if status is None:
            self.up_at.append(now)
        else:
            self.told.append((now, status))


@pytest_asyncio.fixture
async def watched() -> AsyncIterator[Watched]:
    watched = Watched(FakeClock())
    yield watched
    await watched.tasks.close(1)
    assert watched.in_flight == 0


async def test_probes_come_in_their_time(watched: Watched) -> None:
    watched.begin(interval_s=10, start_interval_s=1)
    await watched.clock.advance(35)
    assert [at for at, _ in watched.asked] == [1, 11, 21, 31]
    assert watched.told == [(1, Health.HEALTHY)]


async def test_a_probe_that_takes_too_long_has_failed(watched: Watched) -> None:
    watched.answer = lambda: watched.clock.sleep(1000)
    monitor = watched.begin(interval_s=10, timeout_s=2, retries=2)
    await watched.clock.advance(60)
    assert watched.told == [(15, Health.UNHEALTHY)]
    assert "no answer in 2 s" in monitor.report.log[-1].output
    assert watched.most == 1


async def test_a_probe_that_can_not_be_ended_hides_nothing_and_stays_the_only_one(watched: Watched) -> None:
    release = asyncio.Event()

    async def stuck() -> Answer:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return True, "late"

    watched.answer = stuck
    monitor = watched.begin(interval_s=10, timeout_s=2, retries=3)
    await watched.clock.advance(60)
    assert [status for _, status in watched.told] == [Health.UNHEALTHY]
    assert len(watched.asked) == 1
    assert "not ended" in monitor.report.log[-1].output
    watched.answer = lambda: (True, "fine")
    release.set()
    await watched.clock.advance(20)
    assert watched.told[-1][1] is Health.HEALTHY


async def test_a_probe_that_raises_has_failed(watched: Watched) -> None:
    def wrong() -> Answer:
        raise LookupError("mistake")

    watched.answer = wrong
    monitor = watched.begin(interval_s=1, retries=1)
    await watched.clock.advance(1)
    assert watched.told == [(1, Health.UNHEALTHY)]
    assert monitor.report.log[0].output == "LookupError: mistake"


async def test_a_probe_that_cancels_itself_does_not_end_the_watch(watched: Watched) -> None:
    async def cancels() -> Answer:
        raise asyncio.CancelledError

    watched.answer = cancels
    watched.begin(interval_s=1, retries=2)
    await watched.clock.advance(5)
    assert [status for _, status in watched.told] == [Health.UNHEALTHY]


async def test_output_is_bounded(watched: Watched) -> None:
    watched.answer = lambda: (True, "ä" * 1_000_000)
    monitor = watched.begin(interval_s=1)
    await watched.clock.advance(3)
    assert 0 < len(monitor.report.log[0].output.encode()) <= limits.PROBE_OUTPUT_BYTES


async def test_what_the_end_of_a_container_has_made_fail_says_nothing(watched: Watched) -> None:
    watched.answer = lambda: (False, "killed")
    watched.end_s = 0.2
    monitor = watched.begin(interval_s=1, retries=2)
    await watched.clock.advance(10)
    assert watched.told == []
    # Only what would be told of waits for it.
    assert [at for at, _ in watched.asked] == [1, 2]
    assert (monitor.status, monitor.report.failing_streak) == (Health.STARTING, 1)


async def test_a_frozen_container_is_left_alone(watched: Watched) -> None:
    watched.begin(interval_s=1, retries=1)
    await watched.clock.advance(3)
    watched.frozen = True
    asked = len(watched.asked)
    watched.answer = lambda: (False, "frozen")
    await watched.clock.advance(100)
    assert len(watched.asked) == asked
    watched.frozen = False
    await watched.clock.advance(2)
    assert watched.told[-1][1] is Health.UNHEALTHY


async def test_a_freeze_while_a_probe_is_under_way_is_no_failure(watched: Watched) -> None:
    async def slow() -> Answer:
        await watched.clock.sleep(5)
        return False, "it was frozen"

    watched.begin(interval_s=1, retries=1)
    await watched.clock.advance(1)
    watched.answer = slow
    await watched.clock.advance(2)
    watched.frozen = True
    await watched.clock.advance(20)
    assert watched.told == [(1, Health.HEALTHY)]


async def test_liveness_follows_the_startup_probe_at_once(watched: Watched) -> None:
    answers = iter([(False, ""), (True, ""), (True, "")])
    watched.answer = lambda: next(answers, (True, ""))
    watched.begin(interval_s=10, start_interval_s=1, start_period_s=60, startup=Tcp(81))
    await watched.clock.advance(13)
    assert watched.asked == [(1, "startup"), (2, "startup"), (2, "liveness"), (12, "liveness")]
    assert watched.up_at == [2]
    assert watched.told == [(2, Health.HEALTHY)]


async def test_who_hears_of_a_change_is_waited_for(watched: Watched) -> None:
    async def slow(status: Health | None) -> None:
        assert status is Health.HEALTHY
        await watched.clock.sleep(50)

    watched._changed = slow  # type: ignore[method-assign]
    watched.begin(interval_s=10)
    await watched.clock.advance(65)
    assert [at for at, _ in watched.asked] == [1, 61]


async def test_nothing_is_left_when_the_watch_ends(watched: Watched) -> None:
    watched.answer = lambda: watched.clock.sleep(1000)
    watched.begin(interval_s=1)
    await watched.clock.advance(5)
    assert watched.in_flight == 1
    watched.task.cancel()
    await watched.clock.settle()
    assert watched.in_flight == 0
    assert watched.clock.pending == 0
