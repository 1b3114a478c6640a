"""Containers a second at 1, 4 and 8 at a time, each run to its exit and removed."""

from __future__ import annotations

import asyncio
import time

from bench.inside import settle
from bench.interleave import Contender, take_turns
from bench.numbers import Samples, ratio
from bench.peers.raw import RawRuntime
from bench.setting import IMAGE, TRUE, Setting

__all__ = ["measure"]

AT_A_TIME = (1, 4, 8)
OURS = "lighterman"
CRUN = "raw crun run"
RUNC = "raw runc run"


async def measure(setting: Setting) -> None:
    report, count = setting.report, setting.effort.rate_containers
    for at_a_time in AT_A_TIME:
        section = f"containers a second, {at_a_time} at a time"
        contenders = [_ours(setting, count, at_a_time)]
        for name, runtime in ((CRUN, setting.peers.crun), (RUNC, setting.peers.runc)):
            if runtime is not None:
                contenders.append(_raw(name, runtime, count, at_a_time))
        await take_turns(contenders, setting.effort.rate_repetitions)
        for contender in sorted(contenders, key=lambda one: one.name != CRUN):
            if contender.times:
                rates = Samples.of(count / seconds for seconds in contender.times)
                against = CRUN if contender.name != CRUN else ""
                report.row(section, contender.name, rates, unit="/s", scale=1.0, against=against, rate=True)
            else:
                report.absent[f"{section}: {contender.name}"] = contender.failed or "not measured"
    reached = ratio(report.median(section, OURS), report.median(section, CRUN))
    report.goal("containers a second, 8 at a time / raw crun", reached, 1.4, at_least=True)


def _ours(setting: Setting, count: int, at_a_time: int) -> Contender:
    engine = setting.engine

    async def worker(numbers: list[int]) -> None:
        while numbers:
            numbers.pop()
            await engine.run(IMAGE, TRUE)

    async def once() -> float:
        numbers = list(range(count))
        began = time.perf_counter()
        await asyncio.gather(*(worker(numbers) for _ in range(at_a_time)))
        await settle(engine)
        return time.perf_counter() - began

    return Contender(OURS, once)


def _raw(name: str, runtime: RawRuntime, count: int, at_a_time: int) -> Contender:
    async def once() -> float:
        return runtime.run_many(TRUE, count, at_a_time)

    return Contender(name, once)
