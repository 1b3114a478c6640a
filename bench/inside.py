"""What the engine's public face does not tell and a benchmark has to know; nothing else here looks inside."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from lighterman import Engine

__all__ = ["Memory", "cpu_of", "keeper_pid", "memory_of", "raise_descriptor_limit", "settle", "state_directory"]

_SETTLE_S = 60.0
# A thousand containers hold two to five each in the engine; some tools are slow with a limit of millions.
_DESCRIPTORS = 65536


async def settle(engine: Engine, *, but: int = 0) -> None:
    """Return when all but `but` containers have left nothing behind: bundles, cgroups, writable layers.

    Raises: TimeoutError.
    """
    root = engine._root
    directories = (f"{root.run}/bundles", f"{root.state}/containers")
    deadline = time.monotonic() + _SETTLE_S
    while any(_count(directory) > but for directory in directories):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the engine's clean-up has not ended within {_SETTLE_S:g} s in {root.state}")
        await asyncio.sleep(0.0005)


def _count(directory: str) -> int:
    try:
        return len(os.listdir(directory))
    except FileNotFoundError:
        return 0


async def keeper_pid(engine: Engine) -> int:
    """Of the engine's keeper. Raises: ValueError if the engine was not entered."""
    host = engine.inside.host_if_any
    if host is None:
        raise ValueError("the engine is not running: it has no keeper")
    return (await host.keeper.stats()).pid


def state_directory(engine: Engine) -> str:
    """Of its root."""
    return engine._root.state


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used, all threads, from /proc/PID/stat (in ticks: 10 ms mostly)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Of one process in bytes: resident, and what is its own alone."""

    resident: int
    private: int


def memory_of(pid: int | str) -> Memory:
    """From smaps_rollup of proc(5)."""
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    return Memory(resident=sizes["Rss"], private=sizes["Private_Clean"] + sizes["Private_Dirty"])


def raise_descriptor_limit() -> None:
    """As far as this process may by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
