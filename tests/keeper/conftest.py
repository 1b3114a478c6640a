from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from keeper_support import Keepers

from builds import Builds


@pytest_asyncio.fixture
async def keepers(tmp_path: Path) -> AsyncIterator[Keepers]:
    mine = Keepers(tmp_path)
    yield mine
    await mine.end()


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    """Other builds of the keeper program."""
    return Builds(tmp_path, monkeypatch)
