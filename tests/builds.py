"""Keeper programs of other builds: copies of ours that differ in a comment, or in what a test changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lighterman.keeper import client, launch

PROGRAM = Path(launch.__file__).parent


class Builds:
    """Copies of the keeper program, each of another build."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._monkeypatch = monkeypatch
        self._count = 0
        self.name = ""

    def use(self, change: Callable[[Path], None] = lambda _path: None) -> str:
        """From now on engines have another one; its name."""
        self._count += 1
        path = self._root / f"build-{self._count}" / "keeper"
        path.mkdir(parents=True)
        for file in PROGRAM.glob("*.py"):
            shutil.copy(file, path)
        wire_text = (path / "wire.py").read_text()
        (path / "wire.py").write_text(f"{wire_text}\n# build {self._count}\n")
        change(path)
        name = self.name = f"build-{self._count}"
        words = [*launch.program()[:-1], str(path / "__main__.py")]
        for module in (client, launch):
            self._monkeypatch.setattr(module, "build", lambda: name)
            self._monkeypatch.setattr(module, "program", lambda: words)
        return name
