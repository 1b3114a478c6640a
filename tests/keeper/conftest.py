from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from keeper_support import Keepers


@pytest_asyncio.fixture
async def keepers(tmp_path: Path) -> AsyncIterator[Keepers]:
    mine = Keepers(tmp_path)
    yield mine
    await mine.end()
