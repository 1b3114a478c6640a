"""What starts before a container does: the keeper, the command line as a whole process, imports."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.inside import Memory, memory_of
from bench.interleave import Contender, take_turns
from bench.numbers import Samples
from bench.setting import IMAGE, TRUE, Setting
from bench.spawn import timed
from lighterman.keeper.client import KeeperClient

__all__ = ["measure"]

_MB = 1024 * 1024


async def measure(setting: Setting) -> None:
    await _keeper(setting)
    await _command_line(setting)
    await _imports(setting)


async def _keeper(setting: Setting) -> None:
    section, bare = "keeper, start to answering", "bare Python interpreter"
    sizes: list[Memory] = []
    directory = setting.workspace.directory("keeper")

    async def start() -> float:
        began = time.perf_counter()
        keeper = await KeeperClient.start_or_connect(directory, directory)
        seconds = time.perf_counter() - began
        try:
            sizes.append(memory_of((await keeper.stats()).pid))
        finally:
            await keeper.shutdown()
            await keeper.close()
        return seconds

    contenders = [Contender("keeper", start), _process(bare, [sys.executable, "-I", "-S", "-E", "-c", "pass"])]
    await take_turns(contenders, setting.effort.startup_rounds)
    setting.report.contenders(section, contenders, against=bare)
    for kind in ("resident", "private"):
        values = [float(getattr(size, kind)) for size in sizes]
        if values:
            setting.report.row("memory", f"new keeper, {kind}", Samples.of(values), unit="MB", scale=1 / _MB)
    await asyncio.to_thread(shutil.rmtree, directory)


async def _command_line(setting: Setting) -> None:
    section, peers = "a run as a whole process", setting.peers
    program = str(Path(sys.executable).with_name("lighterman"))
    log = f"{setting.workspace.path}/lighterman.log"
    contenders = [_process("lighterman run --rm", [program, "run", "--rm", IMAGE, *TRUE], log)]
    docker, podman, crun = peers.docker, peers.podman, peers.crun
    if docker is not None:

        async def run_docker() -> float:
            return docker.run_program(TRUE)

        contenders.append(Contender("docker run --rm --network none", run_docker, daemon=True))
    if podman is not None:

        async def run_podman() -> float:
            return podman.run_program(TRUE)

        contenders.append(Contender("podman run --rm --network none", run_podman, daemon=True))
    if crun is not None:

        async def run_crun() -> float:
            return crun.run_once(TRUE)

        contenders.append(Contender("raw crun run", run_crun))
    await take_turns(contenders, setting.effort.startup_rounds)
    setting.report.contenders(section, contenders, against="docker run --rm --network none")


async def _imports(setting: Setting) -> None:
    section, nothing = "import, as a whole process", "python -c pass"
    modules = ("lighterman", "lighterman.engine", "lighterman.engine.on_linux", "asyncio", "lighterman.cli.__main__")
    contenders = [_process(nothing, [sys.executable, "-c", "pass"])]
    contenders += [_process(f"import {module}", [sys.executable, "-c", f"import {module}"]) for module in modules]
    await take_turns(contenders, setting.effort.startup_rounds)
    setting.report.contenders(section, contenders, against=nothing)


def _process(name: str, argv: Sequence[str], log: str | None = None) -> Contender:
    async def once() -> float:
        return timed(argv, env=dict(os.environ), log=log)

    return Contender(name, once)
