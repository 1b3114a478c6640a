"""Sockets of sd_notify that an engine gives to keep: read while none is there, and no word is waited for."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from keeper_support import Keepers

from builds import Builds
from lighterman.errors import InvalidSpec
from lighterman.keeper.client import KeeperClient, MailboxState
from lighterman.keeper.mailboxes import Mailbox
from support import eventually


class Said:
    """A socket that is kept as `box`, and who sends to it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path / "notify.sock"))
        self.sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sender.connect(str(path / "notify.sock"))

    async def send(self, *words: str) -> None:
        """One by one, waiting for room."""
        for word in words:
            await asyncio.to_thread(self.sender.send, word.encode())

    def close(self) -> None:
        self.socket.close()
        self.sender.close()


@pytest.fixture
async def said(tmp_path: Path) -> AsyncIterator[Said]:
    made = Said(tmp_path)
    yield made
    made.close()


async def state(keeper: KeeperClient) -> MailboxState:
    found = await keeper.mailbox_of("box")
    if found.socket is not None:
        os.close(found.socket)
    return found


async def test_while_an_engine_is_there_it_reads(keepers: Keepers, said: Said) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    await keeper.keep_mailbox("box", said.socket.fileno())
    await said.send("READY=1")
    await keeper.ping()
    assert (await state(keeper)).ready_mono is None
    assert said.socket.recv(100) == b"READY=1"
    await keeper.drop_mailbox("box")
    await keeper.drop_mailbox("box")
    assert (await state(keeper)).socket is None
    assert (await keeper.stats()).descriptors == before


async def test_it_was_said_when_it_was_sent(keepers: Keepers, said: Said) -> None:
    """What lay in the queue while an engine was there may be of a run that has ended before the keeper reads it."""
    keeper = await keepers.connect()
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    await keeper.keep_mailbox("box", said.socket.fileno())
    await said.send("READY=1")
    await keeper.ping()
    before_it_is_read = time.monotonic()

    async def read() -> float | None:
        nonlocal keeper
        await keeper.close()
        keeper = await keepers.connect()
        return (await state(keeper)).ready_mono

    # A millisecond: the stamp's clock is adjusted, this one is not.
    assert (await eventually(read) or 0) < before_it_is_read + 0.001


async def test_while_none_is_there_the_keeper_does(keepers: Keepers, builds: Builds, said: Said) -> None:
    keeper = await keepers.connect()
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    await keeper.keep_mailbox("box", said.socket.fileno())
    begun = time.monotonic()
    # What lies there already, as an engine that dies leaves it, counts too.
    await said.send("READY=1\nSTATUS=first")
    await keeper.close()
    await said.send(*(f"STATUS={number}" for number in range(2000)), "READY=1" + "x" * 5000, "garbage", "STOPPING=1")
    builds.use()
    keeper = await keepers.connect()

    async def all_is_read() -> bool:
        nonlocal keeper
        if (await state(keeper)).stopping:
            return True
        await keeper.close()
        keeper = await keepers.connect()
        return False

    await eventually(all_is_read)
    found = await state(keeper)
    assert found.ready_mono is not None
    assert begun <= found.ready_mono <= time.monotonic()
    assert (found.status, found.stopping) == (b"1999", True)
    # Another one of the name begins anew.
    await keeper.keep_mailbox("box", said.socket.fileno())
    assert (await state(keeper)).ready_mono is None


async def test_what_is_no_socket_is_refused(keepers: Keepers, said: Said) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    for name, fd in (("box", keepers.null), ("", said.socket.fileno()), ("a/b", said.socket.fileno())):
        with pytest.raises(InvalidSpec):
            await keeper.keep_mailbox(name, fd)
    assert (await keeper.stats()).descriptors == before


def test_the_last_word_counts() -> None:
    box = Mailbox("box", -1)
    box.take(b"READY=0\nSTATUS=a\nSTATUS=b=c", 7)
    assert (box.ready_ns, box.status, box.stopping) == (0, b"b=c", False)
    box.take(b"READY=1\nREADY=0", 7)
    assert box.ready_ns == 0
    box.take(b"STOPPING=1", 7)
    assert box.stopping
    box.take(b"READY=1\n\xff\n=", 7)
    assert box.ready_ns > 0
    assert not box.stopping
    assert box.status == b"b=c"
