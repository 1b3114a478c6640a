"""Resource limits: are the values sensible, can this host enforce them, and what are they called in OCI."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from lighterman.errors import InvalidSpec, NotSupported
from lighterman.quantities import MAX_BYTES, parse_cpus
from lighterman.runtimes.oci.cgroups import files
from lighterman.runtimes.oci.cgroups.cgroup import Cgroup
from lighterman.runtimes.oci.cgroups.host import PARENT, CgroupHost, Hierarchy
from lighterman.spec import BlkioLimit, Resources

__all__ = ["check_resources", "resources_to_oci", "set_rates", "without_rates"]

MIN_MEMORY_BYTES = 6 * 1024 * 1024  # docker's: with less, the runtime's own start is killed
MIN_CPUS = 0.01  # docker's: 1 ms, the kernel's smallest quota, of the period below
CPU_PERIOD_US = 100_000  # docker's, podman's and the kernel's default
_CPU_SHARES = range(2, 262144 + 1)  # bounds of v1's cpu.shares
_BLKIO_WEIGHTS = range(10, 1000 + 1)  # bounds of v1's blkio.weight, docker's too
_MAX_LISTED = 8192  # the most CPUs a Linux kernel is built for

# Ours, OCI's, the file of version 1, and the key in io.max of version 2.
_THROTTLES = (
    ("device_read_bps", "throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("device_write_bps", "throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("device_read_iops", "throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("device_write_iops", "throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)


def check_resources(
    resources: Resources, host: CgroupHost, *, parent: str = PARENT, cpu_count: int | None = None
) -> None:
    """Refuse what can't be, and what this host would not enforce; a few small reads, no side effect.

    As for docker, 0 is the same as not set, and -1 is no limit where a limit may be lifted (swap, pids).

    Args:
        parent: the path of the cgroup below which the container's is, or will be.
        cpu_count: CPUs that the host has; by default those online.

    Raises: InvalidSpec for a value that no host takes; NotSupported for one that this host can't enforce.
    """
    _check_memory(resources, host)
    _check_cpu(resources, host, cpu_count or os.cpu_count() or 1)
    _check_cpuset(resources.cpuset_cpus, "cpus", host, parent)
    _check_cpuset(resources.cpuset_mems, "mems", host, parent)
    _check_pids(resources.pids_limit, host)
    _check_blkio(resources, host)


def resources_to_oci(resources: Resources) -> dict[str, Any]:
    """The `linux.resources` object of the OCI runtime spec 1.x, with the limits that are set; of checked values.

    `memory_bytes` alone sets no swap limit. Device paths are looked up now.

    Raises: InvalidSpec for a block device that does not exist.
    """
    memory = _set(
        limit=resources.memory_bytes,
        swap=resources.memory_swap_bytes,
        reservation=resources.memory_reservation_bytes,
    )
    cpu: dict[str, Any] = {}
    if resources.cpus:
        cpu = {"quota": round(parse_cpus(resources.cpus) * CPU_PERIOD_US), "period": CPU_PERIOD_US}
    cpu |= _set(shares=resources.cpu_shares, cpus=resources.cpuset_cpus, mems=resources.cpuset_mems)
    block = _set(weight=resources.blkio_weight)
    for attribute, name, *_ in _THROTTLES:
        limits: tuple[BlkioLimit, ...] = getattr(resources, attribute)
        if limits:
            block[name] = [_throttle(limit) for limit in limits]
    pids: dict[str, Any] = {}
    if resources.pids_limit is not None:
        pids = {"limit": resources.pids_limit if resources.pids_limit > 0 else files.NO_PIDS_LIMIT}
    return {key: value for key, value in _set(memory=memory, cpu=cpu, pids=pids, blockIO=block).items() if value}


def without_rates(resources: Resources) -> Resources:
    """The same without what `set_rates` puts in force."""
    return msgspec.structs.replace(resources, **{attribute: () for attribute, *_ in _THROTTLES})


def set_rates(cgroup: Cgroup, resources: Resources) -> None:
    """Put the rates of block devices in force in a cgroup that there is: `runc update` leaves them out, without a word.

    Raises: InvalidSpec for a block device that does not exist, NotSupported where the kernel does not take one.
    """
    host = cgroup.host
    hierarchy = host.hierarchy_of(_block(host)) or host.hierarchy_of("io")
    directory = files.open_directory(hierarchy.mount_point, files.split_path(cgroup.path)) if hierarchy else None
    try:
        for attribute, _, v1_file, v2_key in _THROTTLES:
            for limit in getattr(resources, attribute):
                found = _throttle(limit)
                device, rate = f"{found['major']}:{found['minor']}", found["rate"]
                if hierarchy is None or directory is None:
                    taken = False
                elif hierarchy.version == 1:
                    taken = _is_taken(directory, v1_file, f"{device} {rate}")
                else:
                    taken = _is_taken(directory, "io.max", f"{device} {v2_key}={rate}")
                if not taken:
                    raise NotSupported(f"{attribute} of {limit.path}: the kernel does not take it for {cgroup.path}")
    finally:
        if directory is not None:
            os.close(directory)


def _is_taken(directory: int, name: str, line: str) -> bool:
    try:
        return files.write(directory, name, line)
    except OSError:
        return False


def _set(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


# ---- memory ------------------------------------------------------------------------------------------------------


def _check_memory(resources: Resources, host: CgroupHost) -> None:
    limit = _whole("memory", resources.memory_bytes)
    swap = _whole("memory and swap", resources.memory_swap_bytes, lowest=-1)
    reservation = _whole("memory reservation", resources.memory_reservation_bytes)
    for name, value in (("memory", limit), ("memory reservation", reservation)):
        if 0 < value < MIN_MEMORY_BYTES:
            raise InvalidSpec(f"{name} {value} bytes: must be at least 6 MiB ({MIN_MEMORY_BYTES})")
    if swap > 0 and not limit:
        raise InvalidSpec(f"memory and swap {swap} bytes: needs a memory limit too, of which it is the sum with swap")
    if 0 < swap < limit:
        raise InvalidSpec(f"memory and swap {swap} bytes: must not be less than the memory limit, {limit}")
    if limit and reservation > limit:
        raise InvalidSpec(f"memory reservation {reservation} bytes: must not be more than the memory limit, {limit}")
    if not (limit or swap or reservation):
        return
    memory = _hierarchy(host, "memory", "a memory limit")
    swap_file = "memory.memsw.limit_in_bytes" if memory.version == 1 else "memory.swap.max"
    if swap > 0 and not _offers(memory, (swap_file,), beside="memory.stat"):
        raise NotSupported(
            f"memory and swap {swap} bytes: this kernel does not count swap ({swap_file} is missing): "
            "boot with swapaccount=1, or set no swap limit"
        )


# ---- CPU ---------------------------------------------------------------------------------------------------------


def _check_cpu(resources: Resources, host: CgroupHost, cpu_count: int) -> None:
    cpus = parse_cpus(resources.cpus) if resources.cpus is not None else 0.0
    shares = _whole("cpu shares", resources.cpu_shares)
    if shares and shares not in _CPU_SHARES:
        raise InvalidSpec(f"cpu shares {shares}: must be {_CPU_SHARES.start} to {_CPU_SHARES.stop - 1}")
    if 0 < cpus < MIN_CPUS:
        raise InvalidSpec(f"cpus {cpus:g}: must be at least {MIN_CPUS}")
    if cpus > cpu_count:
        raise NotSupported(f"cpus {cpus:g}: must be {MIN_CPUS} to {cpu_count}, which is what this host has")
    if not (cpus or shares):
        return
    cpu = _hierarchy(host, "cpu", "a cpu limit")
    quota_file = "cpu.cfs_quota_us" if cpu.version == 1 else "cpu.max"
    if cpus and not _offers(cpu, (quota_file,), beside="cpu.shares" if cpu.version == 1 else "cpu.weight"):
        raise NotSupported(f"cpus {cpus:g}: this kernel has no cpu quota ({quota_file} is missing): use cpu shares")


def _check_cpuset(wanted: str | None, kind: str, host: CgroupHost, parent: str) -> None:
    """Version 2 takes any list, and gives what it has in common with the cgroups above; nothing, then all of theirs."""
    if not wanted:
        return
    numbers = _parse_list(wanted, f"cpuset {kind}")
    cpuset = _hierarchy(host, "cpuset", f"cpuset {kind}")
    names = (f"cpuset.effective_{kind}", f"cpuset.{kind}") if cpuset.version == 1 else (f"cpuset.{kind}.effective",)
    place, available = _available(cpuset, files.split_path(parent) if parent != "/" else (), names)
    if available and not numbers <= _parse_list(available, f"{place} {kind}"):
        whose = "this host" if place == cpuset.mount_point else place
        raise NotSupported(f"cpuset {kind} {wanted!r}: {whose} has {available}")


def _available(cpuset: Hierarchy, above: tuple[str, ...], names: Sequence[str]) -> tuple[str, str]:
    """Directory and list of the nearest cgroup that has one: without the controller it has what those above have."""
    for depth in range(len(above), -1, -1):
        directory = files.open_directory(cpuset.mount_point, above[:depth])
        if directory is None:
            continue
        try:
            text = next((found.strip() for name in names if (found := files.read(directory, name))), "")
        finally:
            os.close(directory)
        if text:
            return os.path.join(cpuset.mount_point, *above[:depth]), text
    return cpuset.mount_point, ""


def _parse_list(text: str, name: str) -> set[int]:
    """Numbers of the kernel's list format: `0-2,5`."""
    numbers: set[int] = set()
    if len(text) > 4096 or not re.fullmatch(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", text, re.ASCII):
        raise InvalidSpec(f"{name} {text[:64]!r}: must be a list as 0-2,5")
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first) or int(last or first) >= _MAX_LISTED:
            raise InvalidSpec(f"{name} {text[:64]!r}: {part} is not a range of numbers below {_MAX_LISTED}")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


# ---- processes ---------------------------------------------------------------------------------------------------


def _check_pids(limit: int | None, host: CgroupHost) -> None:
    if _whole("pids limit", limit, lowest=-1) > files.NO_PIDS_LIMIT:
        raise InvalidSpec(f"pids limit {limit}: must be at most {files.NO_PIDS_LIMIT}, or -1 for no limit")
    if limit is not None and limit > 0:
        _hierarchy(host, "pids", "a pids limit")


# ---- block devices -----------------------------------------------------------------------------------------------


def _check_blkio(resources: Resources, host: CgroupHost) -> None:
    weight = _whole("blkio weight", resources.blkio_weight)
    if weight and weight not in _BLKIO_WEIGHTS:
        raise InvalidSpec(f"blkio weight {weight}: must be {_BLKIO_WEIGHTS.start} to {_BLKIO_WEIGHTS.stop - 1}")
    if weight:
        _check_weight(weight, _hierarchy(host, _block(host), "a blkio weight"))
    for attribute, _, v1_file, _ in _THROTTLES:
        limits: tuple[BlkioLimit, ...] = getattr(resources, attribute)
        for limit in limits:
            _throttle(limit)
        if limits:
            block = _hierarchy(host, _block(host), f"{attribute} of {limits[0].path}")
            name = v1_file if block.version == 1 else "io.max"
            beside = "blkio.reset_stats" if block.version == 1 else "io.stat"
            # The root of version 2 has io.stat, and never io.max.
            if not _offers(block, (name,), beside=beside, root=block.version == 1):
                raise NotSupported(f"{attribute} of {limits[0].path}: this kernel can't throttle ({name} is missing)")


def _check_weight(weight: int, block: Hierarchy) -> None:
    """A weight acts only through a scheduler that knows it; otherwise the file is there, and nothing happens."""
    names = ("blkio.weight", "blkio.bfq.weight") if block.version == 1 else ("io.weight", "io.bfq.weight")
    beside = "blkio.reset_stats" if block.version == 1 else "io.stat"
    enforced = _a_disk_is_scheduled_by("bfq", "cfq") or (block.version == 2 and _io_cost_is_on(block))
    if not enforced or not _offers(block, names, beside=beside, root=False):
        raise NotSupported(
            f"blkio weight {weight}: no disk of this host is scheduled by weight: "
            "run `echo bfq > /sys/block/DISK/queue/scheduler`, or set no weight"
        )


def _a_disk_is_scheduled_by(*schedulers: str) -> bool:
    chosen = {f"[{name}]" for name in schedulers}
    for disk in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{disk}/queue/scheduler", encoding="ascii") as file:
                if chosen & set(file.read().split()):
                    return True
        except OSError:  # the disk was unplugged, or has no queue
            continue
    return False


def _io_cost_is_on(block: Hierarchy) -> bool:
    directory = files.open_directory(block.mount_point, ())
    if directory is None:
        return False
    try:
        return "enable=1" in (files.read(directory, "io.cost.qos") or "").split()
    finally:
        os.close(directory)


def _block(host: CgroupHost) -> str:
    return "io" if host.layout == "v2" else "blkio"


def _throttle(limit: BlkioLimit) -> dict[str, int]:
    rate = _whole(f"rate of {limit.path!r}", limit.rate)
    if rate < 1:
        raise InvalidSpec(f"rate of {limit.path!r} {limit.rate!r}: must be 1 or more a second")
    if not limit.path.startswith("/") or "\0" in limit.path:
        raise InvalidSpec(f"device {limit.path!r}: must be an absolute path, as /dev/sda")
    try:
        found = os.stat(limit.path)
    except OSError as error:
        raise InvalidSpec(f"device {limit.path!r}: {(error.strerror or '').lower()}") from error
    if not stat.S_ISBLK(found.st_mode):
        raise InvalidSpec(f"device {limit.path!r}: is not a block device")
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    if os.path.exists(f"/sys/dev/block/{major}:{minor}/partition"):
        raise InvalidSpec(f"device {limit.path!r}: is a partition; only whole disks can be limited")
    return {"major": major, "minor": minor, "rate": rate}


# ---- common ------------------------------------------------------------------------------------------------------


def _whole(name: str, value: int | None, *, lowest: int = 0) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= MAX_BYTES:
        raise InvalidSpec(f"{name} {value!r}: must be a whole number of {lowest} or more")
    return value


def _hierarchy(host: CgroupHost, controller: str, what: str) -> Hierarchy:
    hierarchy = host.hierarchy_of(controller)
    if hierarchy is None and controller == "blkio" and host.unified is not None:
        hierarchy = host.hierarchy_of("io")
    if hierarchy is None:
        mend = f"boot with cgroup_enable={controller}"
        if host.layout != "v2":
            mend = f"run `mkdir -p /sys/fs/cgroup/{controller} && mount -t cgroup -o {controller} cgroup $_`"
        raise NotSupported(f"{what}: this host has no {controller} cgroup controller: {mend}")
    if hierarchy.read_only:
        raise NotSupported(f"{what}: {hierarchy.mount_point} is mounted read-only: run `mount -o remount,rw` on it")
    return hierarchy


def _offers(hierarchy: Hierarchy, wanted: Iterable[str], *, beside: str, root: bool = True) -> bool:
    """Whether the controller has one of the files `wanted`: seen in a cgroup that has `beside`, so is switched on.

    Many files exist only below the root (`root=False`). Without any cgroup to look at it is taken to have them; then
    the runtime's own refusal tells.
    """
    top = files.open_directory(hierarchy.mount_point, ())
    if top is None:
        return False
    try:
        if root and _has(top, "", wanted):
            return True
        seen = root and hierarchy.version == 1
        for name in files.subdirectories(top):
            if _has(top, f"{name}/", (beside,)):
                return _has(top, f"{name}/", wanted)
        return not seen
    finally:
        os.close(top)


def _has(directory: int, prefix: str, names: Iterable[str]) -> bool:
    return any(os.access(prefix + name, os.F_OK, dir_fd=directory, follow_symlinks=False) for name in names)
