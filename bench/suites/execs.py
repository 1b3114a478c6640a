"""Exec of /bin/true in a running container, from the call until its exit is known: one by one, and many at once."""

from __future__ import annotations

import asyncio
import time

from bench.interleave import Contender, take_turns
from bench.numbers import ratio
from bench.peers.raw import RawRuntime
from bench.setting import IMAGE, TRUE, Setting
from bench.trouble import Trouble
from lighterman import Container

__all__ = ["measure"]

SECTION = "exec, start to exit known"
OURS = "lighterman"
CRUN = "raw crun exec"
RUNC = "raw runc exec"
SLEEP = ("sleep", "inf")


async def measure(setting: Setting) -> None:
    report, peers, effort = setting.report, setting.peers, setting.effort
    async with setting.engine.container(IMAGE, SLEEP) as container:
        running: list[tuple[str, RawRuntime, str]] = []
        try:
            for name, runtime in ((CRUN, peers.crun), (RUNC, peers.runc)):
                if runtime is not None:
                    running.append((name, runtime, runtime.start(SLEEP)[0]))
            one_by_one = [_ours(container, 1), *(_raw(*one, 1) for one in running)]
            await take_turns(one_by_one, effort.rounds)
            at_once = [_ours(container, effort.exec_at_once), *(_raw(*one, effort.exec_at_once) for one in running)]
            await take_turns(at_once, effort.exec_at_once_rounds)
        finally:
            for _, runtime, id in running:
                runtime.delete(id)
    many = f"{effort.exec_at_once} execs at once, until the last exit is known"
    report.contenders(SECTION, one_by_one, against=CRUN)
    report.contenders(many, at_once, against=CRUN)
    for section, name, limit in (
        (SECTION, "exec, start to exit known / raw crun exec", 1.05),
        (many, f"{effort.exec_at_once} execs at once / raw crun exec at once", 1.5),
    ):
        report.goal(name, ratio(report.median(section, OURS), report.median(section, CRUN)), limit)


def _ours(container: Container, at_once: int) -> Contender:
    async def one() -> None:
        done = await container.exec(TRUE)
        if not done.exit.ok:
            raise Trouble(f"lighterman: exec: {done.exit}")

    async def once() -> float:
        began = time.perf_counter()
        await (one() if at_once == 1 else asyncio.gather(*(one() for _ in range(at_once))))
        return time.perf_counter() - began

    return Contender(OURS, once)


def _raw(name: str, runtime: RawRuntime, id: str, at_once: int) -> Contender:
    async def once() -> float:
        return runtime.exec_once(id, TRUE) if at_once == 1 else runtime.exec_at_once(id, TRUE, at_once)

    return Contender(name, once)
