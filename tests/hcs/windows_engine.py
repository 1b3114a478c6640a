"""An engine as it is on Windows, over a double of the service, wherever the test runs."""

from __future__ import annotations

from pathlib import Path

from hcs.world import HcsWorld
from lighterman import Engine, sync
from lighterman.engine.on_windows import OnWindows
from lighterman.roots import StateRoot
from lighterman.runtimes.hcs import HcsRuntime
from lighterman.runtimes.hcs.load import BindingName
from lighterman.windows_host import owner_of


def platform_of(world: HcsWorld) -> OnWindows:
    async def load(binding: BindingName, owner: str) -> HcsRuntime:
        return world.runtime(owner=owner)

    return OnWindows(load)


def engine_of(world: HcsWorld, root: Path | None = None, *, restarts_per_s: float | None = None) -> Engine:
    """Its own root below the test's scratch, unless None asks for a private one."""
    return Engine(root, restarts_per_s=restarts_per_s, _platform=platform_of(world))


def blocking_engine_of(world: HcsWorld, root: Path) -> sync.Engine:
    made = sync.Engine(root)
    made._engine = engine_of(world, root)
    return made


def layer(world: HcsWorld) -> str:
    """An unpacked image of one layer."""
    (world.scratch / "image").mkdir(exist_ok=True)
    return str(world.scratch / "image")


def owner(root: Path) -> str:
    """The tag of a root's compute systems."""
    return owner_of(StateRoot.of(root))
