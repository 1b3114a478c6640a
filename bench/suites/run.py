"""Run to exit of /bin/true: warm and after an idle moment, with and without seccomp."""

from __future__ import annotations

from bench.interleave import Contender, take_turns
from bench.numbers import Samples, ratio
from bench.setting import TRUE, Setting
from lighterman.spec import Timings

__all__ = ["measure_idle", "measure_run"]

SECTION = "run to exit"
IDLE = "run to exit after 0.25 s idle"
IDLE_S = 0.25
OURS = "lighterman"
CRUN = "raw crun run"
RUNC = "raw runc run"
DOCKER = "docker API cycle"
OURS_OPEN = "lighterman, no seccomp"
CRUN_OPEN = "raw crun run, no seccomp"


async def measure_run(setting: Setting) -> None:
    report, peers = setting.report, setting.peers
    phases: list[Timings] = []

    async def removed() -> float:
        return await setting.run_and_remove()

    contenders = [*_contenders(setting, phases), Contender("lighterman, until all is removed", removed)]
    contenders += _whole_engines(setting)
    await take_turns(contenders, setting.effort.rounds)
    report.contenders(SECTION, contenders, against=CRUN)
    # The phases of the warm-up rounds belong to the cold engine.
    for name in ("prepare", "runtime", "program", "drain"):
        values = [value for timings in phases[2:] if (value := getattr(timings, name)) is not None]
        if values:
            report.row("phases of lighterman", name, Samples.of(values))

    def compared(ours: str, theirs: str) -> float | None:
        return ratio(report.median(SECTION, ours), report.median(SECTION, theirs))

    if peers.crun is not None:
        report.goal("run to exit / raw crun run", compared(OURS, CRUN), 0.55)
    report.goal("run to exit / raw runc run", compared(OURS, RUNC), 0.35)
    report.goal("run to exit / docker's API cycle", compared(OURS, DOCKER), 0.08)
    report.goal("run to exit without seccomp / raw crun run without", compared(OURS_OPEN, CRUN_OPEN), 1.1)


async def measure_idle(setting: Setting) -> None:
    contenders = _contenders(setting, [])
    await take_turns(contenders, setting.effort.idle_rounds, idle_s=IDLE_S)
    setting.report.contenders(IDLE, contenders, against=CRUN)


def _contenders(setting: Setting, phases: list[Timings]) -> list[Contender]:
    crun, runc = setting.peers.crun, setting.peers.runc

    async def ours() -> float:
        return await setting.run_once(phases=phases)

    async def ours_open() -> float:
        return await setting.run_once(seccomp=False)

    contenders = [Contender(OURS, ours), Contender(OURS_OPEN, ours_open)]
    if crun is not None:

        async def raw_crun() -> float:
            return crun.run_once(TRUE)

        async def raw_crun_open() -> float:
            return crun.run_once(TRUE, seccomp=False)

        contenders += [Contender(CRUN, raw_crun), Contender(CRUN_OPEN, raw_crun_open)]
    if runc is not None:

        async def raw_runc() -> float:
            return runc.run_once(TRUE)

        contenders.append(Contender(RUNC, raw_runc))
    return contenders


def _whole_engines(setting: Setting) -> list[Contender]:
    docker = setting.peers.docker
    if docker is None:
        return []

    async def cycle() -> float:
        return docker.cycle(TRUE)

    return [Contender(DOCKER, cycle, every=setting.effort.slow_every, daemon=True)]
