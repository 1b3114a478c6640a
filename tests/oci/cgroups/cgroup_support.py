"""Real cgroups of this machine for a test, and trees of plain files that look like version 2."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lighterman.errors import NotSupported
from lighterman.runtimes.oci.cgroups import Cgroup, CgroupHost, Hierarchy, cgroup_host

DEADLINE_S = 30.0


def host_or_skip() -> CgroupHost:
    try:
        host = cgroup_host()
    except (NotSupported, OSError) as error:
        pytest.skip(f"no cgroups: {error}")
    if os.geteuid() != 0 or any(not os.access(h.mount_point, os.W_OK) for h in host.hierarchies):
        pytest.skip("needs root and writable cgroups")
    return host


def make(cgroup: Cgroup, below: str = "") -> None:
    """Create it as a runtime's cgroupfs driver does."""
    for hierarchy in cgroup.host.hierarchies:
        directory = hierarchy.mount_point
        for component in (cgroup.path + below).split("/")[1:]:
            _enable(directory, hierarchy)
            parent, directory = directory, f"{directory}/{component}"
            if not os.path.isdir(directory):
                os.mkdir(directory)
            if "cpuset" in hierarchy.controllers and hierarchy.version == 1:
                for name in ("cpuset.cpus", "cpuset.mems"):
                    Path(directory, name).write_text(Path(parent, name).read_text())


def _enable(directory: str, hierarchy: Hierarchy) -> None:
    if hierarchy.version == 2:
        for controller in {"cpu", "memory", "pids", "io"} & hierarchy.controllers:
            control = Path(directory, "cgroup.subtree_control")
            if controller not in control.read_text().split():
                control.write_text(f"+{controller}")


def enter(cgroup: Cgroup, pid: int, below: str = "", only: Callable[[Hierarchy], bool] = lambda _: True) -> None:
    for hierarchy in cgroup.host.hierarchies:
        if only(hierarchy):
            Path(f"{hierarchy.mount_point}{cgroup.path}{below}/cgroup.procs").write_text(str(pid))


@contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def plain_v2(root: Path, **files_: str) -> CgroupHost:
    """A host whose version 2 tree is a directory of plain files; `files_` are those of the cgroup `/lighterman/c1`."""
    root.joinpath("lighterman/c1").mkdir(parents=True)
    root.joinpath("cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    for name, text in files_.items():
        root.joinpath("lighterman/c1", name.replace("__", ".")).write_text(text)
    hierarchy = Hierarchy(
        mount_point=str(root), version=2, controllers=frozenset({"cpuset", "cpu", "io", "memory", "pids"})
    )
    return CgroupHost(layout="v2", hierarchies=(hierarchy,))
