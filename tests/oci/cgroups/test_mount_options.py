"""The tree's mount options are one set for the host: what somebody else's mount has taken away is set back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lighterman.runtimes.oci.cgroups import MountOptions, cgroup_host

pytestmark = pytest.mark.real

needs_v2 = pytest.mark.needs("v2")

KILLED = """
import os, signal, sys
from lighterman.runtimes.oci.cgroups import MountOptions, cgroup_host
MountOptions(cgroup_host(), sys.argv[1]).begin()
os.kill(os.getpid(), signal.SIGKILL)
"""


def options() -> tuple[str, str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[4] == "/sys/fs/cgroup":
            return mount.split()[5], source.split()[-1]
    raise AssertionError("no cgroups are mounted")


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def take_away(directory: Path) -> None:
    """As CRIU does."""
    before = options()
    mount("-t", "cgroup2", "cgroup2", str(directory))
    subprocess.run(["umount", str(directory)], check=True)
    assert options()[1] != before[1], "this kernel keeps them by itself"


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    directory = tmp_path / "there"
    directory.mkdir()
    return directory


@needs_v2
def test_set_back_after_somebody_elses_mount(run: str, there: Path) -> None:
    kept, before = MountOptions(cgroup_host(), run), options()
    kept.begin()
    take_away(there)
    kept.end()
    assert options() == before


@needs_v2
@pytest.mark.parametrize("first_ends_first", [True, False])
def test_set_back_by_the_last_of_calls_that_overlap(run: str, there: Path, first_ends_first: bool) -> None:
    before = options()
    calls = [MountOptions(cgroup_host(), run) for _ in range(2)]
    calls[0].begin()
    take_away(there)
    # It finds them gone already.
    calls[1].begin()
    for call in calls if first_ends_first else reversed(calls):
        call.end()
    assert options() == before


@needs_v2
def test_set_back_after_a_kill(run: str, there: Path) -> None:
    before = options()
    killed = subprocess.run([sys.executable, "-c", KILLED, run], check=False)
    assert killed.returncode == -signal.SIGKILL
    take_away(there)
    MountOptions(cgroup_host(), run).recover()
    assert options() == before


@needs_v2
def test_what_has_not_changed_is_left_alone(run: str) -> None:
    kept, before = MountOptions(cgroup_host(), run), options()
    kept.begin()
    kept.end()
    assert options() == before


# ---- what stands in the record, on any host --------------------------------------------------------------------------


class Tree(MountOptions):
    """One whose options are a variable."""

    now = ("rw,nosuid", "rw,nsdelegate")

    def __init__(self, directory: str) -> None:
        super().__init__(cgroup_host(), directory)
        self._path = "/nowhere"

    def _read(self) -> tuple[str, str] | None:
        return Tree.now

    def _set_back(self, words: str, options: str) -> None:
        Tree.now = words, options


@pytest.fixture
def tree(run: str, monkeypatch: pytest.MonkeyPatch) -> list[Tree]:
    monkeypatch.setattr(Tree, "now", Tree.now)
    return [Tree(run) for _ in range(3)]


LOST = ("rw,nosuid", "rw")


def test_the_last_end_sets_back_what_the_first_has_found(tree: list[Tree], run: str) -> None:
    before = Tree.now
    for call in tree:
        call.begin()
        Tree.now = LOST
    for call in tree[:-1]:
        call.end()
        assert Tree.now == LOST
    tree[-1].end()
    assert Tree.now == before
    assert not [name for name in os.listdir(run) if name == "cgroup-options"]


def test_one_that_never_began_sets_nothing_back(tree: list[Tree]) -> None:
    tree[0].begin()
    Tree.now = LOST
    tree[1].end()
    tree[1].recover()
    assert Tree.now == LOST
    tree[0].end()
    assert Tree.now != LOST


def test_what_a_killed_call_has_found_is_not_lost(tree: list[Tree]) -> None:
    before = Tree.now
    tree[0].begin()
    Tree.now = LOST
    assert tree[0]._call is not None
    os.close(tree[0]._call)  # as the kernel does for who is killed
    tree[1].begin()
    assert Tree.now == before
    Tree.now = LOST
    tree[1].end()
    assert Tree.now == before
    tree[2].recover()
    assert Tree.now == before
