"""The receiving end of sd_notify: hostile datagrams, an earlier engine's socket, and the bound on what they cost."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighterman import limits
from lighterman.notify import Notification, NotifySocket, parse
from support import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the notification socket is Linux's")


# ---- what is said ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datagram", "said"),
    [
        (b"READY=1", Notification(ready=True)),
        (b"READY=1\n", Notification(ready=True)),
        (b"READY=0", Notification()),
        (b"READY=11", Notification()),
        (b" READY=1", Notification()),
        (b"XREADY=1", Notification()),
        (b"READY=1\nREADY=0", Notification()),
        (b"STATUS=a=b\nREADY=1", Notification(ready=True, status="a=b")),
        (b"STATUS=\xff", Notification(status="�")),
        (b"STOPPING=1\nWATCHDOG=1\nRELOADING=1", Notification(stopping=True, watchdog=True, reloading=True)),
        (b"", Notification()),
        (b"\n\n=\n", Notification()),
    ],
)
def test_parsed(datagram: bytes, said: Notification) -> None:
    assert parse(datagram) == said


LINES = st.lists(
    st.sampled_from([b"READY=1", b"READY=0", b"READY", b"=", b"STATUS=x", b"\xff"]) | st.binary(max_size=20)
)


@given(LINES)
def test_ready_only_where_the_last_word_on_it_says_so(lines: list[bytes]) -> None:
    datagram = b"\n".join(lines)
    said = [line for line in datagram.split(b"\n") if line.startswith(b"READY=")]
    assert parse(datagram).ready == (said[-1:] == [b"READY=1"])


# ---- the socket --------------------------------------------------------------------------------------------------


@pytest.fixture
async def notify(tmp_path: Path) -> AsyncIterator[NotifySocket]:
    made = NotifySocket(str(tmp_path / "notify"))
    receiving = asyncio.create_task(made.receive())
    yield made
    receiving.cancel()
    await asyncio.wait((receiving,))
    made.close()


def sender(tmp_path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.connect(str(tmp_path / "notify" / "notify.sock"))
    return made


async def test_ready_counts_since_a_moment(notify: NotifySocket, tmp_path: Path) -> None:
    with sender(tmp_path) as sending:
        sending.send(b"READY=1\nSTATUS=here")
        await asyncio.wait_for(notify.wait_ready(0.0), 30)
        assert notify.status == "here"
        since = time.monotonic()
        waiting = asyncio.create_task(notify.wait_ready(since))
        sending.send(b"STATUS=still not")
        await eventually(lambda: notify.status == "still not")
        assert not waiting.done()
        sending.send(b"READY=1")
        await asyncio.wait_for(waiting, 30)


async def test_what_was_sent_before_is_of_before_whenever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends leaves a queue full of words; the next one's own is not to wait behind them."""
    monkeypatch.setattr(limits, "NOTIFY_SETTLE_S", 1000)
    monkeypatch.setattr(limits, "NOTIFY_PAUSE_S", 1000)
    made = NotifySocket(str(tmp_path / "notify"))
    with sender(tmp_path) as sending:
        sending.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(1000):
                sending.send(b"READY=1")
        since = time.monotonic()
        made.expect_ready(since)
        receiving = asyncio.create_task(made.receive())
        waiting = asyncio.create_task(made.wait_ready(since))
        await eventually(lambda: made._ready_at is not None)
        sending.setblocking(True)
        await asyncio.to_thread(sending.send, b"STATUS=not yet")
        await eventually(lambda: made.status == "not yet")
        assert not waiting.done()
        receiving.cancel()
        await asyncio.wait((receiving,))
        monkeypatch.setattr(limits, "NOTIFY_PAUSE_S", 0)
        receiving = asyncio.create_task(made.receive())
        await asyncio.to_thread(sending.send, b"READY=1")
        await asyncio.wait_for(waiting, 30)
        receiving.cancel()
        await asyncio.wait((receiving,))
    made.close()


async def test_too_much_is_left_out(notify: NotifySocket, tmp_path: Path) -> None:
    with sender(tmp_path) as sending:
        sending.send(b"STATUS=" + b"x" * limits.NOTIFY_BYTES)
        sending.send(b"STOPPING=1")
        await eventually(lambda: notify.stopping)
        assert notify.status is None


async def test_descriptors_that_come_along_are_dropped(notify: NotifySocket, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with sender(tmp_path) as sending:
        # So many too that they would fit where the kernel's time stamp stands.
        for count in (50, 4, 1, 253, 2):
            passed = array.array("i", [0] * count)
            sending.sendmsg([b"STATUS=here"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        await eventually(lambda: notify.status == "here")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_who_floods_waits_and_does_not_hold_the_loop(notify: NotifySocket, tmp_path: Path) -> None:
    sent = 0
    with sender(tmp_path) as sending:
        sending.setblocking(False)
        turns = 0
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            try:
                sending.send(b"STATUS=x")
                sent += 1
            except BlockingIOError:
                pass
            await asyncio.sleep(0)
            turns += 1
    # A queue of some ten, and one each NOTIFY_PAUSE_S.
    assert sent < 0.5 / limits.NOTIFY_PAUSE_S + 50
    assert turns > sent


async def test_an_earlier_engines_socket_is_replaced(notify: NotifySocket, tmp_path: Path) -> None:
    later = NotifySocket(str(tmp_path / "notify"))
    receiving = asyncio.create_task(later.receive())
    with sender(tmp_path) as sending:
        sending.send(b"READY=1")
        await asyncio.wait_for(later.wait_ready(0.0), 30)
    receiving.cancel()
    await asyncio.wait((receiving,))
    later.close()


async def test_directory_with_a_long_path(tmp_path: Path) -> None:
    NotifySocket(str(tmp_path / ("x" * 200))).close()
    assert (tmp_path / ("x" * 200) / "notify.sock").is_socket()
