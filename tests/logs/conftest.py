"""A pump for each test, closed after it, and no descriptor left."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lighterman.logs.pump import OutputPump

from .support import open_descriptors


@pytest.fixture
async def pump() -> AsyncIterator[OutputPump]:
    gc.collect()
    before = open_descriptors()
    pump = OutputPump(asyncio.get_running_loop())
    yield pump
    await pump.close()
    gc.collect()
    assert open_descriptors() <= before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k,mode=0700", "tmpfs", tmp_path], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"this host refuses to mount a tmpfs: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)
