"""A stop whose engine is killed on the way: the next one goes on with it, and says who had asked for the end."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from reboot_support import rows

from lighterman import Engine, OperationTimeout
from lighterman.lifecycle.status import Status
from lighterman.supervisor.client import Client

pytestmark = pytest.mark.real

ENGINE = """
import asyncio, os, signal, sys
from lighterman import Engine
from lighterman.supervisor.client import Client

def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

root, policy, script, grace_s, moment = sys.argv[1:]

async def main():
    engine = Engine(root=root)
    await engine.start()
    script_ = script + "; echo ready; while :; do sleep 0.05; done"
    box = await engine.create("busybox", ["sh", "-c", script_], name="box", lease=None, restart=policy)
    await box.start()
    assert await box.stdout.readline() == b"ready\\n"
    if moment == "before the signal":
        Client.stop = die
    stopping = asyncio.ensure_future(box.stop(grace_s=float(grace_s)))
    if moment == "when it has said so":
        await box.stdout.readline()
    else:
        await stopping
    die()

asyncio.run(main())
"""


async def die_while_it_stops(root: Path, policy: str, script: str, grace_s: float, moment: str) -> None:
    program = [sys.executable, "-c", ENGINE, str(root), policy, script, str(grace_s), moment]
    done = await asyncio.to_thread(subprocess.run, program, check=False, timeout=120, capture_output=True)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")


@pytest.mark.parametrize("policy", ["no", "always"])
async def test_signal_that_was_not_sent_is_sent_by_the_next_engine(root: Path, policy: str) -> None:
    await die_while_it_stops(root, policy, "trap 'exit 5' TERM", 1000, "before the signal")
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        exit = await box.wait(timeout_s=60)
        assert (exit.code, exit.reason, box.status) == (5, "stop", Status.EXITED)
    (row,) = rows(root)
    assert (row.end_reason, row.kill_at) == (None, None)


@pytest.mark.parametrize("policy", ["no", "always"])
async def test_end_that_came_without_an_engine_says_who_has_asked_for_it(root: Path, policy: str) -> None:
    await die_while_it_stops(root, policy, "trap 'echo bye; sleep 0.1; exit 5' TERM", 1000, "when it has said so")
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        exit = await box.wait(timeout_s=60)
        assert (exit.code, exit.reason, box.status) == (5, "stop", Status.EXITED)


@pytest.mark.parametrize("policy", ["no", "always"])
async def test_who_ignores_the_signal_is_killed_when_its_grace_is_over(root: Path, policy: str) -> None:
    await die_while_it_stops(root, policy, "trap 'echo term' TERM", 1, "when it has said so")
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        exit = await box.wait(timeout_s=60)
        assert (exit.code, exit.signal, exit.reason, box.status) == (None, 9, "stop", Status.EXITED)


async def test_grace_that_is_not_over_goes_on(root: Path) -> None:
    await die_while_it_stops(root, "no", "trap 'echo term' TERM", 1000, "when it has said so")
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        with pytest.raises(OperationTimeout):
            await box.wait(timeout_s=0.5)
        exit = await box.stop(grace_s=0)
        assert exit is not None
        assert (exit.signal, exit.reason) == (9, "stop")


async def test_stop_that_failed_is_not_gone_on_with(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(self: Client, id: str, *, grace_s: float) -> None:
        raise OperationTimeout("signal was not done after 30 s", operation="signal", container=id)

    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        with monkeypatch.context() as runtime:
            runtime.setattr(Client, "stop", hangs)
            with pytest.raises(OperationTimeout):
                await box.stop(grace_s=0.001)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        with pytest.raises(OperationTimeout):
            await box.wait(timeout_s=0.2)
        assert box.status is Status.RUNNING
