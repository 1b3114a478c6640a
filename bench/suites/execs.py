"""Exec of /bin/true in a running container, from the call until its exit is known."""

from __future__ import annotations

import time

from bench.interleave import Contender, take_turns
from bench.numbers import ratio
from bench.peers.raw import RawRuntime
from bench.setting import IMAGE, TRUE, Setting
from bench.trouble import Trouble

__all__ = ["measure"]

SECTION = "exec, start to exit known"
OURS = "lighterman"
CRUN = "raw crun exec"
RUNC = "raw runc exec"
SLEEP = ("sleep", "inf")


async def measure(setting: Setting) -> None:
    report, peers = setting.report, setting.peers
    async with setting.engine.container(IMAGE, SLEEP) as container:

        async def ours() -> float:
            began = time.perf_counter()
            done = await container.exec(TRUE)
            seconds = time.perf_counter() - began
            if not done.exit.ok:
                raise Trouble(f"lighterman: exec: {done.exit}")
            return seconds

        contenders = [Contender(OURS, ours)]
        running: list[tuple[RawRuntime, str]] = []
        try:
            for name, runtime in ((CRUN, peers.crun), (RUNC, peers.runc)):
                if runtime is not None:
                    id, _ = runtime.start(SLEEP)
                    running.append((runtime, id))
                    contenders.append(_raw(name, runtime, id))
            await take_turns(contenders, setting.effort.rounds)
        finally:
            for runtime, id in running:
                runtime.delete(id)
    report.contenders(SECTION, contenders, against=CRUN)
    reached = ratio(report.median(SECTION, OURS), report.median(SECTION, CRUN))
    report.goal("exec, start to exit known / raw crun exec", reached, 1.05)


def _raw(name: str, runtime: RawRuntime, id: str) -> Contender:
    async def once() -> float:
        return runtime.exec_once(id, TRUE)

    return Contender(name, once)
