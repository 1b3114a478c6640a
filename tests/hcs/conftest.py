"""The doubles, built once; every test is held to what it must give back."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hcs.double_control import Built, Double, build, prebuilt
from hcs.world import HcsWorld, Name


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    ready = prebuilt()
    if ready is not None:
        return ready
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the double of vmcompute.dll can't be built")
    return build(tmp_path_factory.mktemp("double"))


@pytest.fixture(scope="session")
def doubles(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[Double, Double]:
    scratch = tmp_path_factory.mktemp("consoles")
    return Double(built.vmcompute, built.programs, scratch), Double(built.computecore, built.programs, scratch)


async def _world(name: Name, doubles: tuple[Double, Double], scratch: Path) -> AsyncIterator[HcsWorld]:
    world = HcsWorld(name, *doubles, scratch)
    try:
        yield world
        await world.finish()
    finally:
        await asyncio.to_thread(world.discard)


@pytest_asyncio.fixture
async def world(doubles: tuple[Double, Double], tmp_path: Path) -> AsyncIterator[HcsWorld]:
    """Over vmcompute.dll."""
    async for each in _world("vmcompute", doubles, tmp_path):
        yield each


@pytest_asyncio.fixture(params=["vmcompute", "computecore"])
async def either(
    request: pytest.FixtureRequest, doubles: tuple[Double, Double], tmp_path: Path
) -> AsyncIterator[HcsWorld]:
    """Over each of the two DLLs."""
    async for each in _world(request.param, doubles, tmp_path):
        yield each
