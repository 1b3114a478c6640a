"""What tests of commands on one root share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import lighterman


@pytest.fixture
def root(tmp_path: Path) -> Iterator[str]:
    """A root; the containers that are left in it at the end are removed."""
    path = str(tmp_path / "root")
    yield path
    if Path(path, "state.db").exists():
        names = lighterman("ps", "-aq", "--root", path).stdout.decode().split()
        if names:
            assert lighterman("rm", "-f", "--root", path, *names).returncode == 0
