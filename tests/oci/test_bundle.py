"""The bundle: what is ours is taken away, what is not is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lighterman.runtimes.oci.bundle import Bundle


def test_what_a_killed_runtime_has_left_of_its_pid_files_goes(tmp_path: Path) -> None:
    bundle = Bundle(str(tmp_path / "box"))
    bundle.make()
    for name in (".pid", "exec-1.pid", ".exec-1.pid"):
        Path(bundle.path, name).write_text("1")
    assert bundle.remove() == []
    assert not Path(bundle.path).exists()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to mount")
def test_what_a_killed_runtime_has_left_of_its_binary_goes(tmp_path: Path) -> None:
    bundle = Bundle(str(tmp_path / "box"))
    bundle.make()
    for name in ("crun.aBcDeF", "runc.123456"):
        Path(bundle.path, name).touch()
    subprocess.run(["mount", "--bind", shutil.which("true") or "/bin/true", f"{bundle.path}/crun.aBcDeF"], check=True)
    assert bundle.remove() == []
    assert not Path(bundle.path).exists()
    assert bundle.path not in Path("/proc/self/mountinfo").read_text()


def test_what_is_not_ours_is_named(tmp_path: Path) -> None:
    bundle = Bundle(str(tmp_path / "box"))
    bundle.make()
    strange = Path(bundle.path, "strange")
    strange.write_text("")
    assert bundle.remove() == [str(strange)]
