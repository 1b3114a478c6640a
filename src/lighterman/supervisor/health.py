"""Watching the health of one run: probes in their time, each with a deadline; the deciding is lifecycle/health.py's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from lighterman import limits
from lighterman.clock import Clock
from lighterman.lifecycle.health import Health, HealthMonitor, ProbeResult, Which
from lighterman.supervisor.delivery import Spawn

__all__ = ["Answer", "ProbeCall", "watch_health"]

Answer = tuple[bool, str]
"""Whether it is well, and what was seen, for people."""

ProbeCall = Callable[[Which], Awaitable[Answer]]
"""Makes one probe. What it raises counts as a failure; cancelled, it leaves nothing behind, however long that takes."""


async def watch_health(
    monitor: HealthMonitor,
    probe: ProbeCall,
    changed: Callable[[Health | None], Awaitable[None]],
    *,
    clock: Clock,
    spawn: Spawn,
    cannot_answer: Callable[[], bool],
    end_may_come: Callable[[], Awaitable[object]],
) -> None:
    """Until it is cancelled: one probe after the other, never two at a time.

    Args:
        changed: told of each change of status, and with None of the startup probe's success; awaited before the next
            probe.
        cannot_answer: whether it is paused, or its run has ended: probes are left out, and one that fails says nothing.
        end_may_come: awaited before a failure makes it unhealthy: an end of its run takes a probe with it, and becomes
            known only after that.
    """
    hanging: asyncio.Task[None] | None = None
    while True:
        wait_s, which = monitor.next_probe(clock.mono())
        await clock.sleep(wait_s)
        if cannot_answer():
            if wait_s <= 0:
                await clock.sleep(monitor.check.interval_s)
            continue
        began = clock.mono()
        if hanging is not None and not hanging.done():
            ok, output = False, "the probe before has not ended yet"
        else:
            hanging, (ok, output) = await _probe_once(probe, which, monitor.check.timeout_s, clock, spawn)
        now = clock.mono()
        if not ok:
            if not cannot_answer() and monitor.is_last_try(now):
                await end_may_come()
            if cannot_answer():
                continue
        result = ProbeResult(ok=ok, output=_bounded(output), at=clock.wall(), took_s=now - began, which=which)
        was_over = monitor.startup_over
        status = monitor.observe(result, now)
        if status is not None or monitor.startup_over is not was_over:
            await changed(status)


async def _probe_once(
    probe: ProbeCall, which: Which, timeout_s: float, clock: Clock, spawn: Spawn
) -> tuple[asyncio.Task[None] | None, Answer]:
    """In a task of its own: a probe that can't be ended must not keep anybody from seeing that it takes too long."""
    answer: Answer = (False, "the probe was cancelled")

    async def ask() -> None:
        nonlocal answer
        try:
            answer = await probe(which)
        except Exception as failed:  # noqa: BLE001  whatever goes wrong in a probe, a user's function included
            answer = (False, f"{type(failed).__name__}: {failed}")

    task = spawn(ask(), "probe")
    try:
        async with clock.timeout(timeout_s):
            await asyncio.wait((task,))
    except TimeoutError:
        task.cancel()
        return task, (False, f"no answer in {timeout_s:g} s")
    except asyncio.CancelledError:
        task.cancel()
        raise
    return None, answer


def _bounded(text: str) -> str:
    return text.encode("utf-8", "replace")[: limits.PROBE_OUTPUT_BYTES].decode("utf-8", "ignore")
