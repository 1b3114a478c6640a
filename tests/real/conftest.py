"""One engine for each test and each runtime of this host."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lighterman import Engine


@pytest.fixture
async def engine(real_runtime: str) -> AsyncIterator[Engine]:
    """A private engine on each installed runtime; nothing of it is left after the test."""
    async with Engine(runtime=real_runtime) as engine:
        yield engine
