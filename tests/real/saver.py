"""A program that does something with a checkpoint of the container `box`, and is killed over that.

Arguments: a root, and `leave`, `end`, `start` or `copy`.
"""

from __future__ import annotations

import asyncio
import sys

from lighterman import Engine

# Without a fork in a loop: the freezer of cgroup v1 may have to chase those for long.
SCRIPT = "mkfifo /end; read x < /end; exit 3"


async def main() -> None:
    root, what = sys.argv[1:]
    async with Engine(root=root, runtime="runc") as engine:
        if what == "start":
            await (await engine.get("box")).start(checkpoint="one")
        elif what == "copy":
            await engine.create(checkpoint="box/one", lease=None)
        else:
            box = await engine.create("busybox", ["sh", "-c", SCRIPT], name="box", lease=None, restart="always")
            await box.start()
            await box.checkpoint("one", leave_running=what == "leave")


asyncio.run(main())
