from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from lighterman import doctor
from lighterman.doctor import Finding
from lighterman.runtimes.oci import mounts
from lighterman.runtimes.oci.cgroups import CgroupHost, Hierarchy

if sys.platform != "linux":
    pytest.skip("the findings are about Linux", allow_module_level=True)


def tree(*controllers: str, version: int = 1, read_only: bool = False) -> Hierarchy:
    return Hierarchy(
        mount_point="/sys/fs/cgroup/x",
        version=version,  # type: ignore[arg-type]
        controllers=frozenset(controllers),
        read_only=read_only,
    )


def test_examine_looks_at_everything_once_and_changes_nothing(tmp_path: Path) -> None:
    cgroups = sorted(os.listdir("/sys/fs/cgroup")) if os.path.isdir("/sys/fs/cgroup") else []
    descriptors = len(os.listdir("/proc/self/fd"))
    findings = doctor.examine(str(tmp_path / "state"))
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names))
    assert {"python", "kernel", "root", "cgroups", "overlay", "state root", "seccomp", "apparmor"} <= set(names)
    assert {"init", "busybox", "tar", "skopeo", "user namespaces", "pidfd", "open files", "inotify"} <= set(names)
    assert {"crun", "youki", "runc", "runtime"} & set(names)
    assert all("\n" not in finding.text for finding in findings)
    assert not (tmp_path / "state").exists()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert cgroups == (sorted(os.listdir("/sys/fs/cgroup")) if os.path.isdir("/sys/fs/cgroup") else [])


def test_render_shows_the_remedy_of_what_is_not_ok() -> None:
    text = doctor.render(
        [
            Finding(name="a", status="ok", text="fine", remedy="never shown"),
            Finding(name="longer", status="missing", text="gone", remedy="apt-get install -y it"),
            Finding(name="b", status="warning", text="hm"),
        ]
    )
    assert text.splitlines() == [
        "ok       a       fine",
        "missing  longer  gone",
        "                 run: apt-get install -y it",
        "warning  b       hm",
        "3 looked at: 1 missing, 1 with a warning",
    ]


@pytest.mark.parametrize(("version", "status"), [((3, 10, 9), "missing"), ((3, 11, 0), "ok"), ((4, 0, 0), "ok")])
def test_python_of_a_version(version: tuple[int, ...], status: str) -> None:
    assert doctor._python(version).status == status


@pytest.mark.parametrize(
    ("release", "status", "lacks"),
    [
        ("4.19.0-27-amd64", "missing", "pidfds"),
        ("5.10.0-32-amd64", "warning", "attributes of detached mounts"),
        ("6.1.0-30-amd64", "ok", "128 layers"),
        ("6.12.3", "ok", "exit codes from the kernel"),
        ("6.18", "ok", ""),
    ],
)
def test_kernel_of_a_release_says_what_it_lacks(release: str, status: str, lacks: str) -> None:
    finding = doctor._kernel(release)
    assert finding.status == status
    assert lacks in finding.text
    assert ("lacks" in finding.text) is bool(lacks)
    assert (finding.remedy is None) is (status == "ok")


@pytest.mark.parametrize(("runtimes", "status"), [(["crun"], "missing"), (["crun", "runc"], "warning")])
def test_hybrid_cgroups_with_left_overs_name_crun_and_the_command(runtimes: list[str], status: str) -> None:
    host = CgroupHost(layout="hybrid", hierarchies=(), left_over=("hugetlb",), remedy="mount it")
    finding = doctor._cgroups(host, runtimes)
    assert finding.status == status
    assert "crun refuses" in finding.text
    assert "hugetlb" in finding.text
    assert finding.remedy == "mount it"


def test_cgroups_mounted_read_only_are_missing() -> None:
    host = CgroupHost(layout="v2", hierarchies=(tree("memory", version=2, read_only=True),))
    finding = doctor._cgroups(host, ["crun"])
    assert finding.status == "missing"
    assert finding.remedy == "mount -o remount,rw /sys/fs/cgroup/x"


def test_limits_without_a_controller_are_named() -> None:
    full = CgroupHost(layout="v2", hierarchies=(tree("memory", "cpu", "cpuset", "pids", "io", version=2),))
    assert doctor._limits(full).status == "ok"
    finding = doctor._limits(CgroupHost(layout="v1", hierarchies=(tree("memory", "cpu", "cpuset", "blkio"),)))
    assert finding.status == "warning"
    assert "pids" in finding.text
    assert finding.remedy
    assert "mount -t cgroup -o pids" in finding.remedy


def test_runtimes_none_and_only_the_slow_one() -> None:
    (none,) = doctor._runtimes({})
    assert none.status == "missing"
    assert none.remedy == "apt-get install -y crun runc"
    assert [finding.status for finding in doctor._runtimes({"runc": "1.1"})] == ["ok", "warning"]
    assert [finding.status for finding in doctor._runtimes({"crun": "1.8", "runc": "1.1"})] == ["ok", "ok"]


def test_version_of_a_runtime_that_fails_is_said(tmp_path: Path) -> None:
    program = tmp_path / "crun"
    program.write_text("#!/bin/sh\necho crun version 9\necho more\n")
    program.chmod(0o755)
    assert doctor._version_of(str(program)) == f"crun version 9 ({program})"
    program.write_bytes(b"\x7fELF nonsense")
    assert "does not tell its version" in doctor._version_of(str(program))


@pytest.mark.parametrize(("kind", "status"), [("ext4", "ok"), ("tmpfs", "warning"), ("overlay", "missing")])
def test_state_root_on_a_file_system(kind: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def filesystem_of(path: str) -> str:
        asked.append(path)
        return kind

    monkeypatch.setattr(doctor, "filesystem_of", filesystem_of)
    assert doctor._state_root(str(tmp_path / "not/there/yet")).status == status
    assert asked == [str(tmp_path)]


def test_state_root_is_really_looked_up() -> None:
    assert mounts.filesystem_of("/proc") in doctor._state_root("/proc").text


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        ((1024, 1024), "warning"),
        ((1024, 1 << 20), "warning"),
        ((4096, 4096), "ok"),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "ok"),
    ],
)
def test_open_files_of_a_limit(limits: tuple[int, int], status: str) -> None:
    assert doctor._open_files(limits).status == status
