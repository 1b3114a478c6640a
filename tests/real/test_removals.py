"""Removals that can't be done at once: said so each time, tried again, and nothing of them told of what never was."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from lighterman import Engine, limits
from lighterman.engine import removal
from lighterman.errors import NotFound, StoreError
from lighterman.runtimes.oci.bundle import Bundle
from lighterman.runtimes.oci.cgroups import Cgroup
from lighterman.runtimes.oci.removal import remove_natively
from lighterman.runtimes.oci.system import OciSystem
from lighterman.trees import remove_tree
from support import eventually

pytestmark = pytest.mark.real


class Tree:
    """Directories of containers can't be removed while it is held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = True
        self.tried = 0

        def sometimes(path: str) -> None:
            self.tried += 1
            if self.held:
                raise OSError(errno.EXDEV, "something is mounted in it", path)
            remove_tree(path)

        monkeypatch.setattr(removal, "remove_tree", sometimes)


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(monkeypatch)


async def kinds(engine: Engine) -> list[str]:
    return [event.kind async for event in engine.events(after=0, follow=False)]


async def test_failed_removal_fails_again_until_it_is_done(
    root: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STORE_RETRY_S", 3600.0)
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["true"], name="box", lease=None)
        await box.start()
        await box.wait()
        for _ in range(2):
            with pytest.raises(StoreError, match="something is mounted in it"):
                await box.remove()
        assert box._entry.directory.exists()
        assert "remove" not in await kinds(engine)
        tree.held = False
        await box.remove()
        assert not box._entry.directory.exists()
        assert (await kinds(engine))[-2:] == ["exit", "remove"]
        await box.remove()
        assert (await kinds(engine)).count("remove") == 1
        # Its name was free all the time.
        await (await engine.create("busybox", ["true"], name="box", lease=None)).remove()


@pytest.fixture
def remains(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the first run has left can't be taken away at the first try; the ids of all tries."""
    tried: list[str] = []

    def sometimes(state: str, cgroup: Cgroup, bundle: Bundle) -> list[str]:
        tried.append(cgroup.name)
        if len(tried) == 1:
            raise OSError(errno.EIO, "Input/output error", state)
        return remove_natively(state, cgroup, bundle)

    monkeypatch.setattr("lighterman.runtimes.oci.runtime.remove_natively", sometimes)
    return tried


async def test_what_a_run_has_left_is_taken_away_before_the_next(engine: Engine, remains: list[str]) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        await box.stop(grace_s=0)
        await eventually(lambda: remains)
        await box.start()
        assert len(remains) == 2
        assert (await box.stop(grace_s=0)) is not None


async def test_next_run_has_the_containers_own_files_whatever_is_left(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    back: list[str] = []

    def fail(state: str, cgroup: Cgroup, bundle: Bundle) -> list[str]:
        tried.append(cgroup.name)
        if len(tried) > 2:
            return remove_natively(state, cgroup, bundle)
        if len(tried) == 2:
            remove_natively(state, cgroup, bundle)
        raise OSError(errno.EIO, "Input/output error", state)

    monkeypatch.setattr("lighterman.runtimes.oci.runtime.remove_natively", fail)
    monkeypatch.setattr(OciSystem, "take_files_back", lambda system: back.append(system.id))
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        await box.stop(grace_s=0)
        await eventually(lambda: tried)
        assert back == []
        await box.start()
        assert (len(tried), back) == (2, [box.id])


async def test_what_a_run_has_left_is_taken_away_at_the_close(root: Path, remains: list[str]) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["true"], lease=None)
        await box.start()
        await box.wait()
        await eventually(lambda: remains)
    assert remains == [box.id, box.id]


async def test_failed_removal_is_tried_again(root: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_RETRY_S", 0.01)
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["true"], lease=None)
        await box.start()
        await box.wait()
        with pytest.raises(StoreError):
            await box.remove()
        await eventually(lambda: tree.tried >= 4)
        tree.held = False
        await eventually(lambda: not box._entry.directory.exists())

        async def is_told() -> bool:
            return (await kinds(engine))[-1] == "remove"

        await eventually(is_told)


async def test_removal_that_is_tried_again_holds_no_close_up(root: Path, tree: Tree) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["true"], lease=None)
        await box.start()
        await box.wait()
        with pytest.raises(StoreError):
            await box.remove()
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < limits.CANCEL_S
    tree.held = False
    async with Engine(root=root) as engine:
        await eventually(lambda: not box._entry.directory.exists())
        assert await engine.containers() == []


@pytest.mark.parametrize("turns", range(8))
async def test_create_cancelled_before_it_is_written_down_tells_nothing(root: Path, turns: int) -> None:
    async with Engine(root=root) as engine:
        making = asyncio.ensure_future(engine.create("busybox", ["true"], name="box", lease=None))
        for _ in range(turns):
            await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
    async with Engine(root=root) as engine:
        told = await kinds(engine)
        assert told in ([], ["create", "remove"])
        if not told:
            with pytest.raises(NotFound):
                await engine.get("box")


async def test_create_cancelled_at_once_leaves_no_trace(root: Path) -> None:
    async with Engine(root=root) as engine:
        making = asyncio.ensure_future(engine.create("busybox", ["true"], name="box", lease=None))
        await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        with pytest.raises(NotFound):
            await engine.get("box")
    async with Engine(root=root) as engine:
        assert await kinds(engine) == []
