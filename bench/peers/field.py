"""All peers of one run: made when a suite first asks for one, ended together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
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

    def __init__(self, workspace: Workspace, report: Report, *, docker: bool = True, podman: bool = True) -> None:
        self._workspace = workspace
        self._report = report
        self._wanted = {"docker": docker, "podman": podman}
        self._daemon: Docker | None = None

    @cached_property
    def crun(self) -> RawRuntime | None:
        return self._try("crun", lambda: RawRuntime("crun", self._workspace))

    @cached_property
    def runc(self) -> RawRuntime | None:
        return self._try("runc", lambda: RawRuntime("runc", self._workspace))

    @cached_property
    def podman(self) -> Podman | None:
        return self._try("podman", lambda: Podman(self._workspace))

    @cached_property
    def docker(self) -> Docker | None:
        self._daemon = self._try("docker", lambda: Docker(self._workspace))
        return self._daemon

    def another_docker(self) -> Docker | None:
        """A second daemon, whose containers outlive it; the caller's to empty and to close."""
        return self._try("docker", lambda: Docker(self._workspace, "docker-live", live_restore=True))

    def _try(self, name: str, make: Callable[[], T]) -> T | None:
        if not self._wanted.get(name, True):
            self._report.absent[name] = "left out as asked"
            return None
        print(f"bench: making {name} ready", file=sys.stderr)
        try:
            return make()
        except Trouble as trouble:
            self._report.absent[name] = str(trouble)
            return None

    def close(self) -> None:
        """End what of them lives on."""
        if self._daemon is not None:
            self._daemon.close()
