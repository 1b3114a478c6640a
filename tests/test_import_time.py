"""What an import costs, by the modules that it brings; the seconds are in `make bench`."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("asyncio", "ctypes", "sqlite3", "click", "msgspec", "json", "logging", "importlib.metadata")


def _loaded_after(statement: str) -> set[str]:
    """The modules that `statement` adds to those of a bare interpreter."""
    program = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    return set(done.stdout.split())


def test_importing_lighterman_loads_no_heavy_module() -> None:
    loaded = _loaded_after("import lighterman")
    assert "lighterman" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("module", ["lighterman.errors", "lighterman.limits"])
def test_importing_the_bottom_loads_nothing_but_itself(module: str) -> None:
    assert {name for name in _loaded_after(f"import {module}") if not name.startswith("lighterman")} <= {"__future__"}


def test_probe_sees_a_heavy_import() -> None:
    assert "asyncio" in _loaded_after("import lighterman.clock")
