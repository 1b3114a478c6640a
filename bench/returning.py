"""A program whose engine is killed, and its successor: `python -m bench.returning fill|back|end ROOT COUNT`.

`fill` starts COUNT idle containers that live on. `back` comes back to them, when one of them has been killed meanwhile,
and puts another in its place. Each writes one JSON object then, and waits to be killed. `end` removes all.
Apart from the benchmark's own process, because only a whole process can be killed with -9.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec

# An engine loads these when it starts; its imports are not what is measured.
import lighterman.engine.on_linux
import lighterman.leases
import lighterman.recovery
import lighterman.store.sqlite  # noqa: F401
from bench.inside import raise_descriptor_limit
from lighterman import Container, Engine

__all__ = ["Returned"]

_SLEEP = ("sleep", "inf")
_AT_A_TIME = 8
_TRUE_S = 60.0


class Returned(msgspec.Struct, frozen=True):
    """What is there. `pid`: of one that runs, the host's number.

    `seconds`: of coming back, from the imports on. `replacing`: of putting another in the place of the killed one.
    """

    running: int
    killed: int
    seconds: float = 0.0
    replacing: float = 0.0
    pid: int = 0


async def fill(engine: Engine, count: int) -> None:
    """Start containers until `count` run, and remove those that have ended."""
    wanted = list(range(count))
    for container in await engine.containers():
        if container.status == "running":
            wanted.pop()
        else:
            await container.remove()

    async def start() -> None:
        while wanted:
            wanted.pop()
            container = await engine.create("busybox", _SLEEP, lease=None)
            await container.start()

    await asyncio.gather(*(start() for _ in range(_AT_A_TIME)))


async def serve(what: str, root: str, count: int) -> None:
    """Never returns, unless `what` is `end`."""
    began = time.perf_counter()
    engine = Engine(root)
    await engine.start()
    if what == "end":
        await asyncio.gather(*(container.remove(force=True) for container in await engine.containers()))
        await engine.close()
        return
    deadline = began + _TRUE_S
    while what == "back" and not _is_true(there := _counted(await engine.containers()), count):
        if time.perf_counter() > deadline:
            sys.exit(f"after {_TRUE_S:g} s of {count} containers {there.running} run and {there.killed} were killed")
        await asyncio.sleep(0)
    seconds = time.perf_counter() - began
    await fill(engine, count)
    replacing = time.perf_counter() - began - seconds
    containers = await engine.containers()
    there = msgspec.structs.replace(_counted(containers), seconds=seconds, replacing=replacing, pid=containers[0].pid)
    sys.stdout.buffer.write(msgspec.json.encode(there) + b"\n")
    sys.stdout.buffer.flush()
    await asyncio.Event().wait()


def _is_true(there: Returned, count: int) -> bool:
    """One was killed while no engine was there; all the others run."""
    return there.running == count - 1 and there.killed == 1


def _counted(containers: list[Container]) -> Returned:
    running = sum(container.status == "running" and container.pid != 0 for container in containers)
    killed = sum(container.exit is not None and container.exit.signal == 9 for container in containers)
    return Returned(running, killed)


if __name__ == "__main__":
    raise_descriptor_limit()
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
