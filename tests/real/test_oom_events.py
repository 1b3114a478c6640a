"""OOM kills of a container that goes on running are events: counted, in order, once, whoever dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from lighterman import Container, Engine, Event, Resources, limits
from support import eventually

pytestmark = pytest.mark.real

# Of memory that goes with the process that is killed.
EAT = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]


async def events_of(engine: Engine, box: Container) -> list[Event]:
    return [event async for event in engine.events(after=0, container=box.id, follow=False)]


async def counts(engine: Engine, box: Container) -> list[int]:
    return [event.oom_kills for event in await events_of(engine, box) if event.kind == "oom"]


async def told(engine: Engine, box: Container, wanted: list[int]) -> None:
    async def are_told() -> bool:
        return await counts(engine, box) == wanted

    await eventually(are_told)


async def eat(box: Container) -> None:
    assert (await box.exec(EAT)).exit.signal == 9


async def test_P12_kills_are_told_while_it_runs(engine: Engine) -> None:
    script = "while read x; do dd if=/dev/zero of=/dev/null bs=200M count=1; done; exit 5"
    async with engine.container("busybox", ["sh", "-c", script], memory="32M", stdin=True) as box:
        for number in (1, 2):
            box.stdin.write(b"\n")
            await told(engine, box, list(range(1, number + 1)))
        await eat(box)
        await told(engine, box, [1, 2, 3])
        box.stdin.write_eof()
        exit = await box.wait()
        assert (exit.code, exit.oom_kills) == (5, 3)
        kinds = [
            event.kind for event in await events_of(engine, box) if event.kind not in ("start-process", "exit-process")
        ]
        assert kinds == ["create", "start", "oom", "oom", "oom", "exit"]


async def test_the_init_that_is_killed_is_told_by_its_exit(engine: Engine) -> None:
    box = await engine.create("busybox", EAT, memory="32M")
    await box.start()
    assert (await box.wait()).reason == "oom"
    assert await counts(engine, box) == []
    await box.remove()


async def test_a_kill_from_outside_is_not_that_of_a_child_before(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OOM_DEATH_S", 0.0)
    async with engine.container("busybox", ["sleep", "1000"], memory="32M") as box:
        await eat(box)
        await told(engine, box, [1])
        os.kill(box.pid, signal.SIGKILL)
        exit = await box.wait()
        assert (exit.signal, exit.reason, exit.oom_kills) == (9, None, 1)


async def test_a_limit_that_is_set_later(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        await box.update(Resources(memory_bytes=32 << 20))
        await eat(box)
        await told(engine, box, [1])


async def test_each_run_counts_anew(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], memory="32M")
    for runs in (1, 2):
        await box.start()
        await eat(box)
        await told(engine, box, [1] * runs)
        await box.stop(grace_s=0)
    await box.remove()


async def test_P11_after_kill_9_of_the_engine_each_is_told_once(root: Path, tmp_path: Path) -> None:
    """One kill before the engine dies, two with no engine there, one under the next."""
    once = "dd if=/dev/zero of=/dev/null bs=200M count=1"
    script = f"{once}; while [ ! -e /host/go ]; do sleep 0.05; done; {once}; {once}; touch /host/done; sleep 1000"
    shared = tmp_path / "shared"
    await asyncio.to_thread(shared.mkdir)
    owner = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("exec_owner.py")),
        str(root),
        json.dumps([script]),
        json.dumps([{"memory": "32M", "mounts": [f"{shared}:/host"]}, {}]),
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout is not None
    await owner.stdout.readline()
    assert await asyncio.wait_for(owner.stdout.readline(), 60) == b"oom\n"
    owner.kill()
    await owner.wait()
    await asyncio.to_thread((shared / "go").touch)
    await eventually((shared / "done").exists, 60)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        await told(engine, box, [1, 3])
        await eat(box)
        await told(engine, box, [1, 3, 4])
    async with Engine(root=root) as engine:
        # Nothing has happened meanwhile, and nothing more is told.
        box = await engine.get("box")
        await eat(box)
        await told(engine, box, [1, 3, 4, 5])
