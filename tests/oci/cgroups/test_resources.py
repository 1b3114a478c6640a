from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cgroup_support import plain_v2

from lighterman.errors import InvalidSpec, NotSupported
from lighterman.runtimes.oci.cgroups import (
    Cgroup,
    CgroupHost,
    Hierarchy,
    check_resources,
    resources_to_oci,
    set_rates,
    without_rates,
)
from lighterman.spec import BlkioLimit, Resources

MIB = 1024 * 1024


@pytest.fixture
def host(tmp_path: Path) -> CgroupHost:
    host = plain_v2(tmp_path)
    (tmp_path / "cpuset.cpus.effective").write_text("0-3\n")
    (tmp_path / "cpuset.mems.effective").write_text("0\n")
    switched_on = ("cpu.weight", "cpu.max", "memory.stat", "memory.swap.max", "io.stat", "io.max", "pids.max")
    for name in switched_on:
        (tmp_path / "lighterman" / name).write_text("")
    return host


@pytest.fixture
def bare_v1(tmp_path: Path) -> CgroupHost:
    """Version 1 of a kernel that lacks all that is optional."""
    hierarchies = []
    for controller, names in (
        ("memory", ("memory.limit_in_bytes",)),
        ("cpu", ("cpu.shares",)),
        ("blkio", ("blkio.reset_stats",)),
    ):
        directory = tmp_path / controller
        directory.mkdir()
        for name in names:
            (directory / name).write_text("")
        hierarchies.append(
            Hierarchy(mount_point=str(directory), version=1, controllers=frozenset({controller}), read_only=False)
        )
    return CgroupHost(layout="v1", hierarchies=tuple(hierarchies))


def block_device() -> str:
    for name in sorted(os.listdir("/dev")):
        path = f"/dev/{name}"
        if stat.S_ISBLK(os.stat(path).st_mode) and not list(Path("/sys/class/block", name).glob("partition")):
            return path
    pytest.skip("no block device in /dev")


GOOD: list[Any] = [
    {},
    {"memory_bytes": 6 * MIB},
    {"memory_bytes": 64 * MIB, "memory_swap_bytes": 64 * MIB},
    {"memory_bytes": 64 * MIB, "memory_swap_bytes": -1, "memory_reservation_bytes": 32 * MIB},
    {"memory_bytes": 0, "memory_swap_bytes": 0, "cpus": 0, "cpu_shares": 0, "pids_limit": 0, "blkio_weight": 0},
    {"cpus": 4},
    {"cpus": 0.01, "cpu_shares": 2},
    {"cpu_shares": 262144},
    {"cpuset_cpus": "0-2,3", "cpuset_mems": "0"},
    {"pids_limit": -1},
    {"pids_limit": 1},
]


@pytest.mark.parametrize("limits", GOOD, ids=repr)
def test_check_accepts_what_docker_accepts(limits: dict[str, Any], host: CgroupHost) -> None:
    check_resources(Resources(**limits), host, cpu_count=4)


WRONG: list[Any] = [
    ({"memory_bytes": 6 * MIB - 1}, "6 MiB"),
    ({"memory_bytes": -1}, "memory -1"),
    ({"memory_bytes": 2**63}, "memory 9223372036854775808"),
    ({"memory_bytes": True}, "memory True"),
    ({"memory_bytes": 1e9}, "memory 1000000000.0"),
    ({"memory_reservation_bytes": 1}, "6 MiB"),
    ({"memory_swap_bytes": 64 * MIB}, "needs a memory limit"),
    ({"memory_swap_bytes": -2}, "-2"),
    ({"memory_bytes": 64 * MIB, "memory_swap_bytes": 63 * MIB}, "must not be less than"),
    ({"memory_bytes": 64 * MIB, "memory_reservation_bytes": 65 * MIB}, "must not be more than"),
    ({"cpus": 0.001}, "at least 0.01"),
    ({"cpus": -1.0}, "-1.0"),
    ({"cpus": math.nan}, "nan"),
    ({"cpus": math.inf}, "inf"),
    ({"cpu_shares": 1}, "2 to 262144"),
    ({"cpu_shares": 262145}, "2 to 262144"),
    ({"cpuset_cpus": "0-"}, "'0-'"),
    ({"cpuset_cpus": "3-1"}, "3-1"),
    ({"cpuset_cpus": "0-99999"}, "0-99999"),
    ({"cpuset_mems": "zero"}, "'zero'"),
    ({"cpuset_cpus": "0\n"}, "must be a list"),
    ({"pids_limit": -2}, "-2"),
    ({"pids_limit": 2**40}, "at most"),
    ({"blkio_weight": 9}, "10 to 1000"),
    ({"blkio_weight": 1001}, "10 to 1000"),
    ({"device_read_bps": (BlkioLimit(path="/dev/null", rate=1),)}, "not a block device"),
    ({"device_read_bps": (BlkioLimit(path="/dev/nowhere", rate=1),)}, "no such file"),
    ({"device_write_bps": (BlkioLimit(path="sda", rate=1),)}, "absolute"),
    ({"device_read_iops": (BlkioLimit(path="/dev/null", rate=0),)}, "1 or more"),
    ({"device_write_iops": (BlkioLimit(path="/dev/\0", rate=1),)}, "absolute"),
]


@pytest.mark.parametrize(("limits", "text"), WRONG, ids=repr)
def test_check_refuses_what_no_host_takes(limits: dict[str, Any], text: str, host: CgroupHost) -> None:
    with pytest.raises(InvalidSpec) as refused:
        check_resources(Resources(**limits), host, cpu_count=4)
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("deep", ["/lighterman", "/system.slice/lighterman-0.scope/lighterman"])
@pytest.mark.parametrize("has_own", [True, False])
def test_cpuset_is_checked_against_the_cgroup_it_will_be_below(tmp_path: Path, deep: str, has_own: bool) -> None:
    host = plain_v2(tmp_path)
    (tmp_path / "cpuset.cpus.effective").write_text("0-3\n")
    for limited in (tmp_path / deep.split("/")[1], *([tmp_path / deep[1:]] if has_own else [])):
        limited.mkdir(parents=True, exist_ok=True)
        (limited / "cpuset.cpus.effective").write_text("0\n")
    check_resources(Resources(cpuset_cpus="0"), host, parent=deep)
    check_resources(Resources(cpuset_cpus="0-3"), host, parent="/")
    for wanted in ("1", "0-1"):
        with pytest.raises(NotSupported, match=f"{deep if has_own else deep.split('/')[1]} has 0$"):
            check_resources(Resources(cpuset_cpus=wanted), host, parent=deep)


@pytest.mark.parametrize(
    ("limits", "text"),
    [({"cpus": 4.01}, "0.01 to 4"), ({"cpuset_cpus": "0,4"}, "0-3"), ({"cpuset_mems": "1"}, "has 0")],
    ids=repr,
)
def test_check_refuses_what_this_host_has_not(limits: dict[str, Any], text: str, host: CgroupHost) -> None:
    with pytest.raises(NotSupported, match=text):
        check_resources(Resources(**limits), host, cpu_count=4)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"memory_bytes": 64 * MIB, "memory_swap_bytes": 65 * MIB}, "memory.memsw.limit_in_bytes"),
        ({"cpus": 1}, "cpu.cfs_quota_us"),
        ({"cpuset_cpus": "0"}, "mount -t cgroup -o cpuset"),
        ({"pids_limit": 10}, "mount -t cgroup -o pids"),
        ({"blkio_weight": 100}, "scheduled by weight"),
    ],
    ids=repr,
)
def test_check_refuses_what_the_kernel_would_not_enforce(
    limits: dict[str, Any], text: str, bare_v1: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotSupported, match=text):
        check_resources(Resources(**limits), bare_v1, cpu_count=4)
    check_resources(Resources(memory_bytes=64 * MIB, cpu_shares=100, pids_limit=-1), bare_v1)


def test_check_refuses_swap_where_version_2_does_not_count_it(host: CgroupHost, tmp_path: Path) -> None:
    (tmp_path / "lighterman/memory.swap.max").unlink()
    with pytest.raises(NotSupported, match=r"memory\.swap\.max"):
        check_resources(Resources(memory_bytes=64 * MIB, memory_swap_bytes=65 * MIB), host)


def test_check_refuses_a_hierarchy_that_is_mounted_read_only(tmp_path: Path) -> None:
    hierarchy = Hierarchy(mount_point=str(tmp_path), version=1, controllers=frozenset({"pids"}), read_only=True)
    with pytest.raises(NotSupported, match="read-only"):
        check_resources(Resources(pids_limit=5), CgroupHost(layout="v1", hierarchies=(hierarchy,)))


def test_check_refuses_throttling_that_the_kernel_lacks(bare_v1: CgroupHost, host: CgroupHost) -> None:
    limits = Resources(device_read_bps=(BlkioLimit(path=block_device(), rate=1000),))
    with pytest.raises(NotSupported, match=r"blkio\.throttle\.read_bps_device"):
        check_resources(limits, bare_v1)
    check_resources(limits, host)


def test_to_oci_of_nothing_is_nothing() -> None:
    assert resources_to_oci(Resources()) == {}
    assert resources_to_oci(Resources(memory_bytes=0, cpus=0, cpu_shares=0)) == {}


def test_to_oci_of_memory_alone_sets_no_swap_limit() -> None:
    assert resources_to_oci(Resources(memory_bytes=64 * MIB)) == {"memory": {"limit": 64 * MIB}}


def test_to_oci_of_all() -> None:
    path = block_device()
    number = os.stat(path).st_rdev
    throttle = [{"major": os.major(number), "minor": os.minor(number), "rate": 7}]
    limits = (BlkioLimit(path=path, rate=7),)
    assert resources_to_oci(
        Resources(
            memory_bytes=64 * MIB,
            memory_swap_bytes=-1,
            memory_reservation_bytes=32 * MIB,
            cpus=1.5,
            cpu_shares=512,
            cpuset_cpus="0",
            cpuset_mems="0",
            pids_limit=64,
            blkio_weight=100,
            device_read_bps=limits,
            device_write_bps=limits,
            device_read_iops=limits,
            device_write_iops=limits,
        )
    ) == {
        "memory": {"limit": 64 * MIB, "swap": -1, "reservation": 32 * MIB},
        "cpu": {"quota": 150000, "period": 100000, "shares": 512, "cpus": "0", "mems": "0"},
        "pids": {"limit": 64},
        "blockIO": {
            "weight": 100,
            "throttleReadBpsDevice": throttle,
            "throttleWriteBpsDevice": throttle,
            "throttleReadIOPSDevice": throttle,
            "throttleWriteIOPSDevice": throttle,
        },
    }


@pytest.mark.parametrize("limit", [0, -1])
def test_to_oci_of_no_pids_limit_lifts_it(limit: int) -> None:
    """crun 1.8 fails with -1 and ignores 0: the largest number that the kernel takes stands for it."""
    assert resources_to_oci(Resources(pids_limit=limit)) == {"pids": {"limit": 4194304}}


@pytest.mark.parametrize(
    ("attribute", "key"),
    [
        ("device_read_bps", "rbps"),
        ("device_write_bps", "wbps"),
        ("device_read_iops", "riops"),
        ("device_write_iops", "wiops"),
    ],
)
def test_rates_of_version_2_and_where_the_kernel_takes_none(tmp_path: Path, attribute: str, key: str) -> None:
    cgroup = Cgroup("/lighterman/c1", plain_v2(tmp_path, io__max=""))
    path = block_device()
    number = os.stat(path).st_rdev
    rates = Resources(**{attribute: (BlkioLimit(path=path, rate=7),)})  # type: ignore[arg-type]
    set_rates(cgroup, rates)
    written = tmp_path / "lighterman/c1/io.max"
    assert written.read_text() == f"{os.major(number)}:{os.minor(number)} {key}=7"
    written.unlink()
    with pytest.raises(NotSupported, match=f"{attribute} of {path}"):
        set_rates(cgroup, rates)
    assert without_rates(rates) == Resources()
