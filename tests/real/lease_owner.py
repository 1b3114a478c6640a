"""A program that owns containers, for tests that kill it: makes them, prints `PID ID` of each, and waits.

Arguments: a root or `-` for a private one, then JSON: a list of keyword arguments of `Engine.create`; a `lease` of
`{"fd": N}` among them is that of the connection with this descriptor.
"""

from __future__ import annotations

import asyncio
import json
import sys

from lighterman import ConnectionLease, Engine


async def main() -> None:
    async with Engine(root=None if sys.argv[1] == "-" else sys.argv[1]) as engine:
        for options in json.loads(sys.argv[2]):
            if isinstance(options.get("lease"), dict):
                options["lease"] = ConnectionLease(options["lease"]["fd"])
            box = await engine.create("busybox", ["sh", "-c", "sleep 1001 & exec sleep 1000"], **options)
            await box.start()
            print(box.pid, box.id, flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
