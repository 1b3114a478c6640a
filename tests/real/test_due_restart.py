"""A restart that was due when the engine died is carried out, however many engines die on the way."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lighterman.engine import Engine
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
