"""A pump for each test, closed after it, and no descriptor left."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from lighterman.logs.pump import OutputPump

from .support import open_descriptors


@pytest.fixture
async def pump() -> AsyncIterator[OutputPump]:
    gc.collect()
    before = open_descriptors()
    pump = OutputPump(asyncio.get_running_loop())
    yield pump
    await pump.close()
    gc.collect()
    assert open_descriptors() <= before
