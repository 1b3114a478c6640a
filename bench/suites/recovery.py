"""Coming back after a `kill -9` of the engine, until each container's state is true again.

Between the two engines one container is killed: it must be found dead, with its signal, and the others running.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import msgspec

from bench.interleave import Contender, take_turns
from bench.peers.docker import Docker
from bench.peers.raw import RawRuntime
from bench.returning import Returned
from bench.setting import Setting
from bench.spawn import DEADLINE_S
from bench.trouble import Trouble

__all__ = ["measure"]

OURS = "lighterman, from its imports on"
WHOLE = "lighterman, as a whole process"
CRUN = "raw crun list of as many"
DOCKERD = "dockerd --live-restore, as a whole process"
SLEEP = ("sleep", "inf")
AT_A_TIME = 8


async def measure(setting: Setting) -> None:
    for count in setting.effort.recovered:
        # A daemon with a process for each container takes half a minute to start more than these.
        await _measure(setting, count, with_docker=count == setting.effort.recovered[0])


async def _measure(setting: Setting, count: int, *, with_docker: bool) -> None:
    report, whole = setting.report, list[float]()
    lineage = Lineage(setting.workspace.directory(f"recovered-{count}"), count)
    crun, docker = setting.peers.crun, setting.peers.another_docker() if with_docker else None
    try:
        await lineage.begin()
        contenders = [lineage.contender(whole)]
        if crun is not None:
            crun.start_many(SLEEP, count, AT_A_TIME)
            contenders.append(_listing(crun))
        if docker is not None:
            for _ in range(count):
                docker.start(SLEEP)
            contenders.append(_daemon(docker, count))
        await take_turns(contenders, setting.effort.recovered_rounds)
    finally:
        await lineage.end()
        if crun is not None:
            crun.delete_all(AT_A_TIME)
        if docker is not None:
            # One that does not come back is given up by its contender, which says why.
            docker.end_with_containers()
    section = f"kill -9 of the engine, until the states of {count} containers are true"
    contenders.append(Contender(WHOLE, contenders[0].once, times=whole[-len(contenders[0].times) :]))
    report.contenders(section, contenders, against=CRUN)
    reached = report.median(section, OURS)
    if count == setting.effort.recovered[0]:
        report.goal(f"coming back to {count} containers", reached, 100.0, unit="ms")


class Lineage:
    """One engine after another on the same root, each killed by the next turn."""

    def __init__(self, root: str, count: int) -> None:
        self._root = root
        self._count = count
        self._engine: asyncio.subprocess.Process | None = None
        self._victim = 0

    async def begin(self) -> None:
        """Fill the root."""
        self._victim = (await self._next("fill")).pid

    def contender(self, whole: list[float]) -> Contender:
        """Seconds of coming back by itself; `whole` gets those from the start of its process on."""

        async def once() -> float:
            await self._kill_engine()
            os.kill(self._victim, signal.SIGKILL)
            began = time.perf_counter()
            there = await self._next("back")
            # The replacement of the one that was killed is not part of it.
            whole.append(time.perf_counter() - began - there.replacing)
            self._victim = there.pid
            return there.seconds

        return Contender(OURS, once)

    async def end(self) -> None:
        """Remove all."""
        await self._kill_engine()
        last = await self._spawn("end")
        if await last.wait() != 0:
            print(f"bench: the containers of {self._root} could not be removed", file=sys.stderr)

    async def _next(self, what: str) -> Returned:
        self._engine = await self._spawn(what)
        assert self._engine.stdout is not None
        async with asyncio.timeout(2 * DEADLINE_S):
            line = await self._engine.stdout.readline()
        if not line:
            raise Trouble(f"bench.returning {what} ended with {await self._engine.wait()}")
        return msgspec.json.decode(line, type=Returned)

    async def _spawn(self, what: str) -> asyncio.subprocess.Process:
        argv = [sys.executable, "-m", "bench.returning", what, self._root, str(self._count)]
        return await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)

    async def _kill_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            if engine.returncode is None:
                engine.kill()
            await engine.wait()


def _listing(crun: RawRuntime) -> Contender:
    async def once() -> float:
        return crun.list_all()

    return Contender(CRUN, once)


def _daemon(docker: Docker, count: int) -> Contender:
    async def once() -> float:
        docker.crash()
        return docker.come_back(count)

    return Contender(DOCKERD, once, daemon=True)
