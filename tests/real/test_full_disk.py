"""A store that can't be written: verbs that begin something are refused, ends are told all the same."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from lighterman import limits
from lighterman.engine import Engine
from lighterman.errors import StoreError
from lighterman.linux_host import LinuxHost
from lighterman.store import sqlite
from lighterman.store.base import Change
from lighterman.store.sqlite import SqliteStore
from support import eventually

pytestmark = pytest.mark.real


async def test_P06_full_disk_refuses_starts_and_holds_no_stop_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STORE_RETRY_S", 0.05)
    full = False
    commit = SqliteStore.commit

    async def sometimes(self: SqliteStore, change: Change) -> int:
        if full:
            raise StoreError("database or disk is full: the change did not happen")
        return await commit(self, change)

    monkeypatch.setattr(SqliteStore, "commit", sometimes)
    async with Engine(root=tmp_path / "root") as engine:
        box = await engine.create("busybox", ["sleep", "1000"], lease=None)
        await box.start()
        other = await engine.create("busybox", ["true"], lease=None)
        full = True
        with pytest.raises(StoreError):
            await engine.create("busybox", ["true"], lease=None)
        with pytest.raises(StoreError):
            await other.start()
        assert other.status == "created"
        ended = await box.stop(grace_s=0)
        assert ended is not None
        assert ended.signal == 9
        with pytest.raises(StoreError):
            await box.remove()
        full = False

        async def written_down() -> bool:
            return [event.kind async for event in engine.events(after=0, container=box.id, follow=False)][-1] == "exit"

        await eventually(written_down)
        await box.remove()
        await other.start()
        assert (await other.wait()).code == 0
        await other.remove()


@pytest.fixture
def small_root(tmp_path: Path) -> Iterator[Path]:
    """On a disk of its own."""
    root = tmp_path / "small"
    root.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=30m,mode=0700", "tmpfs", root], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"this host refuses to mount a tmpfs: {mounted.stderr.strip()}")
    yield root
    subprocess.run(["umount", "--lazy", root], check=True)


def fill(path: Path) -> None:
    """To the last byte of the disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"b" * 4096)


@pytest.mark.parametrize("before", ["nothing", "pause", "exec"])
async def test_P06_full_disk_holds_no_stop_up_whatever_came_before(
    small_root: Path, real_runtime: str, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Its other events wait for the disk as well, and its end waits in their line; who waits for it does not."""
    monkeypatch.setattr(limits, "STORE_RETRY_S", 0.05)
    monkeypatch.setattr(sqlite, "_RESERVE_AFTER_S", 3600.0)
    ballast = small_root / "ballast"
    async with Engine(root=small_root, runtime=real_runtime) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], lease=None)
        await box.start()
        fill(ballast)
        with pytest.raises(StoreError, match="full"):
            await engine.create("busybox", ["true"], lease=None)
        told = ["create", "start"]
        if before == "pause":
            await box.pause()
            await box.resume()
            told += ["pause", "resume"]
        elif before == "exec":
            assert (await box.exec(["true"])).exit.ok
            told += ["start-process", "exit-process"]
        async with asyncio.timeout(60):
            ended = await box.stop(grace_s=0)
        assert ended is not None
        assert ended.signal == 9
        keeper = cast("LinuxHost", engine.host).keeper

        async def is_kept() -> bool:
            return any(job.exit is not None for job in await keeper.list_jobs())

        assert await is_kept(), "the keeper must not forget an end that is not written down"
        ballast.unlink()

        async def written_down() -> bool:
            kinds = [event.kind async for event in engine.events(after=0, container=box.id, follow=False)]
            assert kinds == [*told, "exit"][: len(kinds)]
            return kinds[-1] == "exit"

        await eventually(written_down)

        async def is_forgotten() -> bool:
            return not await is_kept()

        await eventually(is_forgotten)
        await box.remove()


async def test_ended_execs_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXECS_KEPT", 3)
    async with Engine() as engine, engine.container("busybox", ["sleep", "1000"]) as box:
        for number in range(8):
            process = await box.start_exec(["echo", str(number)])
            await process.wait()
        kept = await box.execs()
        assert len(kept) <= 4
        assert await kept[-1].stdout.read() == b"7\n"
