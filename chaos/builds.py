"""Other builds of the keeper's program, for engines to upgrade a running keeper to: copies that differ in a comment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lighterman.keeper import client, launch

__all__ = ["Builds", "use_build"]

VARIABLE = "CHAOS_KEEPER"
_PROGRAM = Path(launch.__file__).parent


class Builds:
    """Those of one round; an older one stays, since a keeper may still run it."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._count = 0
        self.current = ""

    def new(self) -> str:
        """Make one; engines that begin from now on have it."""
        self._count += 1
        path = self._work / f"build-{self._count}" / "keeper"
        shutil.copytree(_PROGRAM, path, ignore=shutil.ignore_patterns("__pycache__"))
        text = (path / "wire.py").read_text()
        (path / "wire.py").write_text(f"{text}\n# build {self._count}\n")
        self.current = str(path)
        return self.current


def use_build(path: str | None = None) -> None:
    """In an engine's process: what it takes for its keeper's program; else as its environment says."""
    path = path or os.environ.get(VARIABLE)
    if path:
        words = [*launch.program()[:-1], f"{path}/__main__.py"]
        for module in (client, launch):
            module.build = lambda: path  # type: ignore[attr-defined]
            module.program = lambda: words  # type: ignore[attr-defined]
