"""The flag that stands in for asyncio.Event."""

from __future__ import annotations

import asyncio

import pytest

from lighterman.flag import Flag


async def test_set_wakes_every_waiter_and_later_ones_do_not_wait() -> None:
    flag = Flag()
    waiting = [asyncio.create_task(flag.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    flag.set()
    await asyncio.gather(*waiting)
    await flag.wait()
    assert flag.is_set()


async def test_clear_makes_the_next_one_wait_again() -> None:
    flag = Flag()
    flag.set()
    flag.clear()
    waiting = asyncio.create_task(flag.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    flag.set()
    await waiting


async def test_cancelled_waiter_is_forgotten_and_disturbs_no_other() -> None:
    flag = Flag()
    given_up, patient = asyncio.create_task(flag.wait()), asyncio.create_task(flag.wait())
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    flag.set()
    await patient


async def test_waiter_cancelled_in_the_moment_of_the_set_still_ends() -> None:
    flag = Flag()
    waiting = asyncio.create_task(flag.wait())
    await asyncio.sleep(0)
    flag.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await flag.wait()
