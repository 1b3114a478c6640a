"""The way of a program's output into its log: bytes a second and CPU time, beside the same program writing to a file.

The program waits for a line on its stdin, so that a container's start is no part of it; its end is known only when its
last byte is in the log.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.inside import cpu_of, keeper_pid
from bench.interleave import WARM_UPS, Contender, take_turns
from bench.numbers import Samples, ratio
from bench.peers.docker import Docker
from bench.setting import IMAGE, Setting
from bench.trouble import Trouble

__all__ = ["measure"]

OURS = "lighterman"
FILE = "the same program, into a file"
DOCKERD = "dockerd, json-file"
_MIB = 1024 * 1024
_GIB = 1024 * _MIB
_LINE = "x" * 99
# It takes a tenth of our rate, and writes each zero byte as six.
_DOCKER_SHARE = 16


@dataclass
class Load:
    """What is written: `command` writes about so many bytes, `size` says how many they are."""

    name: str
    command: Callable[[int], str]
    size: Callable[[int], int]


def _whole(piece: int) -> Callable[[int], int]:
    return lambda size: size // piece * piece


BLOCKS = Load("64 kB writes", lambda size: f"dd if=/dev/zero bs=65536 count={size // 65536} 2>/dev/null", _whole(65536))
LINES = Load("100-byte lines", lambda size: f"yes {_LINE} | head -c {size // 100 * 100}", _whole(100))
LOADS = (BLOCKS, LINES)


async def measure(setting: Setting) -> None:
    for load in LOADS:
        await _measure(setting, load)
    report = setting.report
    reached = report.median(_section(BLOCKS), OURS)
    report.goal(
        "log path, 64 kB writes",
        reached / 1024 if reached is not None else None,
        1.0,
        at_least=True,
        unit="GiB/s",
    )
    section = _section(LINES)
    for peer, name, limit in ((FILE, "the same into a file", 0.8), (DOCKERD, "dockerd's json-file", 5.0)):
        reached = ratio(report.median(section, OURS), report.median(section, peer))
        report.goal(f"log path, 100-byte lines / {name}", reached, limit, at_least=True)


async def _measure(setting: Setting, load: Load) -> None:
    report, size = setting.report, setting.effort.log_bytes
    keeper = await keeper_pid(setting.engine)
    cpu: dict[str, list[float]] = {FILE: [], OURS: []}
    contenders = [
        _ours(setting, OURS, load, "", keeper, cpu[OURS]),
        _ours(setting, FILE, load, " > /out", keeper, cpu[FILE]),
    ]
    sizes = {OURS: load.size(size), FILE: load.size(size), DOCKERD: load.size(size // _DOCKER_SHARE)}
    if setting.peers.docker is not None:
        contenders.append(_docker(setting.peers.docker, load.command(size // _DOCKER_SHARE)))
    await take_turns(contenders, setting.effort.log_rounds)
    for contender in sorted(contenders, key=lambda one: one.name != FILE):
        if contender.times:
            rates = Samples.of(sizes[contender.name] / seconds for seconds in contender.times)
            against = FILE if contender.name != FILE else ""
            report.row(_section(load), contender.name, rates, unit="MiB/s", scale=1 / _MIB, against=against, rate=True)
        else:
            report.absent[f"{_section(load)}: {contender.name}"] = contender.failed or "not measured"
    for name, used in cpu.items():
        if used[WARM_UPS:]:
            each = Samples.of(seconds * _GIB / sizes[name] for seconds in used[WARM_UPS:])
            section = f"CPU of the log path, {load.name}, all processes"
            report.row(section, name, each, unit="s/GiB", scale=1.0, against=FILE if name != FILE else "")


def _section(load: Load) -> str:
    return f"log path, {load.name}"


def _ours(setting: Setting, name: str, load: Load, target: str, keeper: int, cpu: list[float]) -> Contender:
    """`cpu` gets the seconds of CPU of each turn."""
    argv = ["sh", "-c", f"read go; {load.command(setting.effort.log_bytes)}{target}"]

    async def once() -> float:
        container = await setting.engine.create(IMAGE, argv, stdin=True)
        try:
            await container.start()
            before = _cpu_so_far(keeper)
            began = time.perf_counter()
            container.stdin.write(b"\n")
            ended = await container.wait()
            seconds = time.perf_counter() - began
            used = _cpu_so_far(keeper) - before + (ended.cpu_s or 0.0)
        finally:
            await container.remove(force=True)
        if not ended.ok:
            raise Trouble(f"lighterman: {ended}")
        cpu.append(used)
        return seconds

    return Contender(name, once)


def _cpu_so_far(keeper: int) -> float:
    """Of engine and keeper. The engine's process is this one, which does nothing else meanwhile."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + cpu_of(keeper)


def _docker(docker: Docker, command: str) -> Contender:
    argv = ["sh", "-c", f"read go; {command}"]

    async def once() -> float:
        return docker.write_and_wait(docker.start(argv, stdin=True), b"\n")

    return Contender(DOCKERD, once, daemon=True)
