"""A program that starts execs in a container that lives on, prints `ID` of each, and waits to be killed.

Arguments: a root, JSON: a list of shell scripts; and perhaps JSON: options of the container, and of each exec.
"""

from __future__ import annotations

import asyncio
import json
import sys

from lighterman import Engine


async def main() -> None:
    options, exec_options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else ({}, {})
    async with Engine(root=sys.argv[1]) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None, **options)
        await box.start()
        for script in json.loads(sys.argv[2]):
            process = await box.start_exec(["sh", "-c", script], **exec_options)
            print(process.id, flush=True)
        async for event in engine.events(after=0, kinds=["oom"]):
            print(event.kind, flush=True)


asyncio.run(main())
