"""A program that owns one container and is killed: `python -m bench.owner`. Writes one JSON object, then waits."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from bench.inside import state_directory
from lighterman import Engine

__all__ = ["Owned"]


class Owned(msgspec.Struct, frozen=True):
    """`pid`: the host's number of the container's init. `state`: the private root that goes with its owner."""

    pid: int
    state: str


async def own() -> None:
    """Never returns."""
    async with Engine() as engine, engine.container("busybox", ["sleep", "inf"]) as container:
        owned = Owned(container.pid, state_directory(engine))
        sys.stdout.buffer.write(msgspec.json.encode(owned) + b"\n")
        sys.stdout.buffer.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(own())
