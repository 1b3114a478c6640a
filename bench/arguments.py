"""The command line, and how much is measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "SUITES", "Effort", "Options", "parse"]

SUITES = ("run", "idle", "exec", "rate", "scale", "startup", "recovery", "logs", "state", "lease", "isolation")

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Effort:
    """How many repetitions: of latencies (`rounds`), of slow ones, containers of a rate, idle containers.

    `recovered`: how many containers an engine comes back to. `log_bytes`: how much a program writes.
    """

    rounds: int
    idle_rounds: int
    slow_every: int
    rate_containers: int
    rate_repetitions: int
    sleepers: tuple[int, int]
    one_more: int
    startup_rounds: int
    exec_at_once: int
    exec_at_once_rounds: int
    recovered: tuple[int, ...]
    recovered_rounds: int
    log_bytes: int
    log_rounds: int
    state_changes: int
    lease_rounds: int


FULL = Effort(
    rounds=80,
    idle_rounds=25,
    slow_every=4,
    rate_containers=120,
    rate_repetitions=5,
    sleepers=(100, 1000),
    one_more=25,
    startup_rounds=25,
    exec_at_once=50,
    exec_at_once_rounds=7,
    recovered=(50, 200, 500),
    recovered_rounds=7,
    log_bytes=512 * _MIB,
    log_rounds=7,
    state_changes=2000,
    lease_rounds=25,
)
QUICK = Effort(
    rounds=20,
    idle_rounds=6,
    slow_every=4,
    rate_containers=40,
    rate_repetitions=2,
    sleepers=(20, 100),
    one_more=8,
    startup_rounds=8,
    exec_at_once=50,
    exec_at_once_rounds=2,
    recovered=(20, 50),
    recovered_rounds=3,
    log_bytes=64 * _MIB,
    log_rounds=3,
    state_changes=400,
    lease_rounds=6,
)


@dataclass(frozen=True)
class Options:
    """What was asked for. `json` is a path, `-` is standard output."""

    only: tuple[str, ...] = SUITES
    effort: Effort = FULL
    json: str | None = None
    readme: bool = False
    docker: bool = True
    podman: bool = True


def parse(arguments: Sequence[str]) -> Options:
    """Raises: SystemExit with a message for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Lighterman against raw runtimes, docker and podman. Needs root."
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, a tenth of the idle containers")
    parser.add_argument("--only", action="append", choices=SUITES, metavar="NAME", help=f"one of {', '.join(SUITES)}")
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help="write everything as JSON, too")
    parser.add_argument("--readme", action="store_true", help="print the README's table instead")
    parser.add_argument("--no-docker", action="store_true", help="leave docker out")
    parser.add_argument("--no-podman", action="store_true", help="leave podman out")
    given = parser.parse_args(arguments)
    return Options(
        only=tuple(name for name in SUITES if not given.only or name in given.only),
        effort=QUICK if given.quick else FULL,
        json=given.json,
        readme=given.readme,
        docker=not given.no_docker,
        podman=not given.no_podman,
    )
