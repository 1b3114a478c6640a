"""Directories of state: whose they may be, and who may take them for abandoned."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from lighterman import roots
from lighterman.errors import InvalidSpec, StoreError
from lighterman.roots import StateRoot, abandoned
from lighterman.trees import remove_tree


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(roots, "default_state", lambda: str(tmp_path / "state"))
    monkeypatch.setattr(roots, "default_run", lambda: str(tmp_path / "run"))
    return tmp_path


def _come_and_go(times: int) -> None:
    for _ in range(times):
        root = StateRoot.of(None)
        root.acquire()
        for left in abandoned():
            left.remove()
            left.release()
        assert os.path.exists(f"{root.state}/lock")
        assert os.path.isdir(root.run)
        root.remove()
        root.release()


def test_engines_that_come_and_go_at_the_same_time_take_nothing_from_each_other(default: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_come_and_go, args=(60,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    for left in abandoned():
        left.remove()
        left.release()
    assert list((default / "state/private").iterdir()) == []


def test_a_removal_that_was_interrupted_is_finished(default: Path) -> None:
    for name in (".gone-1", ".gone-2"):
        (default / "state/private" / name).mkdir(parents=True)
    (default / "state/private/.gone-1/upper").mkdir()
    (default / "state/private/.gone-1/lock").write_text("1")
    assert abandoned() == []
    assert list((default / "state/private").iterdir()) == []


def test_whole_though_the_keeper_removes_the_same_at_the_same_time(
    default: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = StateRoot.of(None)
    root.acquire()
    for name in ("containers/one", "containers/two", "exits"):
        (Path(root.state) / name).mkdir(parents=True)
    for name in ("containers/one/log", "exits/1", "state.db", "state.db-wal"):
        (Path(root.state) / name).write_text("x")
    unlink = os.unlink

    def faster(path: str, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        unlink(path, dir_fd=dir_fd)

    def much_faster(path: str) -> None:
        remove_tree(path)
        remove_tree(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", faster)
        patched.setattr("lighterman.roots.remove_tree", much_faster)
        root.remove()
    root.release()
    assert list((default / "state/private").iterdir()) == []


def test_a_directory_with_something_else_is_refused_and_left_as_it_is(default: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "letter").write_text("x")
    with pytest.raises(InvalidSpec, match="holds something else"):
        StateRoot.of(home).acquire()
    assert home.stat().st_mode & 0o777 == 0o755
    assert os.listdir(home) == ["letter"]
    (home / "letter").unlink()
    for _ in range(2):
        root = StateRoot.of(home)
        root.acquire()
        root.release()
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_directory_of_somebody_else_is_refused(default: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a directory away needs root")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 4711, 4711)
    with pytest.raises(InvalidSpec, match="belongs to user 4711"):
        StateRoot.of(theirs).acquire()


def test_a_root_whose_lock_can_not_be_written_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    before = os.listdir("/proc/self/fd")
    root = StateRoot.of(tmp_path / "root")
    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", refuse)
        with pytest.raises(StoreError, match="can't be used"):
            root.acquire()
    assert os.listdir("/proc/self/fd") == before
    root.acquire()
    root.remove_run()
    root.release()


def test_of_a_run_part_that_can_not_be_removed_the_rest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = StateRoot.of(tmp_path / "root")
    root.acquire()
    exits = Path(root.state) / "exits"
    exits.mkdir()

    def refuse(path: str) -> None:
        if path == str(exits):
            raise OSError(errno.EROFS, "Read-only file system")
        remove_tree(path)

    monkeypatch.setattr(roots, "remove_tree", refuse)
    root.remove_run()
    root.release()
    assert not os.path.exists(root.run)
    assert f"{exits} stays: {exits}: Read-only file system" in caplog.text
