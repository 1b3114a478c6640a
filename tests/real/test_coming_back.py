"""Coming back: what the chaos program has found once, each in its smallest form."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from pathlib import Path

import msgspec
import pytest
from real_support import keeper_pid, logged, process_is_there

from lighterman import Engine, InvalidState, KeeperLost, RestartPolicy, StoreError
from lighterman.keeper.client import JobState, KeeperClient
from lighterman.lifecycle.status import Status
from lighterman.record import Record
from lighterman.roots import StateRoot
from lighterman.store.base import Change
from lighterman.store.sqlite import SqliteStore
from support import eventually

pytestmark = pytest.mark.real


def change_record(root: Path, id: str, **fields: object) -> None:
    """As an engine that was killed in between has left it."""
    with sqlite3.connect(root / "state.db") as store:
        (encoded,) = store.execute("SELECT record FROM containers WHERE id = ?", (id,)).fetchone()
        record = msgspec.structs.replace(msgspec.json.decode(encoded, type=Record), **fields)
        store.execute("UPDATE containers SET record = ? WHERE id = ?", (msgspec.json.encode(record), id))
    store.close()


@pytest.mark.parametrize(
    "left", [{"starting": 2}, {"status": Status.RESTARTING, "starting": 0}], ids=["asked for", "by its policy"]
)
async def test_P08_output_of_a_run_that_nobody_was_told_of_is_not_in_the_next_one(
    root: Path, left: dict[str, object]
) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sh", "-c", "echo hi; exit 3"], lease=None, restart="on-failure:1")
        await box.start()
        assert (await box.wait()).generation == 2
        await box.remove()
        box = await engine.create("busybox", ["echo", "hi"], name="box", lease=None)
        await box.start()
        await box.wait()
    # What a run of that number wrote before the engine was killed in the middle of its start.
    logs = root / "containers" / box.id / "logs"
    (logs / "2").mkdir()
    for segment in (logs / "1").iterdir():
        (logs / "2" / segment.name).write_bytes(segment.read_bytes())
    change_record(root, box.id, **left)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        if box.status is not Status.RESTARTING:
            await box.start()
        await eventually(lambda: box.exit is not None and box.exit.generation == 2)
        assert await logged(box) == b"hi\nhi\n"


async def test_P01_engine_that_does_not_start_leaves_the_container_of_a_lost_keeper_alone(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        pid = box.pid
    keeper = keeper_pid(root)
    os.kill(keeper, signal.SIGKILL)
    await eventually(lambda: not process_is_there(keeper))
    store, aside = root / "state.db", root / "aside.db"
    store.rename(aside)
    store.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError):
        await Engine(root=root).start()
    assert any(box.id in inside for _, inside, _ in os.walk(StateRoot.of(root).run))
    for left in ("state.db", "state.db-wal", "state.db-shm"):
        (root / left).unlink(missing_ok=True)
    aside.rename(store)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (box.status, box.pid) == (Status.RUNNING, pid)
        assert process_is_there(pid)
        exit = await box.stop(grace_s=0)
        assert exit is not None
        assert exit.code is None


async def test_P03_keeper_lost_while_its_jobs_are_listed_the_container_is_adopted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        pid = box.pid
    real, calls = KeeperClient.list_jobs, 0

    async def list_jobs(self: KeeperClient, of: str = "") -> list[JobState]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeeperLost("keeper is gone")
        return list(await real(self, of))

    monkeypatch.setattr(KeeperClient, "list_jobs", list_jobs)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (box.status, box.pid, box.exit) == (Status.RUNNING, pid, None)
        monkeypatch.undo()
        await box.stop(grace_s=0)
        assert not process_is_there(pid)


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 16])
async def test_stop_of_a_container_that_is_being_started_is_not_lost(root: Path, turns: int) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"])
        start = asyncio.create_task(box.start())
        for _ in range(1 + turns):
            await asyncio.sleep(0)
        await box.stop(grace_s=0)
        pid = box.pid
        try:
            await start
        except InvalidState:
            assert box.status in (Status.CREATED, Status.EXITED)
        assert box.status is not Status.RUNNING
        assert not pid or not process_is_there(pid)


async def test_P03_pause_is_known_at_once(root: Path) -> None:
    """Not asked again at the next verb: a stop that thaws it meanwhile would let it be paused, and told, twice."""
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        await box.pause()
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        _, pausing = await asyncio.gather(box.stop(grace_s=0.1), box.pause(), return_exceptions=True)
        assert pausing is None or isinstance(pausing, InvalidState)
        kinds = [event.kind async for event in engine.events(after=0, follow=False)]
        changes = [kind for kind in kinds if kind in ("pause", "resume")]
        assert changes == ["pause", "resume", "pause", "resume"][: len(changes)]
        await box.remove()


@pytest.mark.parametrize("paused", [True, False])
async def test_P03_pause_that_was_not_told_before_the_crash_is_seen(root: Path, paused: bool) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        if paused:
            await box.pause()
    change_record(root, box.id, status=Status.RUNNING if paused else Status.PAUSED)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert box.status is (Status.PAUSED if paused else Status.RUNNING)
        if paused:
            await box.resume()
            assert str(box.status) == "running"
        await box.stop(grace_s=0)


async def test_exits_of_dead_keepers_go_when_nothing_lives(root: Path) -> None:
    async with Engine(root=root) as engine:
        keeper = keeper_pid(root)
        os.kill(keeper, signal.SIGKILL)
        await eventually(lambda: not process_is_there(keeper))

        async def runs_with_another_keeper() -> bool:
            try:
                return (await engine.run("busybox", ["true"])).ok
            except KeeperLost:
                return False

        await eventually(runs_with_another_keeper)
    assert not await asyncio.to_thread(os.path.exists, root / "exits")


@pytest.mark.parametrize("keeper_lost", [False, True], ids=["keeper", "keeper lost"])
async def test_P01_end_that_was_not_written_down_before_the_next_run_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, keeper_lost: bool
) -> None:
    async def full(self: SqliteStore, change: Change) -> int:
        raise StoreError("the disk is full")

    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sh", "-c", "read x; exit 7"], lease=None, restart="always", stdin=True)
        await box.start()
        first = box.pid
        if keeper_lost:
            keeper = keeper_pid(root)
            os.kill(keeper, signal.SIGKILL)
            await eventually(lambda: not process_is_there(keeper))
        monkeypatch.setattr(SqliteStore, "commit", full)
        if keeper_lost:
            os.kill(first, signal.SIGKILL)
        else:
            box.stdin.write(b"\n")

        async def next_run_goes_ahead() -> bool:
            assert box._entry.client is not None
            try:
                pids = await box._entry.client.pids(box.id)
                # None at all is the first run's end, before it was noticed.
                return bool(pids) and first not in pids
            except InvalidState:
                return False

        # It cannot be written down either.
        await eventually(next_run_goes_ahead)
        monkeypatch.setattr("lighterman.limits.STORE_RETRY_S", 1000)
        monkeypatch.setattr("lighterman.limits.CANCEL_S", 0.1)
    # Nor by the next engine.
    async with Engine(root=root) as engine:
        assert (await engine.get(box.id)).status is Status.RUNNING
    monkeypatch.undo()
    async with Engine(root=root) as engine:
        told = [event async for event in engine.events(after=0, follow=False)]
        kinds = [(event.kind, event.generation) for event in told if event.kind != "create"]
        assert kinds[:2] == [("start", 1), ("restart", 1)]
        # While there is no keeper a run can't be begun, and has had its number.
        assert [kind for kind, _ in kinds[2:]] == ["restore"]
        assert kinds[2][1] == 2 or (keeper_lost and kinds[2][1] > 2)
        assert told[2].exit is not None
        assert told[2].pid == first
        if keeper_lost:
            # Only the engine that has gone knew.
            assert told[2].exit.unknown == "keeper lost"
        else:
            assert told[2].exit.code == 7
        await (await engine.get(box.id)).stop(grace_s=0)


async def test_back_off_goes_on_in_the_next_engine(root: Path) -> None:
    policy = RestartPolicy(name="always", initial_delay_s=10_000, max_delay_s=10_000)
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sh", "-c", "exit 3"], name="box", lease=None, restart=policy)
        await box.start()
        await eventually(lambda: box.status is Status.RESTARTING)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (await engine.run("busybox", ["true"])).exit.ok
        assert (box.status, box.exit and box.exit.generation) == (Status.RESTARTING, 1)
        with pytest.raises(InvalidState):
            await box.start()
    # Closed while it waits: the next one waits on.
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert box.status is Status.RESTARTING
        exit = await box.stop()
        assert (box.status, exit and exit.code, exit and exit.generation) == (Status.EXITED, 3, 1)
    async with Engine(root=root) as engine:
        assert (await engine.get("box")).status is Status.EXITED


async def test_back_off_that_is_over_meanwhile_the_next_engine_starts_it(root: Path) -> None:
    policy = RestartPolicy(name="always", initial_delay_s=10_000, max_delay_s=10_000)
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sh", "-c", "exit 3"], name="box", lease=None, restart=policy)
        await box.start()
        await eventually(lambda: box.status is Status.RESTARTING)
    change_record(root, box.id, restart_at=time.monotonic() + 0.2)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        await eventually(lambda: box.status is Status.RESTARTING and box.exit is not None and box.exit.generation == 2)
