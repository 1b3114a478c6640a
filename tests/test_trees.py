"""Removing what a container has made: nothing of its shape may matter."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from lighterman.trees import remove_tree


def _make_deep(top: Path, levels: int) -> None:
    """By relative steps: the whole path is longer than the kernel takes."""
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_a_tree_deeper_than_recursion_and_descriptors_go_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    _make_deep(top, 5000)
    remove_tree(str(top))
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "link").symlink_to(outside)
    os.link(top / "a" / "link", top / "hard")
    (top / "a" / "b" / "\udcff").write_text("x")
    os.mkfifo(top / "fifo")
    remove_tree(str(top))
    assert not top.exists()
    assert (outside / "kept").is_dir()
    link = tmp_path / "link"
    link.symlink_to(outside)
    with pytest.raises(OSError, match="directory"):
        remove_tree(str(link))
    assert (outside / "kept").is_dir()


def test_nothing_that_is_mounted_in_it_is_emptied(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    top, source = tmp_path / "top", tmp_path / "source"
    (top / "mounted").mkdir(parents=True)
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", top / "mounted"], check=True)
    try:
        (top / "mounted" / "kept").write_text("x")
        with pytest.raises(OSError, match="mounted in it"):
            remove_tree(str(top))
        assert (top / "mounted" / "kept").exists()
    finally:
        subprocess.run(["umount", top / "mounted"], check=True)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        remove_tree(str(tmp_path / "none"))


def test_others_remove_it_at_the_same_time(tmp_path: Path) -> None:
    """A keeper and an engine do so with a private root whose owner was killed."""
    for number in range(5):
        top = tmp_path / f"top{number}"
        for first in range(20):
            for second in range(10):
                (top / str(first) / str(second)).mkdir(parents=True)
                (top / str(first) / str(second) / "file").touch()
        other = subprocess.Popen(["rm", "-rf", "--", str(top)])
        with contextlib.suppress(FileNotFoundError):
            remove_tree(str(top))
        assert not top.exists()
        other.wait()
    assert list(tmp_path.iterdir()) == []
