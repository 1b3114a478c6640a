"""`kill -9` of the owner of a container, until the container's init is dead: nobody but the keeper is there to see."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from bench.interleave import Contender, take_turns
from bench.numbers import Samples
from bench.owner import Owned
from bench.setting import IMAGE, Setting
from bench.spawn import DEADLINE_S
from bench.trouble import Trouble

__all__ = ["measure"]

SECTION = "kill -9 of the owner, until the container is dead"
ROOT_GONE = "kill -9 of the owner, until its private root is gone"
OURS = "lighterman"
DIRECT = "kill -9 of the container's init itself"


async def measure(setting: Setting) -> None:
    gone: list[float] = []

    async def by_lease() -> float:
        seconds, until_gone = await _kill_an_owner()
        gone.append(until_gone)
        return seconds

    async def directly() -> float:
        async with setting.engine.container(IMAGE, ["sleep", "inf"]) as container:
            return await asyncio.to_thread(_seconds_to_die, container.pid, container.pid)

    contenders = [Contender(OURS, by_lease), Contender(DIRECT, directly)]
    await take_turns(contenders, setting.effort.lease_rounds)
    report = setting.report
    report.contenders(SECTION, contenders, against=DIRECT)
    samples = contenders[0].samples
    if samples is not None:
        report.row(ROOT_GONE, OURS, Samples.of(gone[-len(samples) :]))
    # Its p95: a promise is not kept by a median.
    reached = samples.p95 * 1e3 if samples is not None else None
    report.goal("kill -9 of the owner, until the container is dead (p95)", reached, 1000.0, unit="ms")


async def _kill_an_owner() -> tuple[float, float]:
    """Seconds until the container's init is dead, and until nothing is left of the root."""
    owner = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.owner", stdout=asyncio.subprocess.PIPE)
    try:
        assert owner.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            line = await owner.stdout.readline()
        if not line:
            raise Trouble(f"bench.owner ended with {await owner.wait()}")
        owned = msgspec.json.decode(line, type=Owned)
        began = time.perf_counter()
        seconds = await asyncio.to_thread(_seconds_to_die, owned.pid, owner.pid)
        await asyncio.to_thread(_wait_gone, owned.state)
        return seconds, time.perf_counter() - began
    finally:
        if owner.returncode is None:
            owner.kill()
        await owner.wait()


def _wait_gone(path: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while os.path.exists(path):
        if time.monotonic() > deadline:
            raise Trouble(f"{path} was still there {DEADLINE_S:g} s after its owner's death")
        time.sleep(0.0005)


def _seconds_to_die(watched: int, killed: int) -> float:
    """From the SIGKILL to `killed` until `watched` has ended. Raises: Trouble after DEADLINE_S."""
    with _pidfd(watched) as watch, _pidfd(killed) as kill:
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        began = time.perf_counter()
        signal.pidfd_send_signal(kill, signal.SIGKILL)
        if not poll.poll(DEADLINE_S * 1000):
            raise Trouble(f"process {watched} had not ended after {DEADLINE_S:g} s")
        return time.perf_counter() - began


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)
