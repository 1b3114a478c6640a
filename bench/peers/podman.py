"""podman with storage, state and configuration of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from bench.peers.image import image_tar
from bench.spawn import DEADLINE_S, succeed, timed
from bench.trouble import Trouble
from bench.workspace import Workspace

__all__ = ["Podman"]

_IMAGE = "localhost/lighterman-bench"
# Its default of a million open files can be more than a host allows.
_CONFIGURATION = """\
[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"""


class Podman:
    """Raises Trouble when it is made, if podman is not installed or runs no container here."""

    def __init__(self, workspace: Workspace) -> None:
        program = shutil.which("podman")
        if program is None:
            raise Trouble("podman is not installed")
        self._directory = directory = workspace.directory("podman")
        with open(f"{directory}/containers.conf", "w") as file:
            file.write(_CONFIGURATION)
        self._env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": directory,
            "CONTAINERS_CONF": f"{directory}/containers.conf",
        }
        self._base = [program, "--root", f"{directory}/root", "--runroot", f"{directory}/run"]
        self._base += ["--tmpdir", f"{directory}/tmp"]
        self._cgroup = workspace.cgroup
        self._log = f"{directory}/log"
        succeed([*self._base, "import", image_tar(workspace), _IMAGE], env=self._env, log=self._log)
        self.run_program(["/bin/true"])

    def run_program(self, argv: Sequence[str]) -> float:
        """Seconds of `podman run --rm --network none`."""
        return timed(self._run(argv), env=self._env, log=self._log)

    def output_of(self, argv: Sequence[str]) -> str:
        """What a container writes."""
        done = subprocess.run(self._run(argv), env=self._env, capture_output=True, text=True, timeout=DEADLINE_S)
        if done.returncode != 0:
            raise Trouble(f"podman: {done.stderr.strip()[-200:]}")
        return done.stdout

    def _run(self, argv: Sequence[str]) -> list[str]:
        words = ["run", "--rm", "--network", "none", "--cgroup-parent", self._cgroup]
        return [*self._base, *words, _IMAGE, *argv]
