"""`make chaos`: rounds of chaos, and what they showed; see `python -m chaos --help`."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path

from chaos.figures import Figures, write_readme
from chaos.ledger import Ledger, Violation
from chaos.plan import make_plan
from chaos.round import Round
from lighterman.runtimes.oci.probe import probe_all

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--faults", type=int, default=40, help="that are tried in a round")
    parser.add_argument("--containers", type=int, default=12)
    parser.add_argument(
        "--at-once", type=int, default=1, help="so many rounds beside each other, each with its own root"
    )
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--first", type=int, default=0, help="the round to begin with: to see one again")
    parser.add_argument("--for", dest="for_s", type=float, default=None, help="begin no round after so many seconds")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--readme", action="store_true", help="write the figures into README.md")
    parser.add_argument("--keep", action="store_true", help="keep the files of a round with a violation")
    return parser.parse_args(arguments)


async def play(options: argparse.Namespace, seed: int) -> Figures:
    """All the rounds; a signal ends those that are under way and cleans up after them."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signalled: list[int] = []

    def stop(number: int) -> None:
        signalled.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    runtimes = tuple(one.name for one in await asyncio.to_thread(probe_all) if one.refusal is None)
    if not runtimes:
        sys.exit("chaos: no OCI runtime runs containers here: see `lighterman doctor`")
    figures = Figures(seed, options.containers, options.faults, options.at_once)
    began = time.monotonic()
    indexes = iter(range(options.first, options.first + options.rounds))

    async def one_after_the_other() -> None:
        for index in indexes:
            if options.for_s is not None and time.monotonic() - began > options.for_s:
                break
            ledger = Ledger()
            plan = make_plan(seed, index, options.faults, options.containers, runtimes)
            started = time.monotonic()
            try:
                await Round(plan, ledger, options.keep).play()
            finally:
                figures.add(ledger, [Violation(seed, index, text) for text in ledger.problems])
            _tell(index, ledger, time.monotonic() - started, plan.runtime, plan.small_disk)
            figures.seconds = time.monotonic() - began

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(options.at_once):
                group.create_task(one_after_the_other())
    except asyncio.CancelledError:
        if not signalled:
            raise
        print(f"chaos: ended by {signal.Signals(signalled[0]).name}", file=sys.stderr)
    return figures


def _tell(number: int, ledger: Ledger, seconds: float, runtime: str, small_disk: bool) -> None:
    print(
        f"round {number}: {seconds:.0f} s, {runtime}{', small disk' if small_disk else ''}, "
        f"{sum(ledger.faults.values())} faults, {sum(ledger.answers.values())} verbs, {ledger.exits} exits, "
        f"{ledger.lines} lines, {ledger.unknowns} unknown, {len(ledger.problems)} violations",
        flush=True,
    )
    for text in ledger.problems:
        print(f"  VIOLATION {text}", flush=True)


def _enter_own_mount_namespace() -> None:
    """The small disks are nobody else's business, and vanish with the last process of a round."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        number = ctypes.get_errno()
        raise OSError(number, f"no mount namespace of its own: {os.strerror(number)}")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if os.geteuid() != 0:
        sys.exit("chaos: running containers needs root in this version")
    _enter_own_mount_namespace()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(f"chaos: seed {seed}", flush=True)
    # asyncio complains of each request to an engine that was killed a moment before.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    figures = asyncio.run(play(options, seed))
    print(figures.text())
    if options.json is not None:
        options.json.write_text(json.dumps(figures.plain(), indent=2) + "\n")
    if options.readme:
        write_readme(Path(__file__).parent.parent / "README.md", figures)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
