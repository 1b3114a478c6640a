"""Who or what ended a run is its reason; what has ended by itself has none, whatever was asked for after that."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from real_support import written

from lighterman import Container, Engine, RestartPolicy
from lighterman.lifecycle.status import Status
from lighterman.supervisor.closing import Closing
from support import eventually

pytestmark = pytest.mark.real

LIMIT_S = 60
SLOW = RestartPolicy(name="always", initial_delay_s=3600, max_delay_s=3600)


async def in_back_off(box: Container) -> None:
    await eventually(lambda: box.status is Status.RESTARTING)


@pytest.mark.parametrize("verb", ["stop", "kill"])
async def test_run_whose_back_off_was_ended_has_ended_by_itself(engine: Engine, verb: str) -> None:
    async with engine.container("busybox", ["sh", "-c", "exit 3"], restart=SLOW) as box:
        await in_back_off(box)
        await getattr(box, verb)()
        exit = await asyncio.wait_for(box.wait(), LIMIT_S)
        assert (exit.code, exit.reason, box.status) == (3, None, Status.EXITED)


async def test_run_that_had_ended_before_its_timeout_has_none(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clean-up takes longer than the time that it had."""
    may_go_on = asyncio.Event()
    shut_down = Closing.shut_down_and_close

    async def slow(self: Closing, run: Any) -> None:
        await may_go_on.wait()
        await shut_down(self, run)

    monkeypatch.setattr(Closing, "shut_down_and_close", slow)
    end = engine.runs.end

    async def noted(*args: Any) -> bool:
        ending = asyncio.ensure_future(end(*args))
        await asyncio.sleep(0)
        may_go_on.set()
        return await ending

    monkeypatch.setattr(engine.runs, "end", noted)
    done = await engine.run("busybox", ["sh", "-c", "exit 5"], timeout_s=2)
    assert may_go_on.is_set()
    assert (done.exit.code, done.exit.reason) == (5, None)


TRAPS = "trap 'exit 4' TERM; trap 'exit 6' USR1; echo ready; while :; do sleep 0.01; done"


@pytest.mark.parametrize(
    ("asked", "code", "reason"),
    [("TERM", 4, "kill"), ("KILL", None, "kill"), ("USR1", 6, None)],
)
async def test_killed_through_the_api(engine: Engine, asked: str, code: int | None, reason: str | None) -> None:
    async with engine.container("busybox", ["sh", "-c", TRAPS]) as box:
        await written(box, b"ready")
        await box.kill(asked)
        exit = await asyncio.wait_for(box.wait(), LIMIT_S)
        assert (exit.code, exit.reason) == (code, reason)


async def test_killed_from_outside_has_none(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        os.kill(box.pid, signal.SIGKILL)
        exit = await asyncio.wait_for(box.wait(), LIMIT_S)
        assert (exit.signal, exit.reason) == (9, None)


async def test_who_asks_first_is_the_reason(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", TRAPS.replace("exit 4", ":")]) as box:
        await written(box, b"ready")
        await box.kill("TERM")
        exit = await box.stop(grace_s=0)
        assert exit is not None
        assert (exit.signal, exit.reason) == (9, "kill")
