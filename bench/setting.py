"""What every suite is given."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.arguments import Effort
from bench.inside import settle
from bench.peers.field import Peers
from bench.report import Report
from bench.trouble import Trouble
from bench.workspace import Workspace
from lighterman import Engine
from lighterman.spec import Timings

__all__ = ["IMAGE", "TRUE", "Setting"]

IMAGE = "busybox"
TRUE = ("/bin/true",)


@dataclass(frozen=True)
class Setting:
    """A warm engine, the peers, and where results go."""

    engine: Engine
    workspace: Workspace
    peers: Peers
    effort: Effort
    report: Report

    async def run_once(self, *, seccomp: bool = True, phases: list[Timings] | None = None) -> float:
        """Seconds of one run to its known exit; afterwards, not counted, it waits until all of it is removed."""
        clock = time.perf_counter
        began = clock()
        done = await self.engine.run(IMAGE, TRUE, seccomp="default" if seccomp else "unconfined")
        seconds = clock() - began
        await settle(self.engine)
        if not done.exit.ok:
            raise Trouble(f"lighterman: {done.exit}")
        if phases is not None:
            phases.append(done.timings)
        return seconds

    async def run_and_remove(self) -> float:
        """Seconds of one run until nothing of it is left."""
        clock = time.perf_counter
        began = clock()
        done = await self.engine.run(IMAGE, TRUE)
        await settle(self.engine)
        seconds = clock() - began
        if not done.exit.ok:
            raise Trouble(f"lighterman: {done.exit}")
        return seconds
