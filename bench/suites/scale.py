"""A thousand idle containers: time to start them, one more then, and the memory of engine and keeper."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from bench.numbers import Samples, ratio
from bench.peers.raw import RawRuntime
from bench.setting import Setting
from bench.sleepers import AT_A_TIME, Filled, Stage
from bench.trouble import Trouble

__all__ = ["measure"]

OURS = "lighterman"
CRUN = "raw crun run --detach"
SLEEP = ("sleep", "inf")
TIME_LIMIT_S = 600.0
_KB = 1024
_MB = 1024 * 1024


async def measure(setting: Setting) -> None:
    report = setting.report
    some, many = setting.effort.sleepers
    filled = await _fill(some, many, setting.effort.one_more)
    if setting.peers.crun is not None:
        try:
            _raw(setting, setting.peers.crun, many)
        except Trouble as trouble:
            report.absent[f"{many} idle containers: raw crun"] = str(trouble)
    starting = _starting(many)
    report.row(starting, OURS, Samples.of([filled.start_s]), unit="s", scale=1.0, against=CRUN)
    report.row(_ending(many), OURS, Samples.of([filled.end_s]), unit="s", scale=1.0, against=CRUN)
    nobody, few, full = filled.stages
    for stage in (nobody, full):
        report.row(_one_more(stage.containers), OURS, Samples.of(stage.one_more_s), against=CRUN)
    for stage in filled.stages:
        _memory(setting, stage)
    further = (_private(full) - _private(few)) / (full.containers - few.containers)
    report.row("memory", "each further container, engine and keeper", Samples.of([further]), unit="kB", scale=1 / _KB)

    report.goal(f"start {many} idle containers / raw crun", ratio(filled.start_s, report.median(starting, CRUN)), 0.7)
    one_more = ratio(Samples.of(full.one_more_s).median, Samples.of(nobody.one_more_s).median)
    report.goal(f"start of one more at {many} / at 0", one_more, 2.0)
    report.goal("engine and keeper, each further idle container", further / _KB, 40.0, unit="kB")
    report.goal(f"keeper at {many}, resident", full.keeper.resident / _MB, 14.0, unit="MB")
    report.goal(f"keeper at {many}, private", full.keeper.private / _MB, 6.0, unit="MB")


def _raw(setting: Setting, crun: RawRuntime, many: int) -> None:
    report, times = setting.report, setting.effort.one_more
    try:
        report.row(_one_more(0), CRUN, Samples.of(_one_more_raw(crun, times)))
        seconds = crun.start_many(SLEEP, many, AT_A_TIME)
        report.row(_starting(many), CRUN, Samples.of([seconds]), unit="s", scale=1.0)
        report.row(_one_more(many), CRUN, Samples.of(_one_more_raw(crun, times)))
    finally:
        ended = crun.delete_all(AT_A_TIME)
    report.row(_ending(many), CRUN, Samples.of([ended]), unit="s", scale=1.0)


def _one_more_raw(crun: RawRuntime, times: int) -> list[float]:
    taken = []
    for _ in range(times):
        id, seconds = crun.start(SLEEP)
        crun.delete(id)
        taken.append(seconds)
    return taken


async def _fill(some: int, many: int, one_more: int) -> Filled:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.sleepers", str(some), str(many), str(one_more), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(TIME_LIMIT_S):
            written, _ = await child.communicate()
    except BaseException:
        # SIGINT, so that it removes its containers.
        if child.returncode is None:
            child.send_signal(2)
            await child.wait()
        raise
    if child.returncode != 0:
        raise Trouble(f"bench.sleepers ended with {child.returncode}")
    return msgspec.json.decode(written, type=Filled)


def _memory(setting: Setting, stage: Stage) -> None:
    section = "memory"
    for name, memory in (("engine", stage.engine), ("keeper", stage.keeper)):
        for kind, size in (("resident", memory.resident), ("private", memory.private)):
            label = f"{name} at {stage.containers}, {kind}"
            setting.report.row(section, label, Samples.of([float(size)]), unit="MB", scale=1 / _MB)


def _private(stage: Stage) -> int:
    return stage.engine.private + stage.keeper.private


def _starting(many: int) -> str:
    return f"start {many} idle containers, {AT_A_TIME} at a time"


def _ending(many: int) -> str:
    return f"kill and remove {many} idle containers"


def _one_more(containers: int) -> str:
    return f"start of one more at {containers}"
