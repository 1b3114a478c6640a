"""Version 1: each controller in a hierarchy of its own. Files as the kernel's admin-guide/cgroup-v1 names them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from lighterman.runtimes.oci.cgroups import files
from lighterman.spec import Pressure

Counters = Mapping[str, int | Pressure | None]

# No limit is shown as the largest int64 rounded down to pages; no machine has a quarter of that.
_NO_LIMIT_BYTES = 1 << 61
_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")  # cpuacct.stat counts in USER_HZ


def set_frozen(directory: int, frozen: bool) -> bool:
    """Ask for it; False if the cgroup is gone. Asking again helps a FREEZING one over a process that has forked."""
    return files.write(directory, "freezer.state", "FROZEN" if frozen else "THAWED")


def frozen_state(directory: int) -> bool | None:
    """True or False when every process is frozen or thawed; None in between, or where the cgroup is gone."""
    state = files.read(directory, "freezer.state")
    return {"FROZEN\n": True, "THAWED\n": False}.get(state or "")


def oom_kills(directory: int) -> int | None:
    """Processes killed for memory in this one cgroup; those below count for themselves. None before Linux 4.13."""
    return files.read_table(directory, "memory.oom_control").get("oom_kill")


def _cpu_usage(directory: int) -> Counters:
    ticks = files.read_table(directory, "cpuacct.stat")
    return {
        "cpu_ns": files.read_number(directory, "cpuacct.usage"),
        "cpu_user_ns": _scaled(ticks.get("user"), _TICK_NS),
        "cpu_system_ns": _scaled(ticks.get("system"), _TICK_NS),
    }


def _throttling(directory: int) -> Counters:
    return {"cpu_throttled_ns": files.read_table(directory, "cpu.stat").get("throttled_time")}


def _memory(directory: int) -> Counters:
    limit = files.read_number(directory, "memory.limit_in_bytes")
    return {
        "memory_bytes": files.read_number(directory, "memory.usage_in_bytes"),
        "memory_peak_bytes": files.read_number(directory, "memory.max_usage_in_bytes"),
        "memory_limit_bytes": None if limit is None or limit >= _NO_LIMIT_BYTES else limit,
        "memory_inactive_file_bytes": files.read_table(directory, "memory.stat").get("total_inactive_file"),
        "memory_limit_events": files.read_number(directory, "memory.failcnt"),
    }


def _pids(directory: int) -> Counters:
    return {
        "pids": files.read_number(directory, "pids.current"),
        "pids_limit": files.read_pids_limit(directory),
    }


def _block_devices(directory: int) -> Counters:
    moved = _block_totals(directory, "blkio.throttle.io_service_bytes")
    operations = _block_totals(directory, "blkio.throttle.io_serviced")
    return {
        "read_bytes": moved["Read"],
        "write_bytes": moved["Write"],
        "read_operations": operations["Read"],
        "write_operations": operations["Write"],
    }


def _block_totals(directory: int, name: str) -> dict[str, int | None]:
    text = files.read(directory, f"{name}_recursive")
    if text is None:
        text = files.read(directory, name)
    if text is None:
        return {"Read": None, "Write": None}
    totals: dict[str, int | None] = {"Read": 0, "Write": 0}
    # Lines `MAJOR:MINOR Read 4096`; the last is `Total 4096`.
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in totals:
            totals[words[1]] = (totals[words[1]] or 0) + (files.number(words[2]) or 0)
    return totals


def _scaled(count: int | None, factor: int) -> int | None:
    return None if count is None else count * factor


STATISTICS: Mapping[str, Callable[[int], Counters]] = {
    "cpuacct": _cpu_usage,
    "cpu": _throttling,
    "memory": _memory,
    "pids": _pids,
    "blkio": _block_devices,
}
