"""What follows from being unhealthy, followed through: over kill -9 of the engine, and on a disk that takes nothing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from real_support import process_is_there

from lighterman import Container, Engine, Exec, HealthCheck, limits
from lighterman.errors import StoreError
from lighterman.store.base import Change
from lighterman.store.sqlite import SqliteStore
from support import eventually

pytestmark = pytest.mark.real

LIMIT_S = 60.0

# Its container never becomes healthy in the first run; it is killed in the grace of what follows from that.
OWNER = """
import asyncio, sys
from lighterman import Engine, Exec, HealthCheck
root, signs, runtime, script, follows, policy = sys.argv[1:]
async def main():
    async with Engine(root, runtime=runtime) as engine:
        check = HealthCheck(
            Exec(["test", "-e", "/signs/ok"]),
            interval_s=0.05, start_interval_s=0.05, retries=1, on_unhealthy=follows,
        )
        box = await engine.create(
            "busybox", ["sh", "-c", script], name="box", lease=None, health=check, restart=policy,
            mounts=[f"{signs}:/signs"],
        )
        await box.start()
        await box.wait(until="unhealthy")
        print(box.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""

IGNORES = "trap 'touch /signs/term' TERM; while :; do sleep 0.05; done"
# It obeys when it is allowed to.
OBEYS = (
    "trap 'touch /signs/term; while [ ! -e /signs/go ]; do sleep 0.05; done; exit 0' TERM; while :; do sleep 0.05; done"
)


async def killed_in_the_grace(root: Path, signs: Path, runtime: str, script: str, follows: str, policy: str) -> int:
    """Returns: the pid of the init process, which has had its stop signal."""
    signs.mkdir()  # noqa: ASYNC240
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(root), str(signs), runtime, script, follows, policy,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert engine.stdout is not None
    pid = int(await engine.stdout.readline())
    await eventually(lambda: (signs / "term").exists(), LIMIT_S)
    engine.kill()
    await engine.wait()
    return pid


async def reasons(engine: Engine, box: Container) -> list[tuple[str, str | None]]:
    """How its runs ended: the kind of the event, and the reason of the exit."""
    events = [event async for event in engine.events(after=0, container=box.id, follow=False)]
    return [(event.kind, event.exit.reason) for event in events if event.exit is not None]


async def test_restart_of_what_ignores_it_goes_on_under_the_next_engine(
    root: Path, tmp_path: Path, real_runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await killed_in_the_grace(root, tmp_path / "signs", real_runtime, IGNORES, "restart", "no")
    monkeypatch.setattr(limits, "STOP_GRACE_S", 0.2)
    (tmp_path / "signs" / "ok").touch()
    async with Engine(root, runtime=real_runtime) as engine:
        box = await engine.get("box")
        await eventually(lambda: box.generation == 2, LIMIT_S)
        await box.wait(until="healthy", timeout_s=LIMIT_S)
        assert await reasons(engine, box) == [("restart", "unhealthy")]
        # Once, and for that run alone.
        assert (await box.stop(grace_s=0), box.generation) == (box.exit, 2)
        assert (await reasons(engine, box))[-1] == ("exit", "stop")


@pytest.mark.parametrize(
    ("follows", "policy", "generation", "told"), [("restart", "no", 2, "restart"), ("stop", "always", 1, "exit")]
)
async def test_what_obeys_while_no_engine_is_there_ended_by_it(
    root: Path, tmp_path: Path, follows: str, policy: str, generation: int, told: str
) -> None:
    pid = await killed_in_the_grace(root, tmp_path / "signs", "crun", OBEYS, follows, policy)
    (tmp_path / "signs" / "go").touch()
    (tmp_path / "signs" / "ok").touch()
    await eventually(lambda: not process_is_there(pid), LIMIT_S)
    async with Engine(root, runtime="crun") as engine:
        box = await engine.get("box")
        if told == "exit":
            await box.wait(timeout_s=LIMIT_S)
        await eventually(lambda: box.generation == generation, LIMIT_S)
        assert await reasons(engine, box) == [(told, "unhealthy")]


async def test_who_stops_it_in_that_grace_is_obeyed_by_the_next_engine(root: Path, tmp_path: Path) -> None:
    """The stop came after the decision to restart, and neither had come to its end when the engine was killed."""
    signs = tmp_path / "signs"
    pid = await killed_in_the_grace(root, signs, "crun", OBEYS, "restart", "no")
    async with Engine(root, runtime="crun") as engine:
        stopping = asyncio.ensure_future((await engine.get("box")).stop(grace_s=100))
        entry = (await engine.get("box"))._entry
        await eventually(lambda: entry.record.manually_stopped, LIMIT_S)
        stopping.cancel()
        (signs / "go").touch()
        await eventually(lambda: not process_is_there(pid), LIMIT_S)
        exit = await (await engine.get("box")).wait(timeout_s=LIMIT_S)
        assert exit.generation == 1


async def test_full_disk_holds_up_nothing_that_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_RETRY_S", 0.05)
    full, commit = False, SqliteStore.commit

    async def sometimes(self: SqliteStore, change: Change) -> int:
        if full:
            raise StoreError("database or disk is full: the change did not happen")
        return await commit(self, change)

    monkeypatch.setattr(SqliteStore, "commit", sometimes)
    check = HealthCheck(Exec(["false"]), interval_s=0.05, start_interval_s=0.5, retries=1, on_unhealthy="kill")
    async with Engine(root=tmp_path / "root") as engine:
        box = await engine.create("busybox", ["sleep", "1000"], lease=None, health=check)
        await box.start()
        full = True
        exit = await box.wait(timeout_s=LIMIT_S)
        assert (exit.signal, exit.reason) == (9, "unhealthy")
        full = False
        await box.remove()
