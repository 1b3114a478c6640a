"""A program whose engine dies with containers running: `ROOT LAYER DLL PROGRAMS SCRATCH`; tells which would live on."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from hcs.double_control import Double
from hcs.windows_engine import engine_of
from hcs.world import HcsWorld


async def main() -> None:
    root, layer, dll, programs, scratch = sys.argv[1:]
    double = Double(Path(dll), Path(programs), Path(scratch))
    world = HcsWorld("vmcompute", double, double, Path(scratch))
    engine = engine_of(world, Path(root))
    await engine.start()
    lives = []
    for name, lease, restart in (("lost", None, "no"), ("always", None, "always"), ("scoped", "process", "no")):
        box = await engine.create(rootfs=layer, argv=["prog", "sleep", "20"], name=name, lease=lease, restart=restart)
        await box.start()
        if lease is None:
            lives.append(box.id)
    print(*lives, flush=True)
    os._exit(9)


asyncio.run(main())
