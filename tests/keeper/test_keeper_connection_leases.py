"""A lease of a connection: the keeper watches the client's socket, engine or no engine, and never reads from it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest
from keeper_support import Keepers, alive

from lighterman.errors import InvalidSpec, InvalidState
from lighterman.keeper.client import KeeperClient
from support import eventually


class Ends:
    """A connection: `ours` is given to the keeper, `theirs` is the client's."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def is_away(keeper: KeeperClient, name: str) -> bool:
    state = await keeper.lease_of(name)
    if state.connection is not None:
        os.close(state.connection)
    return state.gone_until is not None


async def test_the_clients_end_ends_its_jobs(keepers: Keepers, ends: Ends) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    told: list[tuple[str, bool, bool]] = []
    keeper.on_lease = lambda name, gone_until, over: told.append((name, gone_until is not None, over))
    await keeper.lease_connection("mine", ends.ours.fileno(), grace_s=0.2)
    ends.ours.close()
    bound = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine"))
    free = await keepers.spawn(keeper, keepers.job("b", "exec sleep 1000"))
    # What the client says is not read: it would make the socket readable for ever.
    ends.theirs.sendall(b"x" * 1000)
    await keeper.ping()
    assert bound.pid is not None
    assert free.pid is not None
    assert alive(bound.pid)
    begun = boottime()
    ends.theirs.close()
    exit = await keeper.wait_exit("a")
    assert exit.lease_ended
    assert os.waitstatus_to_exitcode(exit.status) == -signal.SIGKILL
    assert boottime() - begun >= 0.2
    assert alive(free.pid)
    await eventually(lambda: told == [("mine", True, False), ("mine", False, True)])
    state = await keeper.lease_of("mine")
    assert (state.holds, state.over) == (False, True)
    await keeper.release_lease("mine")
    assert not (await keeper.lease_of("mine")).over
    await keeper.acknowledge("a")
    os.kill(free.pid, signal.SIGKILL)
    await keeper.wait_exit("b")
    await keeper.acknowledge("b")
    assert (await keeper.stats()).descriptors == before


async def test_half_a_close_counts_and_our_own_shutdown_does(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    for name in ("half", "ours"):
        pair = Ends()
        await keeper.lease_connection(name, pair.ours.fileno(), grace_s=1000)
        assert not await is_away(keeper, name)
        if name == "half":
            pair.theirs.shutdown(socket.SHUT_WR)
        else:
            pair.ours.shutdown(socket.SHUT_RDWR)
        await eventually(lambda name=name: is_away(keeper, name))  # type: ignore[misc]
        pair.close()


async def test_a_client_that_comes_back_in_time(keepers: Keepers, ends: Ends) -> None:
    keeper = await keepers.connect()
    await keeper.lease_connection("mine", ends.ours.fileno(), grace_s=1000)
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine"))
    ends.close()
    await eventually(lambda: is_away(keeper, "mine"))
    gone_until = (await keeper.lease_of("mine")).gone_until
    assert gone_until is not None
    assert 900 < gone_until - boottime() <= 1000
    newer = Ends()
    await keeper.reconnect_lease("mine", newer.ours.fileno())
    state = await keeper.lease_of("mine")
    assert state.holds
    assert state.gone_until is None
    assert state.connection is not None
    with socket.socket(fileno=state.connection) as theirs:
        newer.theirs.sendall(b"hi")
        assert theirs.recv(10) == b"hi"
    assert spawned.pid is not None
    assert alive(spawned.pid)
    newest = Ends()
    await keeper.reconnect_lease("mine", newest.ours.fileno())
    # The one before it does not count any more.
    newer.close()
    assert not await is_away(keeper, "mine")
    newest.close()
    await eventually(lambda: is_away(keeper, "mine"))


async def test_a_client_that_has_gone_already(keepers: Keepers, ends: Ends) -> None:
    keeper = await keepers.connect()
    ends.theirs.close()
    await keeper.lease_connection("mine", ends.ours.fileno(), grace_s=0)
    await eventually(lambda: _is_over(keeper, "mine"))
    with pytest.raises(InvalidState):
        await keeper.spawn(keepers.job("a", "exit 0", lease="mine"))


async def test_nobody_is_connected_while_the_client_goes(keepers: Keepers, ends: Ends) -> None:
    keeper = await keepers.connect()
    await keeper.lease_connection("mine", ends.ours.fileno(), grace_s=0.1)
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine"))
    await keeper.close()
    assert spawned.pid is not None
    assert alive(spawned.pid)
    ends.close()
    await eventually(lambda: not alive(spawned.pid or 0))
    keeper = await keepers.connect()
    assert (await keeper.wait_exit("a")).lease_ended
    assert (await keeper.lease_of("mine")).over
    with pytest.raises(InvalidState):
        await keeper.reconnect_lease("mine", keepers.null)


async def test_a_time_ends_it_though_the_client_is_there(keepers: Keepers, ends: Ends) -> None:
    keeper = await keepers.connect()
    await keeper.lease_connection("mine", ends.ours.fileno(), grace_s=1000)
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine"))
    await keeper.renew_lease("mine", boottime() + 1000)
    await keeper.renew_lease("mine", None)
    await keeper.renew_lease("mine", boottime() + 0.1)
    assert (await keeper.wait_exit("a")).lease_ended


async def test_one_whose_connection_was_lost_has_the_time_to_come_back(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    begun = boottime()
    await keeper.lease_connection("mine", None, grace_s=0.3)
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine"))
    await keeper.lease_connection("past", None, grace_s=1000, gone_until=begun)
    await eventually(lambda: _is_over(keeper, "past"))
    assert (await keeper.wait_exit("a")).lease_ended
    assert boottime() >= begun + 0.3


async def _is_over(keeper: KeeperClient, name: str) -> bool:
    state = await keeper.lease_of(name)
    if state.connection is not None:
        os.close(state.connection)  # the keeper has not looked at it yet
    return state.over


async def test_what_is_no_connection_is_refused(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    read, write = os.pipe()
    for fd in (keepers.null, read):
        with pytest.raises(InvalidSpec):
            await keeper.lease_connection("mine", fd, grace_s=1)
    os.close(read)
    os.close(write)
    with pytest.raises(InvalidSpec):
        await keeper.lease_connection("mine", None, grace_s=float("nan"))
    await keeper.lease("process", None, until=boottime() + 1000)
    with socket.socket() as other, pytest.raises(InvalidState):
        await keeper.reconnect_lease("process", other.fileno())
    assert (await keeper.lease_of("mine")) == (await keeper.lease_of("unknown"))
    assert (await keeper.stats()).descriptors == before


async def test_tcp_connections_hang_up_too(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    await keeper.lease_connection("mine", accepted.fileno(), grace_s=0.1)
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine"))
    for one in (accepted, server):
        one.close()
    client.close()
    assert (await asyncio.wait_for(keeper.wait_exit("a"), 30)).lease_ended
