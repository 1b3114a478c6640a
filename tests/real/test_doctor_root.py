"""`lighterman doctor --root`: what a killed engine's store says against what is, and mending it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from lighterman.engine import Engine

pytestmark = pytest.mark.real

DIES = """
import asyncio, os, sys
import lighterman

async def main():
    engine = lighterman.Engine(root=sys.argv[1])
    await engine.start()
    box = await engine.create("busybox", ["sh", "-c", "exit 7"], name="short", lease=None)
    stays = await engine.create("busybox", ["sleep", "1000"], name="stays", lease=None)
    await stays.start()
    os.makedirs(f"{sys.argv[1]}/containers/{'0' * 32}")
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def doctor(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lighterman.cli", "doctor", "--root", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def die(root: Path) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(root)], timeout=60, check=False)


async def test_doctor_of_a_killed_engine_shows_and_mends_the_differences(tmp_path: Path) -> None:
    root = tmp_path / "root"
    await asyncio.to_thread(die, root)
    seen = doctor(root)
    assert "files of it are left" in seen.stdout
    assert seen.returncode == 1
    assert "mended" in doctor(root, "--repair").stdout
    again = doctor(root)
    assert "the store of" in again.stdout, again.stdout
    async with Engine(root=root) as engine:
        stays = await engine.get("stays")
        assert stays.status == "running"
        for container in await engine.containers():
            await container.remove(force=True)
