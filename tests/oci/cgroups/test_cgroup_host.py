from __future__ import annotations

from pathlib import Path

import pytest

from lighterman.errors import NotSupported
from lighterman.runtimes.oci.cgroups.host import read_host

V1 = frozenset({"cpu", "cpuacct", "memory", "pids", "hugetlb", "blkio", "freezer"})


def mount(number: int, where: str, kind: str, options: str, flags: str = "rw,relatime") -> str:
    return f"{number} 31 0:{number} / {where} {flags} shared:9 - {kind} {kind} {options}\n"


def test_version_1_with_two_controllers_in_one_hierarchy() -> None:
    text = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
        + mount(32, "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
        + mount(33, "/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,name=systemd")
        + mount(34, "/sys/fs/cgroup/memory", "cgroup", "rw,memory", flags="ro,nosuid")
        + mount(35, "/elsewhere/pids", "cgroup", "rw,pids")
    )
    host = read_host(text, V1)
    assert host.layout == "v1"
    assert [sorted(h.controllers) for h in host.hierarchies] == [["cpu", "cpuacct"], ["name=systemd"], ["memory"]]
    assert host.unified is None
    assert host.freezer is None
    assert host.hierarchy_of("pids") is None
    memory = host.hierarchy_of("memory")
    assert memory is not None
    assert memory.read_only
    assert host.left_over == ()
    assert host.remedy is None


def test_hybrid_names_the_left_over_controllers_and_the_command(tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified/cgroup.controllers").write_text("io hugetlb\n")
    text = mount(32, f"{root}/memory", "cgroup", "rw,memory") + mount(33, f"{root}/unified", "cgroup2", "rw")
    host = read_host(text, V1, root)
    assert host.layout == "hybrid"
    assert host.left_over == ("hugetlb", "io")
    assert host.remedy == (
        f"mkdir -p {root}/hugetlb && mount -t cgroup -o hugetlb cgroup {root}/hugetlb; "
        f"mkdir -p {root}/blkio && mount -t cgroup -o blkio cgroup {root}/blkio"
    )
    assert host.freezer is host.unified


def test_version_2_at_the_root_hides_what_lies_below(tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    text = mount(30, root, "cgroup2", "rw,nsdelegate,memory_localevents") + mount(
        31, f"{root}/net_cls", "cgroup", "rw,net_cls"
    )
    host = read_host(text, V1, root)
    assert host.layout == "v2"
    assert len(host.hierarchies) == 1
    assert host.hierarchies[0].local_events
    assert host.hierarchy_of("io") is host.unified is host.freezer


def test_a_part_that_is_bound_beside_the_whole_is_no_hierarchy() -> None:
    whole = mount(32, "/sys/fs/cgroup/memory", "cgroup", "rw,memory")
    part = whole.replace(" / /sys/fs/cgroup/memory ", " /lighterman /sys/fs/cgroup/part ")
    for text in (whole + part, part + whole):
        assert [one.mount_point for one in read_host(text, V1).hierarchies] == ["/sys/fs/cgroup/memory"]
    # In a container it is all there is.
    assert [one.mount_point for one in read_host(part, V1).hierarchies] == ["/sys/fs/cgroup/part"]


def test_escaped_mount_points_are_read() -> None:
    host = read_host(mount(30, "/a\\040b/pids", "cgroup", "rw,pids"), V1, "/a b")
    assert host.hierarchies[0].mount_point == "/a b/pids"


@pytest.mark.parametrize("text", ["", "\n", "nonsense", "1 2 3 - cgroup", "31 23 0:28 / /sys rw - sysfs sysfs rw\n"])
def test_a_host_without_cgroups_is_refused_with_the_command(text: str) -> None:
    with pytest.raises(NotSupported, match="mount -t cgroup2"):
        read_host(text, V1)
