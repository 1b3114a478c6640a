"""`StdinWriter` when the engine is closed in the middle."""

from __future__ import annotations

import asyncio

import pytest

from lighterman.errors import BrokenPipe
from lighterman.runtimes.fake.pipes import FakePipe, FakeReadPipe, FakeWritePipe
from lighterman.stdin import StdinWriter
from lighterman.supervisor.streams import WriteStream
from lighterman.supervisor.tasks import OwnedTasks


async def nobody() -> None:
    """No runtime has to be told."""


def writer(tasks: OwnedTasks) -> StdinWriter:
    pipe = FakePipe()
    FakeReadPipe(pipe)
    return StdinWriter(WriteStream(FakeWritePipe(pipe), nobody), tasks.watch)


async def test_who_waits_for_what_was_not_written_hears_of_the_close() -> None:
    tasks = OwnedTasks()
    stdin = writer(tasks)
    stdin.write(b"x" * 3_000_000)
    stdin.write(b"y" * 3_000_000)
    stdin.write_eof()
    waiting = [asyncio.ensure_future(stdin.drain()), asyncio.ensure_future(stdin.wait_closed())]
    await asyncio.sleep(0)
    await tasks.close(1)
    done, _ = await asyncio.wait(waiting, timeout=60)
    assert done == set(waiting)
    for each in waiting:
        with pytest.raises(BrokenPipe, match="the engine was closed"):
            await each


async def test_all_was_written_before_the_close() -> None:
    tasks = OwnedTasks()
    stdin = writer(tasks)
    stdin.write(b"little")
    stdin.write_eof()
    await stdin.wait_closed()
    await tasks.close(1)
    await stdin.wait_closed()
    await stdin.drain()
