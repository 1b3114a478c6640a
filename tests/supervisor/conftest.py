"""Every test here runs on virtual time, and is held to what holds always: order, nothing left, no fault unused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from lighterman.testing import FakeLoop
from supervisor.world import World


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": FakeLoop}


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """Time passes by itself whenever everybody waits."""
    world = World()
    async with world.clock.autojump():
        yield world
        await world.finish()


@pytest_asyncio.fixture
async def still() -> AsyncIterator[World]:
    """Time passes only by `clock.advance`, until the test is over."""
    world = World()
    yield world
    async with world.clock.autojump():
        await world.finish()
