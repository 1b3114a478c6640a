"""Promises of the engine, each shown on real containers: exact exits, restarts that nobody notices, late answers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lighterman import limits
from lighterman.engine import Engine
from lighterman.errors import AlreadyExists, InvalidSpec, NotFound, NotSupported
from support import eventually

pytestmark = pytest.mark.real

WRITERS = 4
LINES = 400

LIVES_ON = f"""
import asyncio, sys
import lighterman

SCRIPT = "i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); [ $((i%20)) = 0 ] && sleep 0.02; done; exit $CODE"

async def main():
    engine = lighterman.Engine(root=sys.argv[1])
    await engine.start()
    for i in range({WRITERS}):
        env = {{"CODE": str(i + 3)}}
        box = await engine.create("busybox", ["sh", "-c", SCRIPT], env=env, name=f"w{{i}}", lease=None)
        await box.start()
        print(f"w{{i}}", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def start_engine(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", LIVES_ON, str(root)], stdout=subprocess.PIPE, text=True)


async def output(engine: Engine, name: str) -> list[bytes]:
    box = await engine.get(name)
    return b"".join([record.data async for record in box.logs()]).split()


@pytest.mark.parametrize("started", [1, 2, WRITERS])
async def test_P01_P03_killed_engine_loses_no_exit_and_no_line(tmp_path: Path, started: int) -> None:
    """The engine is killed when `started` of its containers were promised to it; one more may be half made."""
    root = tmp_path / "root"
    child = await asyncio.to_thread(start_engine, root)
    assert child.stdout is not None
    for _ in range(started):
        await asyncio.to_thread(child.stdout.readline)
    child.send_signal(signal.SIGKILL)
    await asyncio.to_thread(child.wait)
    child.stdout.close()
    async with Engine(root=root) as engine:
        names = {box.name for box in await engine.containers()}
        assert {f"w{i}" for i in range(started)} <= names
        for i in range(started):
            box = await engine.get(f"w{i}")
            assert (await box.wait()).code == i + 3
            assert await output(engine, box.name) == [b"%d" % number for number in range(LINES)]
        for box in await engine.containers():
            await box.remove(force=True)


async def test_P03_orderly_restarts_of_the_engine_signal_nobody(tmp_path: Path) -> None:
    root = tmp_path / "root"
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["cat"], stdin=True, name="cat", lease=None)
        await box.start()
        pid = box.pid
        box.stdin.write(b"first\n")
        await box.stdin.drain()
    for word in (b"second\n", b"third\n"):
        async with Engine(root=root) as engine:
            box = await engine.get("cat")
            assert box.pid == pid
            box.stdin.write(word)
            await box.stdin.drain()
    async with Engine(root=root) as engine:
        box = await engine.get("cat")
        box.stdin.write_eof()
        assert (await box.wait()).code == 0
        assert await output(engine, "cat") == [b"first", b"second", b"third"]
        await box.remove()


async def test_P10_wait_answers_after_the_removal_and_the_name_is_free_at_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sh", "-c", "exit 5"], name="again")
        await box.start()
        await box.wait()
        await box.remove()
        assert (await (await engine.get(box.id)).wait()).code == 5
        other = await engine.create("busybox", ["true"], name="again")
        assert (await engine.get("again")).id == other.id
        with pytest.raises(AlreadyExists):
            await engine.create("busybox", ["true"], name="again")
        with pytest.raises(NotFound):
            await box.start()
    async with Engine(root=root) as engine:
        # The tombstone is kept with the rest.
        assert (await (await engine.get(box.id)).wait()).code == 5


async def test_P10_tombstone_is_over_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TOMBSTONE_S", 0.0)
    async with Engine() as engine:
        box = await engine.create("busybox", ["true"])
        await box.start()
        await box.wait()
        await box.remove()
        with pytest.raises(NotFound):
            await engine.get(box.id)


async def test_P11_events_of_a_life_are_in_order_and_survive_the_engine(tmp_path: Path) -> None:
    root = tmp_path / "root"
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "100"], name="box", lease=None)
        await box.start()
        await box.pause()
        await box.resume()
        seen = [event async for event in engine.events(after=0, follow=False)]
        assert [event.kind for event in seen] == ["create", "start", "pause", "resume"]
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        await box.kill()
        await box.wait()
        await box.remove()
        later = [event async for event in engine.events(after=seen[-1].seq, follow=False)]
        assert [event.kind for event in later] == ["restore", "exit", "remove"]
        assert [event.seq for event in later] == list(range(seen[-1].seq + 1, seen[-1].seq + 4))
        assert later[1].exit is not None
        assert later[1].exit.signal == 9


async def test_P12_exit_says_why() -> None:
    async with Engine() as engine:
        hungry = await engine.run("busybox", ["sh", "-c", "head -c 200m /dev/zero | tail"], memory="16M")
        assert hungry.exit.oom_killed
        assert (hungry.exit.oom_kills or 0) >= 1
        late = await engine.run("busybox", ["sleep", "1000"], timeout_s=0.1)
        assert (late.exit.reason, late.exit.signal) == ("timeout", 9)
        loud = await engine.run("busybox", ["sh", "-c", "echo out; echo one >&2; echo two >&2; exit 4"])
        assert (loud.exit.code, loud.exit.last_words) == (4, b"one\ntwo\n")
        # However much comes on stdout after it, and in between.
        script = "echo why >&2; yes | head -c 3000000; echo so >&2; yes | head -c 300000; exit 4"
        loud = await engine.run("busybox", ["sh", "-c", script])
        assert (loud.exit.code, loud.exit.last_words) == (4, b"why\nso\n")
        assert (loud.exit.memory_peak_bytes or 0) > 0
        assert (loud.exit.cpu_s or 0) > 0
        async with engine.container("busybox", ["sleep", "1000"]) as box:
            ended = await box.stop(grace_s=0.1)
            assert ended is not None
            assert ended.reason == "stop"


async def test_P12_lost_keeper_is_told_as_it_is(tmp_path: Path) -> None:
    async with Engine() as engine:
        box = await engine.create("busybox", ["sh", "-c", "read line; exit 9"], stdin=True)
        await box.start()
        keeper = engine.host.keeper.pid
        os.kill(keeper, signal.SIGKILL)
        await eventually(lambda: engine.host.keeper.pid != keeper)
        # The next keeper serves the others.
        assert (await engine.run("busybox", ["echo", "here"])).stdout == b"here\n"
        box.stdin.write(b"go\n")
        box.stdin.write_eof()
        end = await box.wait()
        # By the zombie, or from Linux 6.15 on by the pidfd; never a code that was made up.
        assert end.code == 9 or (end.code is None and end.unknown == "keeper lost")


async def test_P13_limit_that_cannot_be_enforced_is_an_error() -> None:
    async with Engine() as engine:
        with pytest.raises((NotSupported, InvalidSpec), match="cpu"):
            await engine.run("busybox", ["true"], cpus=100_000)
        with pytest.raises((NotSupported, InvalidSpec)):
            await engine.run("busybox", ["true"], cpuset_cpus="4000-4001")
