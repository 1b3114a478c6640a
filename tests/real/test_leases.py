"""No container outlives its owner: a process, this program, or its time; whatever dies, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lease_support import CGROUPS, Owner, ends_within, gone
from real_support import keeper_pid, process_is_there, running_in

from lighterman import Engine, InvalidSpec, InvalidState, NotFound, UsageError
from lighterman.keeper.client import KeeperClient
from lighterman.lifecycle.status import Status
from lighterman.roots import StateRoot
from support import PATIENCE, eventually, eventually_sync

pytestmark = pytest.mark.real


@pytest.fixture
def owner_of() -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def make(root: Path | None, *options: dict[str, object]) -> Owner:
        owners.append(Owner(root, *options))
        return owners[-1]

    yield make
    for owner in owners:
        owner.close()


@pytest.fixture
async def sleeper() -> AsyncIterator[asyncio.subprocess.Process]:
    """Some process that can own something."""
    process = await asyncio.create_subprocess_exec("/bin/sleep", "1000")
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


# ---- the owner dies ----------------------------------------------------------------------------------------------


def test_P02_kill_9_of_the_owner_ends_its_containers(root: Path, owner_of: Callable[..., Owner]) -> None:
    owner = owner_of(root, {"name": "a"}, {"name": "b", "ttl_s": 1000}, {"name": "lives", "lease": None})
    ends_within(owner.ids[:2], owner.process.kill, "kill -9 of the owner")
    assert len(running_in(owner.ids[2])) == 2

    async def look() -> None:
        async with Engine(root=root) as engine:
            for name in ("a", "b"):
                exit = await asyncio.wait_for((await engine.get(name)).wait(), 60)
                assert (exit.signal, exit.reason) == (9, "lease")
            await eventually(lambda: _names(engine, {"lives"}))
            assert (await engine.get("lives")).status is Status.RUNNING

    asyncio.run(look())


async def _names(engine: Engine, wanted: set[str]) -> bool:
    return {one.name for one in await engine.containers()} == wanted


def test_P02_owner_and_its_whole_session_killed_in_one_instant(root: Path, owner_of: Callable[..., Owner]) -> None:
    owner = owner_of(root, {}, {"ttl_s": 1000})
    assert os.getsid(owner.process.pid) == owner.process.pid
    ends_within(owner.ids, lambda: os.killpg(owner.process.pid, signal.SIGKILL), "kill -9 of the owner's group")


def test_P02_owner_killed_with_all_of_its_cgroup(root: Path, owner_of: Callable[..., Owner]) -> None:
    group = next(one for one in (CGROUPS / "pids", CGROUPS / "unified", CGROUPS) if (one / "cgroup.procs").exists())
    job = group / f"lighterman-test-job-{os.getpid()}"
    job.mkdir()
    program = Path(__file__).with_name("lease_owner.py")
    shell = f"echo $$ > {job}/cgroup.procs; exec {sys.executable} {program} {root} '[{{}}]'"
    process = subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid, id = process.stdout.readline().split()
    assert process_is_there(int(pid))

    def kill_all() -> None:
        for member in (job / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(member), signal.SIGKILL)

    ends_within([id], kill_all, "kill -9 of the owner's control group")
    process.wait()
    process.stdout.close()
    eventually_sync(lambda: not (job / "cgroup.procs").read_text().split())
    job.rmdir()


def private_root_of(owner: Owner) -> Path:
    roots = Path(StateRoot.of(None).state).parent.iterdir()
    return next(path for path in roots if (path / "containers" / owner.ids[0]).exists())


@pytest.mark.parametrize("whole_session", [False, True], ids=["owner", "session"])
def test_P02_private_root_vanishes_with_its_owner(owner_of: Callable[..., Owner], whole_session: bool) -> None:
    owner = owner_of(None, {}, {"ttl_s": 1000})
    root = private_root_of(owner)
    run = Path(StateRoot.of(None).run).parent / root.name
    assert run.exists()

    def kill() -> None:
        if whole_session:
            os.killpg(owner.process.pid, signal.SIGKILL)
        else:
            owner.process.kill()

    ends_within(owner.ids, kill, "kill -9 of a private engine")
    eventually_sync(lambda: not root.exists() and not run.exists())


def test_P02_owner_killed_after_its_keeper_was(root: Path, owner_of: Callable[..., Owner]) -> None:
    owner = owner_of(root, {}, {"ttl_s": 1000})
    lost = keeper_pid(root)
    os.kill(lost, signal.SIGKILL)
    eventually_sync(lambda: _other_keeper(root, lost))
    # The next keeper is told the leases before it serves anybody; a call of ours shows that it does.
    eventually_sync(lambda: _leases_of(root) == 2)
    ends_within(owner.ids, owner.process.kill, "kill -9 of the owner, with the second keeper")


def _other_keeper(root: Path, lost: int) -> bool:
    try:
        return keeper_pid(root) != lost
    except AssertionError:
        return False


def _leases_of(root: Path) -> int:
    """How many owners a root's keeper holds by pidfd, beside its engine; -1 while its launcher hands over to it."""
    try:
        keeper = keeper_pid(root)
    except AssertionError:
        return -1
    found = -1
    for fd in Path(f"/proc/{keeper}/fd").iterdir():
        try:
            found += "pidfd" in os.readlink(fd)
        except FileNotFoundError:
            continue
    return found


async def test_P02_owner_and_keeper_killed_the_next_engine_ends_it(root: Path, owner_of: Callable[..., Owner]) -> None:
    owner = await asyncio.to_thread(owner_of, root, {"name": "box"})
    os.kill(keeper_pid(root), signal.SIGSTOP)
    os.kill(keeper_pid(root), signal.SIGKILL)
    owner.process.kill()
    owner.process.wait()
    async with Engine(root=root) as engine:
        exit = await asyncio.wait_for((await engine.get("box")).wait(), 60)
        assert exit.reason == "lease"
        await eventually(lambda: _names(engine, set()))
    assert gone(owner.ids[0])


async def test_P02_private_owner_and_keeper_killed_the_next_engine_ends_it(owner_of: Callable[..., Owner]) -> None:
    owner = await asyncio.to_thread(owner_of, None, {})
    run = Path(StateRoot.of(None).run).parent / private_root_of(owner).name
    keeper = keeper_pid()
    # It starts no other keeper.
    os.kill(owner.process.pid, signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    owner.process.kill()
    owner.process.wait()
    await eventually(lambda: not process_is_there(keeper))
    assert running_in(owner.ids[0])
    async with Engine():
        await eventually(lambda: gone(owner.ids[0]))
    assert not run.exists()


# ---- another process as the owner --------------------------------------------------------------------------------


async def test_P02_another_process_is_the_owner(
    root: Path, real_runtime: str, sleeper: asyncio.subprocess.Process
) -> None:
    async with Engine(root=root, runtime=real_runtime) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=sleeper.pid)
        idle = await engine.create("busybox", ["true"], name="idle", lease=sleeper.pid)
        await box.start()
        assert (box.lease.kind, box.lease.owner, box.lease.ttl_s) == ("owner", sleeper.pid, None)
        pid = box.pid
    assert process_is_there(pid)
    async with Engine(root=root, runtime=real_runtime) as engine:
        box, idle = await engine.get("box"), await engine.get("idle")
        assert (box.status, box.lease.owner) == (Status.RUNNING, sleeper.pid)
        sleeper.kill()
        exit = await asyncio.wait_for(box.wait(), 60)
        assert (exit.signal, exit.reason) == (9, "lease")
        await eventually(lambda: _names(engine, set()))
        assert (await engine.get("box")).exit == exit
        with pytest.raises((NotFound, InvalidState)):
            await idle.start()
    assert gone(box.id)


async def test_P02_owner_dies_while_there_is_no_engine(root: Path, sleeper: asyncio.subprocess.Process) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=sleeper.pid, restart="always")
        await box.start()
    assert running_in(box.id)
    sleeper.kill()
    await eventually(lambda: gone(box.id))
    async with Engine(root=root) as engine:
        exit = await asyncio.wait_for((await engine.get("box")).wait(), 60)
        assert (exit.signal, exit.reason, exit.generation) == (9, "lease", 1)
        await eventually(lambda: _names(engine, set()))


async def test_owner_is_not_there(engine: Engine, sleeper: asyncio.subprocess.Process) -> None:
    sleeper.kill()
    await sleeper.wait()
    for wrong in (sleeper.pid, 0, -1, 2**40, True, "connection", 1.5):
        with pytest.raises(InvalidSpec):
            await engine.create("busybox", ["true"], lease=wrong)  # type: ignore[arg-type]
    assert await engine.containers() == []


# ---- a time ------------------------------------------------------------------------------------------------------


async def test_P02_ttl_ends_it_and_says_so(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", "echo out; sleep 1000"], ttl_s=2)
    assert (done.exit.signal, done.exit.reason, done.stdout) == (9, "lease", b"out\n")
    async with engine.container("busybox", ["sleep", "1000"], ttl_s=2, restart="always") as box:
        assert box.lease.kind == "scope"
        assert box.lease.ttl_s == 2
        exit = await asyncio.wait_for(box.wait(), 60)
        assert (exit.signal, exit.reason, exit.generation) == (9, "lease", 1)
        assert box.status is Status.EXITED
        assert box.lease.left_s is None
        # Asked for again, it has its time again.
        await box.start()
        assert (await asyncio.wait_for(box.wait(), 60)).generation == 2


async def test_P02_ttl_renewed_lives_on(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], ttl_s=2 * PATIENCE) as box:
        begun = time.monotonic()
        await box.renew(3 * PATIENCE)
        assert box.lease.ttl_s == 3 * PATIENCE
        assert box.lease.left_s is not None
        assert 0 < box.lease.left_s <= 3 * PATIENCE
        exit = await asyncio.wait_for(box.wait(), 60)
        assert exit.reason == "lease"
        assert time.monotonic() - begun >= 3 * PATIENCE


async def test_renewal_that_meets_the_end_leaves_no_time_of_the_run_that_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], ttl_s=1000)
    await box.start()
    renew = KeeperClient.renew_lease

    async def late(self: KeeperClient, name: str, until: float | None) -> None:
        monkeypatch.setattr(KeeperClient, "renew_lease", renew)
        await box.kill()
        await box.wait()
        await renew(self, name, until)

    monkeypatch.setattr(KeeperClient, "renew_lease", late)
    with pytest.raises(InvalidState, match="over"):
        await box.renew(500)
    assert (box.lease.ttl_s, box.lease.left_s) == (1000, None)
    await box.start()
    assert box.lease.left_s is not None
    assert box.lease.left_s > 900
    await box.remove(force=True)


async def test_P02_ttl_goes_on_over_an_engines_restart(root: Path, owner_of: Callable[..., Owner]) -> None:
    owner = await asyncio.to_thread(owner_of, root, {"name": "box", "lease": None, "ttl_s": 1000})
    owner.process.kill()
    owner.process.wait()
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (box.status, box.pid) == (Status.RUNNING, owner.pids[0])
        assert (box.lease.kind, box.lease.ttl_s) == (None, 1000)
        assert box.lease.left_s is not None
        assert 900 < box.lease.left_s < 1000
        await box.renew(0.5)
        assert (await asyncio.wait_for(box.wait(), 60)).reason == "lease"
        assert box.status is Status.EXITED


async def test_P02_ttl_ends_while_there_is_no_engine(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None, ttl_s=1.5, restart="always")
        await box.start()
        pid = box.pid
    assert process_is_there(pid)
    await eventually(lambda: not process_is_there(pid))
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        exit = await asyncio.wait_for(box.wait(), 60)
        assert (exit.signal, exit.reason, exit.generation, box.status) == (9, "lease", 1, Status.EXITED)


async def test_P02_ttl_goes_on_when_the_keeper_is_lost(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], lease=None, ttl_s=4)
        await box.start()
        os.kill(keeper_pid(root), signal.SIGKILL)
        exit = await asyncio.wait_for(box.wait(), 60)
        assert exit.reason == "lease"
        assert exit.unknown or exit.signal == 9


async def test_P02_ttl_renewed_while_the_keeper_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], lease=None, ttl_s=1000)
        await box.start()
        granted: list[float | None] = []
        lease = KeeperClient.lease

        async def note(self: KeeperClient, name: str, owner_pidfd: int | None, **changes: Any) -> None:
            await lease(self, name, owner_pidfd, **changes)
            if name.endswith(box.id):
                granted.append(changes["until"])
                if len(granted) == 1:
                    await box.renew(5000)

        monkeypatch.setattr(KeeperClient, "lease", note)
        lost = keeper_pid(root)
        os.kill(lost, signal.SIGKILL)
        await eventually(lambda: len(granted) == 2)
        assert granted[0] is not None
        assert granted[1] is not None
        assert granted[1] > granted[0] + 2000
        await box.remove(force=True)


async def test_P02_ttl_ends_what_waits_for_its_restart(engine: Engine) -> None:
    def much_later(_history: object) -> float:
        return 1000.0

    async with engine.container("busybox", ["sh", "-c", "exit 5"], ttl_s=6, restart=much_later) as box:
        exit = await asyncio.wait_for(box.wait(), 60)
        assert (exit.code, exit.reason) == (5, "lease")


async def test_ttl_that_is_none(engine: Engine) -> None:
    for wrong in (0, -1, float("nan"), float("inf"), "5", True):
        with pytest.raises(InvalidSpec):
            await engine.create("busybox", ["true"], ttl_s=wrong)  # type: ignore[arg-type]
    box = await engine.create("busybox", ["sleep", "1000"])
    assert (box.lease.kind, box.lease.owner, box.lease.ttl_s) == ("process", os.getpid(), None)
    with pytest.raises(InvalidState):
        await box.renew(5)
    timed = await engine.create("busybox", ["true"], ttl_s=100)
    await timed.renew(50)
    assert (timed.lease.ttl_s, timed.lease.left_s) == (50, None)
    with pytest.raises(UsageError):
        await engine.create("busybox", ["true"], lease=None, ttl_s=5)
