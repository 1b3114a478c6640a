"""Where the keeper looks for control groups, and how it ends one, on plain directories in their place."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighterman.keeper import cgroup


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "_ROOT", str(tmp_path))
    for name in ("memory", "freezer"):
        (tmp_path / name).mkdir()
    return tmp_path


def line(point: object, *, device: str, root: str = "/", kind: str = "cgroup") -> str:
    return f"32 31 {device} {root} {point} rw,nosuid shared:9 - {kind} {kind} rw,memory\n"


def device(path: Path) -> str:
    found = path.stat().st_dev
    return f"{os.major(found)}:{os.minor(found)}"


def test_a_part_of_the_tree_that_is_bound_elsewhere_is_no_place_for_groups(root: Path) -> None:
    here = device(root)
    whole = line(root, device=here, kind="cgroup2")
    for other in (
        line("/srv/tree", device=here, kind="cgroup2"),
        line("/srv/part", device=here, root="/system.slice", kind="cgroup2"),
        line(root / "memory", device=here, root="/system.slice", kind="cgroup2"),
    ):
        assert cgroup.mounts_in(whole + other) == [str(root)]
        assert cgroup.mounts_in(other + whole) == [str(root)]


def test_in_a_container_the_part_that_is_there_is_all_there_is(root: Path) -> None:
    part = line(root / "memory", device=device(root), root="/docker/box")
    assert cgroup.mounts_in(part) == [str(root / "memory")]


def test_what_is_covered_is_not_there(root: Path) -> None:
    assert cgroup.mounts_in(line(root / "memory", device="0:0")) == []
    assert cgroup.mounts_in(line(root / "gone", device=device(root))) == []


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_a_group_that_can_not_be_thawed_is_ended_all_the_same(root: Path, sleeper: subprocess.Popen[bytes]) -> None:
    group = root / "freezer/box"
    group.mkdir()
    # As one that vanishes between the look and the write.
    (group / "freezer.state").mkdir()
    (group / "cgroup.procs").write_text(f"{sleeper.pid}\n")
    cgroup._kill_members(str(group))
    assert sleeper.wait() == -9
