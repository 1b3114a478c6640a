"""Restart policies with their options on real containers; changed while they run, and across engines."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from lighterman import Container, Engine, InvalidSpec, RestartPolicy, RunEnd
from support import eventually

pytestmark = pytest.mark.real


async def generation(container: Container, number: int) -> None:
    await eventually(lambda: container.status == "running" and _generation(container) >= number, 30)


def _generation(container: Container) -> int:
    return container._entry.record.generation


async def test_delays_and_codes_of_the_policy(engine: Engine) -> None:
    policy = RestartPolicy(name="always", initial_delay_s=0.01, multiplier=1, prevent_codes=(3,))
    script = "echo x >> /runs; exit $(wc -l < /runs)"
    box = await engine.create("busybox", ["sh", "-c", script], restart=policy)
    await box.start()
    exit = await box.wait()
    assert (exit.code, exit.generation) == (3, 3)


async def test_start_limit_ends_a_storm(engine: Engine) -> None:
    policy = RestartPolicy(name="always", initial_delay_s=0, burst=4, interval_s=60)
    box = await engine.create("busybox", ["false"], restart=policy)
    await box.start()
    assert (await box.wait()).generation == 4


async def test_signal_that_prevents(engine: Engine) -> None:
    policy = RestartPolicy(name="always", prevent_codes=("SIGKILL",))
    async with engine.container("busybox", ["sleep", "1000"], restart=policy) as box:
        # By somebody else than the engine: that is no stop by request.
        os.kill(box.pid, signal.SIGKILL)
        exit = await asyncio.wait_for(box.wait(), 30)
    assert (exit.signal, exit.generation) == (9, 1)


async def test_policy_as_code(engine: Engine) -> None:
    seen: list[tuple[int, bool]] = []

    def rule(history: Sequence[RunEnd]) -> float | None:
        seen.append((history[-1].exit_code, history[-1].ran_for_s >= 0))
        return 0.01 if len(history) < 3 else None

    box = await engine.create("busybox", ["sh", "-c", "exit 9"], restart=rule)
    await box.start()
    assert (await box.wait()).generation == 3
    assert seen == [(9, True)] * 3


async def test_policy_is_changed_while_it_runs(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "echo up; exec sleep 1000"]) as box:
        with pytest.raises(InvalidSpec):
            await box.set_restart_policy("sometimes")
        await box.set_restart_policy(RestartPolicy(name="always", initial_delay_s=0.01))
        await box._engine.client_of(box._entry).end_run(box.id, grace_s=0)
        await generation(box, 2)
        await box.set_restart_policy("no")
        await box._engine.client_of(box._entry).end_run(box.id, grace_s=0)
        assert (await box.wait()).generation == 2


async def test_changed_policy_is_there_after_an_engine_restart(tmp_path: Path, real_runtime: str) -> None:
    wanted = RestartPolicy(name="on-failure", initial_delay_s=0.01, force_codes=(0,), burst=50)
    async with Engine(tmp_path, runtime=real_runtime) as engine:
        box = await engine.create("busybox", ["sh", "-c", "echo up; exec sleep 1000"], name="box", lease=None)
        await box.start()
        await box.set_restart_policy(wanted)
    async with Engine(tmp_path, runtime=real_runtime) as engine:
        box = await engine.get("box")
        assert box._entry.record.spec.restart == wanted
        await engine.client_of(box._entry).end_run(box.id, grace_s=0)
        await generation(box, 2)
        await box.remove(force=True)


async def test_policy_as_code_is_not_there_after_an_engine_restart(tmp_path: Path, real_runtime: str) -> None:
    async with Engine(tmp_path, runtime=real_runtime) as engine:
        box = await engine.create(
            "busybox", ["sh", "-c", "echo up; exec sleep 1000"], name="box", lease=None, restart=lambda _: 0.01
        )
        await box.start()
    async with Engine(tmp_path, runtime=real_runtime) as engine:
        box = await engine.get("box")
        await engine.client_of(box._entry).end_run(box.id, grace_s=0)
        assert (await box.wait()).generation == 1
        await box.remove(force=True)


async def test_P03_starts_are_counted_over_engine_restarts(tmp_path: Path, real_runtime: str) -> None:
    limit = RestartPolicy(name="always", initial_delay_s=0, burst=4, interval_s=600)
    async with Engine(tmp_path, runtime=real_runtime) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None, restart=limit)
        await box.start()
    for number in (2, 3, 4):
        async with Engine(tmp_path, runtime=real_runtime) as engine:
            box = await engine.get("box")
            await engine.client_of(box._entry).end_run(box.id, grace_s=0)
            await generation(box, number)
    async with Engine(tmp_path, runtime=real_runtime) as engine:
        box = await engine.get("box")
        await engine.client_of(box._entry).end_run(box.id, grace_s=0)
        assert (await box.wait()).generation == 4
        # Who starts it again begins anew.
        await box.start()
        await engine.client_of(box._entry).end_run(box.id, grace_s=0)
        await generation(box, 6)
        await box.remove(force=True)


async def test_restarts_of_the_whole_engine_are_limited(real_runtime: str) -> None:
    policy = RestartPolicy(name="always", initial_delay_s=0, burst=2, interval_s=600)
    async with Engine(runtime=real_runtime, restarts_per_s=2) as engine:
        boxes = [await engine.create("busybox", ["false"], restart=policy) for _ in range(6)]
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(box.start() for box in boxes))
        ends = await asyncio.gather(*(box.wait() for box in boxes))
        assert [end.generation for end in ends] == [2] * 6
        # Two at once, then four at two a second.
        assert asyncio.get_running_loop().time() - began >= 2


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidSpec):
        Engine(restarts_per_s=0)
