"""Containers that end with a client: when its connection has hung up for long enough, whoever is there to see it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lease_support import Owner, gone
from real_support import keeper_pid, process_is_there, running_in

from lighterman import ConnectionLease, Container, Engine, InvalidSpec, InvalidState, NotFound, limits
from lighterman.lifecycle.status import Status
from support import eventually

pytestmark = pytest.mark.real


class Client:
    """`ours` is what a server has accepted, `theirs` the client's."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()

    @property
    def lease(self) -> ConnectionLease:
        return ConnectionLease(self.ours)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.close()


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
def short(monkeypatch: pytest.MonkeyPatch) -> float:
    """The time in which a client may come back, here and in other engines."""
    monkeypatch.setattr(limits, "LEASE_RECONNECT_S", 0.5)
    monkeypatch.setenv("LIGHTERMAN_LEASE_RECONNECT_S", "0.5")
    return 0.5


async def _names(engine: Engine, wanted: set[str]) -> bool:
    return {one.name for one in await engine.containers()} == wanted


async def _ended(box: Container) -> None:
    exit = await asyncio.wait_for(box.wait(), 60)
    assert (exit.signal, exit.reason) == (9, "lease")


async def test_P02_a_client_that_hangs_up_takes_its_containers_along(
    engine: Engine, client: Client, short: float
) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=client.lease, restart="always")
    idle = await engine.create("busybox", ["true"], name="idle", lease=ConnectionLease(client.ours.fileno()))
    other = await engine.create("busybox", ["sleep", "1000"], name="other")
    for one in (box, other):
        await one.start()
    assert (box.lease.kind, box.lease.connected, box.lease.left_s) == ("connection", True, None)
    client.theirs.send(b"nobody reads this")
    # The server's own socket is not needed any more.
    client.ours.close()
    assert box.lease.connected
    begun = time.monotonic()
    client.theirs.close()
    await _ended(box)
    took_s = time.monotonic() - begun
    print(f"ended {took_s - short:.3f} s after the time to come back")
    assert took_s >= short
    await eventually(lambda: _names(engine, {"other"}))
    assert other.status is Status.RUNNING
    with pytest.raises((NotFound, InvalidState)):
        await idle.start()


async def test_P02_a_client_that_comes_back(engine: Engine, client: Client) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], lease=client.lease, ttl_s=1000)
    await box.start()
    client.close()
    await eventually(lambda: not box.lease.connected)
    assert box.lease.left_s is not None
    assert box.lease.left_s <= limits.LEASE_RECONNECT_S
    newer = Client()
    await box.renew(500, lease=newer.lease)
    assert box.lease.connected
    assert box.lease.left_s > limits.LEASE_RECONNECT_S
    assert box.status is Status.RUNNING
    newer.close()
    await eventually(lambda: not box.lease.connected)
    await box.remove(force=True)
    newest = Client()
    with pytest.raises(NotFound):
        await box.renew(lease=newest.lease)
    newest.close()


async def test_P02_an_engine_that_is_killed_ends_no_connection(
    root: Path, client: Client, owner_of: Callable[..., Owner], short: float
) -> None:
    lease = {"fd": client.ours.fileno()}
    owner = await asyncio.to_thread(owner_of, root, {"name": "box", "lease": lease}, {"name": "two", "lease": lease})
    client.ours.close()
    os.killpg(owner.process.pid, signal.SIGKILL)
    owner.process.wait()
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (box.status, box.pid, box.lease.kind) == (Status.RUNNING, owner.pids[0], "connection")
        assert (box.lease.connected, box.lease.left_s) == (True, None)
        # It can be stopped and started again under the same lease.
        await box.restart(grace_s=0)
        assert box.lease.connected
    assert running_in(box.id)
    async with Engine(root=root) as engine:
        box, two = await engine.get("box"), await engine.get("two")
        assert box.status is two.status is Status.RUNNING
        client.theirs.close()
        await _ended(box)
        await _ended(two)
        await eventually(lambda: _names(engine, set()))
    assert gone(box.id)


async def test_P02_a_client_hangs_up_while_there_is_no_engine(root: Path, client: Client, short: float) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=client.lease, restart="always")
        await engine.create("busybox", ["true"], name="idle", lease=client.lease)
        await box.start()
    assert process_is_there(box.pid) or running_in(box.id)
    client.close()
    await eventually(lambda: gone(box.id))
    async with Engine(root=root) as engine:
        await _ended(await engine.get("box"))
        await eventually(lambda: _names(engine, set()))


async def test_P02_a_client_comes_back_to_the_next_engine(root: Path, client: Client) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=client.lease)
        await box.start()
        client.close()
        await eventually(lambda: not box.lease.connected)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (box.status, box.lease.connected) == (Status.RUNNING, False)
        assert box.lease.left_s is not None
        newer = Client()
        await box.renew(lease=newer.lease)
        back = box.lease
        assert (back.connected, back.left_s) == (True, None)
        await box.remove(force=True)
        newer.close()


async def test_P02_the_next_keeper_gets_the_connection(root: Path, client: Client, short: float) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=client.lease)
        await box.start()
        lost = keeper_pid(root)
        os.kill(lost, signal.SIGKILL)
        await eventually(lambda: engine.host.keeper.pid != lost)
        fresh = await engine.create("busybox", ["sleep", "1000"], name="fresh", lease=client.lease)
        await fresh.start()
        assert box.lease.connected
        # One that hangs up now, and does not come back, has the same time from here on.
        other = Client()
        gone_by = await engine.create("busybox", ["sleep", "1000"], name="gone-by", lease=other.lease)
        await gone_by.start()
        other.close()
        await _ended(gone_by)
        assert box.status is Status.RUNNING
        client.theirs.close()
        exit = await asyncio.wait_for(box.wait(), 60)
        assert exit.reason == "lease"
        await _ended(fresh)
        await eventually(lambda: _names(engine, set()))
    assert gone(box.id)


async def test_P02_engine_and_keeper_killed_the_client_may_come_back(
    root: Path, client: Client, owner_of: Callable[..., Owner]
) -> None:
    lease = {"fd": client.ours.fileno()}
    owner = await asyncio.to_thread(owner_of, root, {"name": "a", "lease": lease}, {"name": "b", "lease": lease})
    os.kill(keeper_pid(root), signal.SIGSTOP)
    os.kill(keeper_pid(root), signal.SIGKILL)
    owner.process.kill()
    owner.process.wait()
    limit_s, limits.LEASE_RECONNECT_S = limits.LEASE_RECONNECT_S, 3.0
    try:
        async with Engine(root=root) as engine:
            a, b = await engine.get("a"), await engine.get("b")
            assert [(one.status, one.lease.connected) for one in (a, b)] == [(Status.RUNNING, False)] * 2
            await a.renew(lease=client.lease)
            exit = await asyncio.wait_for(b.wait(), 60)
            assert exit.reason == "lease"
            assert (a.status, a.lease.connected) == (Status.RUNNING, True)
            await a.remove(force=True)
    finally:
        limits.LEASE_RECONNECT_S = limit_s
    assert gone(owner.ids[1])


async def test_P02_a_private_root_goes_with_its_program_all_the_same(
    client: Client, owner_of: Callable[..., Owner]
) -> None:
    owner = await asyncio.to_thread(owner_of, None, {"lease": {"fd": client.ours.fileno()}})
    assert running_in(owner.ids[0])
    os.killpg(owner.process.pid, signal.SIGKILL)
    await eventually(lambda: gone(owner.ids[0]))
    async with Engine() as engine:
        box = await engine.create("busybox", ["sleep", "1000"], lease=client.lease)
        await box.start()
    assert gone(box.id)


async def test_P02_a_time_ends_it_though_the_client_is_there(engine: Engine, client: Client) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], lease=client.lease, ttl_s=1.5)
    await box.start()
    await _ended(box)
    await eventually(lambda: _names(engine, set()))


async def test_what_is_no_connection_is_refused_with_one_line(engine: Engine, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "sock"))
    listener.listen()
    closed = socket.socket()
    closed.close()
    pair = socket.socketpair(type=socket.SOCK_DGRAM)
    pipe = os.pipe()
    alone = socket.socket()
    wrong: list[object] = [
        listener, closed, alone, pair[0], pipe[0], closed.fileno(), -1, 2**40, 10**6, True, None, "sock", b"x", 1.5,
    ]  # fmt: skip
    before = len(os.listdir("/proc/self/fd"))
    for one in wrong:
        with pytest.raises(InvalidSpec) as refused:
            await engine.create("busybox", ["true"], lease=ConnectionLease(one))  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)
    assert len(os.listdir("/proc/self/fd")) == before
    assert await engine.containers() == []
    for one in (listener, alone, *pair):
        one.close()
    for fd in pipe:
        os.close(fd)


async def test_what_can_not_be_renewed(engine: Engine, client: Client) -> None:
    mine = await engine.create("busybox", ["true"], name="mine")
    with pytest.raises(InvalidState):
        await mine.renew(lease=client.lease)
    box = await engine.create("busybox", ["true"], name="box", lease=client.lease)
    with pytest.raises(InvalidSpec):
        await box.renew()
    with pytest.raises(InvalidState):
        await box.renew(10)
    with pytest.raises(InvalidSpec):
        await box.renew(lease=ConnectionLease(-1))
    assert box.lease.connected
    with pytest.raises(NotFound):
        await engine.create("nothing", ["true"], lease=client.lease, name="box2")
