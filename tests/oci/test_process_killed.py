"""SIGKILL for an exec process whose own cgroup is in the way."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from lighterman.errors import RuntimeFailed
from lighterman.runtimes.base import Stdio
from lighterman.runtimes.oci.process import OciProcess


class Refusing:
    """The members of a cgroup that can't be written."""

    def look(self) -> set[int]:
        return set()

    def kill(self) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


async def test_process_is_killed_though_its_members_can_not_be(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:  # noqa: ASYNC220
        process = OciProcess(
            job="c1:exec",
            pid=child.pid,
            pidfd=os.pidfd_open(child.pid),
            started_mono=0.0,
            stdio=Stdio(None, None, None),
            terminal=None,
            keeper=None,
            exits_dir=str(tmp_path),
            members=lambda pid: Refusing(),
        )
        with pytest.raises(RuntimeFailed, match="permission denied"):
            await process.kill(9)
        assert child.wait() == -9
        await process.close()
