"""The keeper of running containers becomes another build: for them nothing has happened."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from real_support import keeper_pid, logged, process_is_there, written

from builds import Builds
from lighterman import ConnectionLease, Container, Engine, limits
from lighterman.lifecycle.status import Status
from support import eventually

pytestmark = pytest.mark.real

LINES = 400
SCRIPT = (
    "i=0; while [ $i -lt %d ]; do echo out $i; echo err $i >&2; i=$((i+1)); "
    "[ $((i %% 20)) = 0 ] && sleep 0.02; done; exit %d"
)


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    return Builds(tmp_path, monkeypatch)


async def writer(engine: Engine, number: int) -> Container:
    argv = ["sh", "-c", SCRIPT % (LINES, number + 1)]
    box = await engine.create("busybox", argv, name=f"box{number}", lease=None)
    await box.start()
    return box


async def all_is_there(box: Container, number: int) -> None:
    exit = await asyncio.wait_for(box.wait(), 90)
    assert (exit.code, exit.signal, exit.unknown) == (number + 1, None, None), box
    for stream, word in (("stdout", "out"), ("stderr", "err")):
        assert await logged(box, stream) == b"".join(b"%s %d\n" % (word.encode(), n) for n in range(LINES)), box


async def test_P03_an_engine_of_another_build_upgrades_the_keeper_under_load(
    root: Path, real_runtime: str, builds: Builds
) -> None:
    async with Engine(root=root, runtime=real_runtime) as engine:
        for number in range(4):
            await writer(engine, number)
        terminal = await engine.create("busybox", ["cat"], name="tty", lease=None, terminal=True, stdin=True)
        await terminal.start()
        pid = keeper_pid(root)
    for upgrade in range(3):
        builds.use()
        async with Engine(root=root, runtime=real_runtime) as engine:
            assert engine.host.keeper.pid == keeper_pid(root) == pid
            assert engine.host.keeper.build.startswith("build-")
            terminal = await engine.get("tty")
            terminal.stdin.write(b"hello %d\n" % upgrade)
            await written(terminal, b"hello %d\r\nhello %d\r\n" % (upgrade, upgrade))
            done = await terminal.exec(["sh", "-c", "echo in; exit 6"])
            assert (done.exit.code, done.stdout) == (6, b"in\n")
    async with Engine(root=root, runtime=real_runtime) as engine:
        for number in range(4):
            await all_is_there(await engine.get(f"box{number}"), number)
        await (await engine.get("tty")).remove(force=True)


async def test_P03_upgraded_again_and_again_while_its_engine_works(
    root: Path, real_runtime: str, builds: Builds
) -> None:
    async with Engine(root=root, runtime=real_runtime) as engine:
        stop, upgrades = asyncio.Event(), 0

        async def upgrade() -> None:
            nonlocal upgrades
            while not stop.is_set():
                builds.use()
                await engine.host.keeper.upgrade()
                upgrades += 1

        upgrading = asyncio.create_task(upgrade())
        writers = [await writer(engine, number) for number in range(3)]

        async def runs(start: int) -> None:
            for code in range(start, start + 8):
                done = await engine.run("busybox", ["sh", "-c", f"seq 0 2000; exit {code}"], stdin=b"")
                assert done.exit.code == code
                assert done.stdout == b"".join(b"%d\n" % number for number in range(2001))

        await asyncio.gather(runs(1), runs(101), *(all_is_there(box, number) for number, box in enumerate(writers)))
        stop.set()
        await upgrading
        print(f"{upgrades} upgrades")
        assert upgrades >= 3
        assert await engine.host.keeper.list_jobs() == []


async def test_P02_leases_go_on_over_an_upgrade(root: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASE_RECONNECT_S", 0.5)
    ours, theirs = socket.socketpair()
    owner = await asyncio.create_subprocess_exec("/bin/sleep", "1000")
    async with Engine(root=root) as engine:
        boxes = {
            "client": await engine.create("busybox", ["sleep", "1000"], name="client", lease=ConnectionLease(ours)),
            "owner": await engine.create("busybox", ["sleep", "1000"], name="owner", lease=owner.pid),
            "time": await engine.create("busybox", ["sleep", "1000"], name="time", lease=None, ttl_s=1000),
        }
        for box in boxes.values():
            await box.start()
        pids = [box.pid for box in boxes.values()]
    ours.close()
    builds.use()
    async with Engine(root=root) as engine:
        assert engine.host.keeper.build == builds.name
        found = [await engine.get(name) for name in boxes]
        assert [box.status for box in found] == [Status.RUNNING] * 3
        assert found[0].lease.connected
    builds.use()
    engine = Engine(root=root)
    await engine.start()
    assert all(process_is_there(pid) for pid in pids)
    await (await engine.get("time")).renew(0.5)
    await engine.close()
    # Nobody but the upgraded keeper is there.
    theirs.close()
    owner.kill()
    await owner.wait()
    await eventually(lambda: not any(process_is_there(pid) for pid in pids))
    async with Engine(root=root) as engine:
        for name in boxes:
            exit = await asyncio.wait_for((await engine.get(name)).wait(), 60)
            assert (exit.signal, exit.reason) == (9, "lease"), name


async def test_P03_a_keeper_that_can_not_be_upgraded_is_used_as_it_is(
    root: Path, builds: Builds, caplog: pytest.LogCaptureFixture
) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        pid = keeper_pid(root)
    builds.use(shutil.rmtree)
    with caplog.at_level(logging.WARNING):
        async with Engine(root=root) as engine:
            box = await engine.get("box")
            assert (box.status, keeper_pid(root)) == (Status.RUNNING, pid)
            os.kill(box.pid, signal.SIGKILL)
            assert (await asyncio.wait_for(box.wait(), 60)).signal == 9
            await box.remove()
    assert any("stays of its build" in record.message for record in caplog.records)
