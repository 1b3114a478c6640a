"""The tree's mount options are one set for the host: what somebody else's mount has taken away is set back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lighterman.runtimes.oci.cgroups import MountOptions, cgroup_host

pytestmark = [pytest.mark.real, pytest.mark.needs("v2")]


def options() -> tuple[str, str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[4] == "/sys/fs/cgroup":
            return mount.split()[5], source.split()[-1]
    raise AssertionError("no cgroups are mounted")


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def test_set_back_after_somebody_elses_mount(tmp_path: Path) -> None:
    kept, before = MountOptions(cgroup_host()), options()
    mount("-t", "cgroup2", "cgroup2", str(tmp_path))
    subprocess.run(["umount", str(tmp_path)], check=True)
    assert options()[1] != before[1], "this kernel keeps them by itself"
    kept.set_back()
    assert options() == before


def test_what_has_not_changed_is_left_alone() -> None:
    kept, before = MountOptions(cgroup_host()), options()
    kept.set_back()
    assert options() == before
