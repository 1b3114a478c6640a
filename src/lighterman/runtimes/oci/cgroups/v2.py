"""Version 2: one hierarchy for all. Files as the kernel's admin-guide/cgroup-v2 names them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping

from lighterman.runtimes.oci.cgroups import files
from lighterman.runtimes.oci.cgroups.v1 import Counters
from lighterman.spec import Pressure


def kill(directory: int) -> bool:
    """SIGKILL for the whole subtree, atomic against forks; False where there is no such thing.

    That is a kernel before 5.14, a cgroup that is gone, and one that its workload has made threaded.
    """
    try:
        return files.write(directory, "cgroup.kill", "1")
    except OSError as refused:
        if refused.errno != errno.EOPNOTSUPP:
            raise
        return False


def threads_processes(directory: int) -> Iterator[int]:
    """Of each thread in this one cgroup, its process: a threaded one lists no processes by itself."""
    for thread in (files.read(directory, "cgroup.threads") or "").split():
        try:
            with open(f"/proc/{thread}/status", encoding="utf-8", errors="surrogateescape") as file:
                yield next(int(line.split()[1]) for line in file if line.startswith("Tgid:"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended


def populated(directory: int) -> bool | None:
    """Whether any process is in the subtree; None where the cgroup is gone, and in the root, which does not say."""
    count = files.read_table(directory, "cgroup.events").get("populated")
    return None if count is None else count != 0


def takes_processes(parent: int, name: str) -> bool:
    """Whether the cgroup `name` below is one for processes, and not within a threaded subtree."""
    kind = files.read(parent, f"{name}/cgroup.type") or "domain"  # Linux before 4.14 knows no other
    return kind.strip() in ("domain", "domain threaded")


def set_frozen(directory: int, frozen: bool) -> bool:
    """Ask for it, for the whole subtree; False if the cgroup is gone."""
    return files.write(directory, "cgroup.freeze", "1" if frozen else "0")


def frozen_state(directory: int) -> bool | None:
    """True or False when every process is frozen or none has to be; None in between, or where the cgroup is gone."""
    asked = files.read_number(directory, "cgroup.freeze")
    reached = files.read_table(directory, "cgroup.events").get("frozen")
    if asked is None or reached is None:
        return None
    if reached:
        return True
    return None if asked else False


def oom_kills(directory: int) -> int | None:
    """Processes killed for memory in the subtree, removed cgroups included."""
    return files.read_table(directory, "memory.events").get("oom_kill")


def local_oom_kills(directory: int) -> int | None:
    """Processes killed for memory in this one cgroup."""
    return files.read_table(directory, "memory.events.local").get("oom_kill")


def cpu_ns(directory: int) -> int | None:
    """CPU time of the subtree."""
    return _cpu_times(directory)["cpu_ns"]


def _cpu(directory: int) -> Counters:
    return {**_cpu_times(directory), "cpu_pressure": _pressure(directory, "cpu.pressure")}


def _cpu_times(directory: int) -> Mapping[str, int | None]:
    times = files.read_table(directory, "cpu.stat")
    return {
        name: None if key not in times else times[key] * 1000
        for name, key in (
            ("cpu_ns", "usage_usec"),
            ("cpu_user_ns", "user_usec"),
            ("cpu_system_ns", "system_usec"),
            ("cpu_throttled_ns", "throttled_usec"),
        )
    }


def _memory(directory: int) -> Counters:
    events = files.read_table(directory, "memory.events")
    return {
        "memory_bytes": files.read_number(directory, "memory.current"),
        "memory_peak_bytes": files.read_number(directory, "memory.peak"),
        "memory_limit_bytes": files.read_number(directory, "memory.max"),
        "memory_inactive_file_bytes": files.read_table(directory, "memory.stat").get("inactive_file"),
        "memory_limit_events": events.get("max"),
        "oom_events": events.get("oom"),
        "memory_pressure": _pressure(directory, "memory.pressure"),
    }


def _pids(directory: int) -> Counters:
    return {
        "pids": files.read_number(directory, "pids.current"),
        "pids_limit": files.read_pids_limit(directory),
    }


_BLOCK_FIELDS = {"rbytes": "read_bytes", "wbytes": "write_bytes", "rios": "read_operations", "wios": "write_operations"}


def _io(directory: int) -> Counters:
    return {**_block_devices(directory), "io_pressure": _pressure(directory, "io.pressure")}


def _block_devices(directory: int) -> Counters:
    text = files.read(directory, "io.stat")
    if text is None:
        return dict.fromkeys(_BLOCK_FIELDS.values())
    totals = dict.fromkeys(_BLOCK_FIELDS.values(), 0)
    # Lines `MAJOR:MINOR rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
    for line in text.splitlines():
        for pair in line.split()[1:]:
            key, _, value = pair.partition("=")
            if key in _BLOCK_FIELDS:
                totals[_BLOCK_FIELDS[key]] += files.number(value) or 0
    return totals


def _pressure(directory: int, name: str) -> Pressure | None:
    """Lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, total in microseconds, and `full` likewise.

    None where the kernel has none, or has it switched off (`psi=0`).
    """
    found: dict[str, float] = {}
    for line in (files.read(directory, name) or "").splitlines():
        kind, *pairs = line.split()
        for key, _, value in (pair.partition("=") for pair in pairs):
            # Digits, and a point in all but the total.
            if kind in ("some", "full") and value.isascii() and value.replace(".", "", 1).isdigit():
                found[f"{kind}_{key}"] = float(value)
    if not {"some_avg10", "some_avg60", "some_avg300", "some_total"} <= found.keys():
        return None
    full_total = found.get("full_total")
    return Pressure(
        some_avg10=found["some_avg10"],
        some_avg60=found["some_avg60"],
        some_avg300=found["some_avg300"],
        some_total_ns=int(found["some_total"]) * 1000,
        full_avg10=found.get("full_avg10"),
        full_avg60=found.get("full_avg60"),
        full_avg300=found.get("full_avg300"),
        full_total_ns=None if full_total is None else int(full_total) * 1000,
    )


# CPU time is counted in every cgroup, whether the cpu controller is on or not.
STATISTICS: Mapping[str, Callable[[int], Counters]] = {
    "cpu": _cpu,
    "memory": _memory,
    "pids": _pids,
    "io": _io,
}
