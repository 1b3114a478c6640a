"""`make bench`: measure, print one table at the end."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec

from bench.arguments import Options, parse
from bench.inside import raise_descriptor_limit
from bench.peers.field import Peers
from bench.report import Report
from bench.setting import Setting
from bench.suites import execs, isolation, lease, logs, rate, recovery, run, scale, startup, state
from bench.tables import markdown, text
from bench.trouble import Trouble
from bench.workspace import Workspace, in_own_mount_namespace
from lighterman import Engine

_SUITES: dict[str, Callable[[Setting], Awaitable[None]]] = {
    "isolation": isolation.measure,
    "run": run.measure_run,
    "idle": run.measure_idle,
    "exec": execs.measure,
    "state": state.measure,
    "lease": lease.measure,
    "logs": logs.measure,
    "rate": rate.measure,
    "startup": startup.measure,
    "recovery": recovery.measure,
    "scale": scale.measure,
}


async def measure(options: Options) -> Report:
    """All the suites that were asked for; everything that they made is gone when this returns or raises."""
    report = Report()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _cancel(asyncio.current_task()))
    workspace = Workspace()
    try:
        peers = Peers(workspace, report, docker=options.docker, podman=options.podman)
        try:
            async with Engine() as engine:
                version = await engine.version()
                report.facts |= _facts(f"{version.name} {version.version}")
                setting = Setting(engine, workspace, peers, options.effort, report)
                for name, suite in _SUITES.items():
                    if name in options.only:
                        await _one(name, suite, setting)
        finally:
            peers.close()
    finally:
        workspace.close()
    return report


async def _one(name: str, suite: Callable[[Setting], Awaitable[None]], setting: Setting) -> None:
    began = time.monotonic()
    print(f"bench: {name} ...", file=sys.stderr)
    try:
        await suite(setting)
    except Trouble as trouble:
        setting.report.absent[name] = str(trouble)
    print(f"bench: {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)


def _cancel(task: asyncio.Task[Report] | None) -> Callable[[], None]:
    def cancel() -> None:
        if task is not None:
            task.cancel()

    return cancel


def _facts(runtime: str) -> dict[str, str]:
    return {
        "Linux": platform.release(),
        "CPUs": str(os.cpu_count()),
        "Python": platform.python_version(),
        "runtime": runtime,
    }


def main() -> int:
    options = parse(sys.argv[1:])
    if os.geteuid() != 0:
        print("bench: running containers needs root in this version: sudo make bench", file=sys.stderr)
        return 2
    in_own_mount_namespace()
    raise_descriptor_limit()
    try:
        report = asyncio.run(measure(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: interrupted; everything was removed", file=sys.stderr)
        return 130
    encoded = msgspec.json.format(msgspec.json.encode(report.as_json()))
    if options.json == "-":
        sys.stdout.buffer.write(encoded + b"\n")
    elif options.json is not None:
        with open(options.json, "wb") as file:
            file.write(encoded + b"\n")
    if options.json != "-":
        print(markdown(report) if options.readme else text(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
