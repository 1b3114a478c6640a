"""A program of its own that fills an engine with idle containers: `python -m bench.sleepers SOME MANY ONE_MORE`.

Apart from the benchmark's own process, so that the memory is an engine's and nobody else's. Writes one JSON object.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import asdict, dataclass, field

import msgspec

from bench.inside import Memory, keeper_pid, memory_of, raise_descriptor_limit, settle
from lighterman import Container, Engine

__all__ = ["AT_A_TIME", "Filled", "Stage"]

AT_A_TIME = 8
_SLEEP = ("sleep", "inf")


@dataclass
class Stage:
    """With `containers` of them: memory in bytes, and seconds to start one more."""

    containers: int
    engine: Memory
    keeper: Memory
    one_more_s: list[float] = field(default_factory=list)


@dataclass
class Filled:
    """What the program writes. `start_s`: from none to all; `end_s`: to kill and remove all."""

    stages: list[Stage] = field(default_factory=list)
    start_s: float = 0.0
    end_s: float = 0.0


async def fill(some: int, many: int, one_more: int) -> Filled:
    """Start them in two steps, look in between, and remove them all."""
    filled = Filled()
    async with Engine() as engine:
        keeper = await keeper_pid(engine)
        for _ in range(3):
            await engine.run("busybox", ["/bin/true"])
        await settle(engine)
        containers: list[Container] = []
        filled.stages.append(await _look(engine, keeper, containers, one_more))
        for target in (some, many):
            began = time.perf_counter()
            wanted = list(range(target - len(containers)))
            await asyncio.gather(*(_start(engine, wanted, containers) for _ in range(AT_A_TIME)))
            filled.start_s += time.perf_counter() - began
            filled.stages.append(await _look(engine, keeper, containers, one_more))
        began = time.perf_counter()
        await asyncio.gather(*(_end(containers) for _ in range(AT_A_TIME)))
        await settle(engine)
        filled.end_s = time.perf_counter() - began
    return filled


async def _look(engine: Engine, keeper: int, containers: list[Container], one_more: int) -> Stage:
    stage = Stage(len(containers), memory_of("self"), memory_of(keeper))
    for _ in range(one_more):
        began = time.perf_counter()
        container = await engine.create("busybox", _SLEEP)
        await container.start()
        stage.one_more_s.append(time.perf_counter() - began)
        await container.remove(force=True)
        await settle(engine, but=len(containers))
    return stage


async def _start(engine: Engine, wanted: list[int], containers: list[Container]) -> None:
    while wanted:
        wanted.pop()
        container = await engine.create("busybox", _SLEEP)
        await container.start()
        containers.append(container)


async def _end(containers: list[Container]) -> None:
    while containers:
        await containers.pop().remove(force=True)


def main() -> None:
    """Three arguments: how many first, how many in the end, how often one more."""
    some, many, one_more = (int(word) for word in sys.argv[1:])
    raise_descriptor_limit()
    filled = asyncio.run(fill(some, many, one_more))
    sys.stdout.buffer.write(msgspec.json.encode(asdict(filled)))


if __name__ == "__main__":
    main()
