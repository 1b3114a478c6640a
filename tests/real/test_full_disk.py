"""A store that can't be written: verbs that begin something are refused, ends are told all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from lighterman import limits
from lighterman.engine import Engine
from lighterman.errors import StoreError
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


async def test_ended_execs_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXECS_KEPT", 3)
    async with Engine() as engine, engine.container("busybox", ["sleep", "1000"]) as box:
        for number in range(8):
            process = await box.start_exec(["echo", str(number)])
            await process.wait()
        kept = await box.execs()
        assert len(kept) <= 4
        assert await kept[-1].stdout.read() == b"7\n"
