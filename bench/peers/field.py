"""All peers of one run: made when they are first asked for, ended together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from bench.peers.docker import Docker
from bench.peers.podman import Podman
from bench.peers.raw import RawRuntime
from bench.report import Report
from bench.trouble import Trouble
from bench.workspace import Workspace

__all__ = ["Peers"]

T = TypeVar("T")


class Peers:
    """Each is None where it does not take part; the report says why."""

    def __init__(self, workspace: Workspace, report: Report, *, docker: bool, podman: bool) -> None:
        self._report = report
        self.crun = self._try("raw crun", lambda: RawRuntime("crun", workspace))
        self.runc = self._try("raw runc", lambda: RawRuntime("runc", workspace))
        self.podman = self._try("podman", lambda: Podman(workspace)) if podman else None
        # The last, because it is the one that has to be ended.
        self.docker = self._try("docker", lambda: Docker(workspace)) if docker else None

    def _try(self, name: str, make: Callable[[], T]) -> T | None:
        print(f"bench: {name} ...", file=sys.stderr)
        try:
            return make()
        except Trouble as trouble:
            self._report.absent[name] = str(trouble)
            return None

    def close(self) -> None:
        """End what of them lives on."""
        if self.docker is not None:
            self.docker.close()
