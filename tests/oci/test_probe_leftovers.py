"""A probe that is killed leaves its directory; the next one takes it away, and none that is in use."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lighterman.runtimes.oci.probe import probe_all

# A runtime that says its version, and kills who asks it for a container.
KILLS = '#!/bin/sh\n[ "$1" = --version ] && { echo crun version 1; exit 0; }\nkill -9 "$PPID"\n'
PROBE = "import sys; from lighterman.runtimes.oci.probe import probe_all; probe_all(search=sys.argv[1])"
OLD = 3600.0


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def made(parent: Path, name: str, age_s: float = OLD) -> Path:
    directory = parent / f"lighterman-probe-{name}"
    (directory / "rootfs/proc").mkdir(parents=True)
    (directory / "state/x").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    then = time.time() - age_s
    os.utime(directory, (then, then))
    return directory


def probe(tmp_path: Path) -> None:
    probe_all(search=str(tmp_path / "no-runtime-here"))


def test_a_killed_probe_is_cleared_away_by_the_next(tmp_path: Path, temporary: Path) -> None:
    runtime = tmp_path / "bin" / "crun"
    runtime.parent.mkdir()
    runtime.write_text(KILLS)
    runtime.chmod(0o755)
    killed = subprocess.run(
        [sys.executable, "-c", PROBE, str(runtime.parent)], env={**os.environ, "TMPDIR": str(temporary)}, check=False
    )
    assert killed.returncode == -9
    (left,) = temporary.iterdir()
    os.utime(left, (0, 0))
    probe(tmp_path)
    assert list(temporary.iterdir()) == []


def test_only_what_is_old_and_not_in_use_is_cleared_away(tmp_path: Path, temporary: Path) -> None:
    made(temporary, "old")
    young, used = made(temporary, "young", age_s=0), made(temporary, "used")
    other = temporary / "lighterman-other"
    other.mkdir()
    os.utime(other, (0, 0))
    lock = os.open(used, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        probe(tmp_path)
        assert set(temporary.iterdir()) == {young, used, other}
    finally:
        os.close(lock)
    probe(tmp_path)
    assert set(temporary.iterdir()) == {young, other}


def test_no_link_is_followed(tmp_path: Path, temporary: Path) -> None:
    target = made(tmp_path, "elsewhere")
    link = temporary / "lighterman-probe-link"
    link.symlink_to(target)
    os.utime(link, (0, 0), follow_symlinks=False)
    inside = made(temporary, "inside")
    (inside / "rootfs/link").symlink_to(target)
    os.utime(inside, (0, 0))
    probe(tmp_path)
    assert set(temporary.iterdir()) == {link}
    assert (target / "config.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away, which needs root")
def test_what_is_somebody_elses_stays(tmp_path: Path, temporary: Path) -> None:
    theirs = made(temporary, "theirs")
    os.chown(theirs, 12345, 12345)
    probe(tmp_path)
    assert set(temporary.iterdir()) == {theirs}


def test_no_temporary_directory_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert probe_all(search=str(tmp_path / "no-runtime-here")) == ()
