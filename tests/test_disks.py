"""Why a disk refuses: said by what the kernel says."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighterman import doctor
from lighterman.disks import check_writable, is_read_only, refusal
from lighterman.errors import StoreError
from lighterman.roots import StateRoot

if sys.platform != "linux":
    pytest.skip("mounts file systems", allow_module_level=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_read_only_file_system_is_seen_from_what_is_there_and_what_is_not(read_only: Path) -> None:
    assert is_read_only(str(read_only))
    assert is_read_only(str(read_only / "not" / "there"))
    with pytest.raises(StoreError, match=r"read-only.*the change did not happen"):
        check_writable(str(read_only / "not" / "there"))


def test_other_file_systems_are_not(tmp_path: Path) -> None:
    assert not is_read_only(str(tmp_path / "not" / "there"))
    check_writable(str(tmp_path))
    assert not os.listdir(tmp_path)


def test_what_is_said_does_not_come_from_a_text(tmp_path: Path, read_only: Path) -> None:
    said = refusal(str(tmp_path / "x"), OSError(errno.EROFS, "Read-only file system"))
    assert said == f"{tmp_path}/x: Read-only file system"  # of something else that it was about
    assert "mount it read-write again" in refusal(str(read_only / "x"), ValueError("disk I/O error"))
    assert refusal(str(tmp_path / "x"), ValueError("disk I/O error")) == f"{tmp_path}/x: disk I/O error"


def test_root_on_a_read_only_file_system_is_refused_in_one_line(read_only: Path) -> None:
    with pytest.raises(StoreError, match=f"state root can't be used: {read_only}/root: its file system is read-only"):
        StateRoot.of(read_only / "root").acquire()


def test_doctor_names_it_with_the_mount_to_mend(read_only: Path) -> None:
    (found,) = [one for one in doctor.examine(str(read_only / "root")) if one.name == "state root"]
    assert (found.status, found.remedy) == ("missing", f"mount -o remount,rw {read_only}")
    assert "which is read-only" in found.text
