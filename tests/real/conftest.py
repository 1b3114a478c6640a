"""One engine for each test and each runtime of this host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from real_support import end_root

from lighterman import Engine


@pytest.fixture
async def engine(real_runtime: str) -> AsyncIterator[Engine]:
    """A private engine on each installed runtime; nothing of it is left after the test."""
    async with Engine(runtime=real_runtime) as engine:
        yield engine


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root that lasts; at the end what lives there is ended, and its part below RUN removed."""
    path = tmp_path / "root"
    yield path
    end_root(path)
