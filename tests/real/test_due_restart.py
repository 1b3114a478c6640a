"""A restart that was due when the engine died is carried out, however many engines die on the way."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from reboot_support import change_record, rows

from lighterman import InvalidState, RestartPolicy
from lighterman.engine import Engine
from lighterman.lifecycle.restart import RestartRate
from support import eventually

pytestmark = pytest.mark.real

RUNS = 6
ENGINE = f"""
import asyncio, sys
import lighterman

SCRIPT = "n=$(cat /n 2>/dev/null || echo 0); n=$((n+1)); echo $n > /n; echo run $n; [ $n -ge {RUNS} ] && exit 0; exit 1"

async def main():
    async with lighterman.Engine(root=sys.argv[1]) as engine:
        if not await engine.containers():
            box = await engine.create("busybox", ["sh", "-c", SCRIPT], name="box", lease=None, restart="on-failure")
            await box.start()
        print("up", flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


def live_and_die(root: Path, moment_s: float) -> None:
    with subprocess.Popen([sys.executable, "-c", ENGINE, str(root)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            child.wait(moment_s)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)


async def test_P01_due_restart_survives_engines_that_die_quickly(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for moment_s in (0.12, 0.01, 0.03, 0.06, 0.02):
        await asyncio.to_thread(live_and_die, root, moment_s)
    async with Engine(root=root) as engine:
        box = await engine.get("box")

        async def all_runs_have_ended() -> bool:
            return box.status == "exited"

        await eventually(all_runs_have_ended, 60)
        assert (await box.wait()).code == 0
        said = b"".join([record.data async for record in box.logs()]).splitlines()
        assert said == [b"run %d" % number for number in range(1, RUNS + 1)]
        await box.remove()


ONE_RUN = """
import asyncio, os, sys
import lighterman

async def main():
    engine = lighterman.Engine(root=sys.argv[1])
    await engine.start()
    policy = lighterman.RestartPolicy(name="always", initial_delay_s=1000.0, max_delay_s=1000.0)
    box = await engine.create("busybox", ["sh", "-c", "exit 5"], name="box", lease=eval(sys.argv[2]), restart=policy)
    await box.start()
    while box.status != "restarting":
        await asyncio.sleep(0.01)
    os._exit(0)

asyncio.run(main())
"""


async def die_in_a_back_off(root: Path, lease: str) -> None:
    program = [sys.executable, "-c", ONE_RUN, str(root), lease]
    done = await asyncio.to_thread(subprocess.run, program, check=False, timeout=120, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


async def test_P01_stopped_in_a_resumed_back_off_it_does_not_come_back(root: Path) -> None:
    await die_in_a_back_off(root, "None")
    async with Engine(root=root) as engine:
        await (await engine.get("box")).kill()
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        exit = await asyncio.wait_for(box.wait(), 60)
        assert (box.status, exit.code, box.generation) == ("exited", 5, 1)
        await box.remove()


async def test_P02_whose_owner_has_died_in_its_back_off_is_removed_and_not_started(root: Path) -> None:
    await die_in_a_back_off(root, "'process'")
    async with Engine(root=root) as engine:

        async def is_gone() -> bool:
            return not await engine.containers()

        await eventually(is_gone)
        kinds = [event.kind async for event in engine.events(after=0, follow=False)]
        assert kinds.count("start") == 1


async def test_P01_a_back_off_that_nobody_has_stopped_goes_on(root: Path) -> None:
    await die_in_a_back_off(root, "None")
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        # Who was killed may not have written it down.
        await eventually(lambda: box.status == "restarting")
        await box.stop()
        assert (box.status, (await box.wait()).code) == ("exited", 5)
        await box.remove()


async def test_P01_who_waits_hears_of_no_end_when_the_engine_is_closed_in_a_back_off(root: Path) -> None:
    later = RestartPolicy(name="always", initial_delay_s=1000.0, max_delay_s=1000.0)
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["false"], name="box", lease=None, restart=later)
        await box.start()
        waiting = asyncio.ensure_future(box.wait())
        await eventually(lambda: box.status == "restarting")
    with pytest.raises(InvalidState, match="no longer watched"):
        await waiting


async def test_P02_time_of_who_waits_for_its_restart_goes_on(root: Path) -> None:
    much_later = RestartPolicy(name="always", initial_delay_s=1000.0, max_delay_s=1000.0)
    async with Engine(root=root) as engine:
        box = await engine.create(
            "busybox", ["sh", "-c", "exit 5"], name="box", lease=None, ttl_s=3, restart=much_later
        )
        await box.start()
        await eventually(lambda: box.status == "restarting")
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        exit = await box.wait(timeout_s=60)
        assert (exit.code, exit.reason, box.status) == (5, "lease", "exited")


async def test_due_restarts_keep_to_the_engines_rate(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ["sh", "-c", "[ -e /again ] && exec sleep 1000; touch /again; exit 1"]
    later = RestartPolicy(name="always", initial_delay_s=1000.0, max_delay_s=1000.0)
    async with Engine(root=root) as engine:
        for number in range(4):
            box = await engine.create("busybox", script, name=f"box{number}", lease=None, restart=later)
            await box.start()
        boxes = await engine.containers()
        await eventually(lambda: all(box.status == "restarting" for box in boxes))
    for row in rows(root):
        change_record(root, row.id, restart_at=0.0)
    real, waits = RestartRate.take, list[float]()

    def take(self: RestartRate, now: float) -> float:
        waits.append(real(self, now))
        return waits[-1]

    monkeypatch.setattr(RestartRate, "take", take)
    async with Engine(root=root, restarts_per_s=0.001) as engine:
        boxes = await engine.containers()
        await eventually(lambda: any(box.status == "running" for box in boxes))
        # The place of the next one is in a quarter of an hour.
        await eventually(lambda: len(waits) == 4)
        assert [wait > 0 for wait in waits] == [False, True, True, True]
        assert sorted(str(box.status) for box in boxes) == ["restarting"] * 3 + ["running"]
        for box in boxes:
            await box.stop(grace_s=0)
            assert box.status == "exited"
