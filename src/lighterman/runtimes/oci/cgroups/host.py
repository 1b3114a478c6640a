"""How this host has mounted its cgroups: version 1, version 2, or both at once (hybrid)."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from lighterman.errors import NotSupported
from lighterman.keeper import scope
from lighterman.runtimes.oci.cgroups import files

__all__ = [
    "MOUNT_ROOT",
    "PARENT",
    "CgroupHost",
    "Hierarchy",
    "cgroup_host",
    "group_of",
    "group_parent",
    "has_namespaces",
    "read_host",
]

MOUNT_ROOT = "/sys/fs/cgroup"
PARENT = "/lighterman"


class Hierarchy(msgspec.Struct, frozen=True, kw_only=True):
    """One mounted tree of cgroups.

    Attributes:
        mount_point: absolute path; the runtimes' cgroupfs driver puts `cgroupsPath` below it.
        version: 1 or 2. controllers: what it can limit or count; of a named one (`name=systemd`) the name.
        read_only: as it is mounted here. local_events: v2's option that keeps memory.events from counting below.
    """

    mount_point: str
    version: Literal[1, 2]
    controllers: frozenset[str]
    read_only: bool = False
    local_events: bool = False


class CgroupHost(msgspec.Struct, frozen=True, kw_only=True):
    """All that is mounted.

    Attributes:
        layout: `v2` (only version 2, at the root), `v1`, or `hybrid` (version 1, and version 2 beside it).
        left_over: hybrid only: controllers that no v1 hierarchy has taken. crun refuses such a host ("cgroups in
            hybrid mode not supported, drop all controllers from cgroupv2").
        remedy: the shell command that mounts those as v1; None where nothing has to be done.
    """

    layout: Literal["v1", "hybrid", "v2"]
    hierarchies: tuple[Hierarchy, ...]
    left_over: tuple[str, ...] = ()
    remedy: str | None = None

    def hierarchy_of(self, controller: str) -> Hierarchy | None:
        """Where `controller` is; None if this host has it nowhere."""
        for hierarchy in self.hierarchies:
            if controller in hierarchy.controllers:
                return hierarchy
        return None

    @property
    def title(self) -> str:
        """For people."""
        titles = {"v1": "version 1", "v2": "version 2", "hybrid": "version 1 and 2 beside each other (hybrid)"}
        return titles[self.layout]

    def remedy_for(self, lacking: Iterable[str]) -> str:
        """The command that brings controllers that are nowhere, by their names of version 1."""
        if self.layout == "v2":
            return "boot with " + " ".join(f"cgroup_enable={name}" for name in lacking)
        return _mounting(lacking, MOUNT_ROOT)

    @property
    def has_parts(self) -> bool:
        """Whether some of a cgroup's processes can be in one below it without limits of its own: version 2 alone."""
        return self.layout == "v2"

    @property
    def unified(self) -> Hierarchy | None:
        """The version 2 tree, if any."""
        return next((hierarchy for hierarchy in self.hierarchies if hierarchy.version == 2), None)

    @property
    def freezer(self) -> Hierarchy | None:
        """Where cgroups are frozen: v1's controller, else v2's tree, which needs none."""
        return self.hierarchy_of("freezer") or self.unified


def has_namespaces() -> bool:
    """Whether containers see of the cgroups only their own part: version 2 alone. A hybrid host counts as version 1.

    A single look, that needs nothing to be mounted. Blocking.
    """
    return os.path.exists(f"{MOUNT_ROOT}/cgroup.controllers")


def group_parent(run_dir: str, keeper_pid: int) -> str:
    """Below which path a root's new containers are made: beside their keeper, in its scope where it has one. Blocking.

    Args: run_dir: the root's, as its keeper was given it.
    """
    path = scope.path_of(run_dir)
    try:
        with open(f"/proc/{keeper_pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            groups = file.read().splitlines()
    except OSError as failed:
        if failed.errno in (errno.EMFILE, errno.ENFILE):
            raise
        groups = []  # it has ended
    return f"{path}{PARENT}" if any(line.startswith(f"0::{path}/") for line in groups) else PARENT


def group_of(run_dir: str, id: str) -> str:
    """The path of a container's cgroup, wherever an earlier keeper of the root had it made. Blocking."""
    in_scope = f"{scope.path_of(run_dir)}{PARENT}/{id}"
    return in_scope if os.path.isdir(f"{MOUNT_ROOT}{in_scope}") else f"{PARENT}/{id}"


def cgroup_host() -> CgroupHost:
    """This host's. A few small reads; not cached, because mounting is what mends a host.

    Raises: NotSupported if no hierarchy is mounted.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        mountinfo = mounts.read()
    try:
        with open("/proc/cgroups", encoding="ascii") as known:
            controllers = frozenset(line.split()[0] for line in known if line[0] != "#")
    except FileNotFoundError:  # a kernel without version 1
        controllers = frozenset()
    return read_host(mountinfo, controllers)


def read_host(mountinfo: str, v1_controllers: frozenset[str], root: str = MOUNT_ROOT) -> CgroupHost:
    """As `cgroup_host`, from the text of a mountinfo (proc(5)), looking at `root` and directly below it."""
    hierarchies: dict[str, Hierarchy] = {}
    lines = mountinfo.splitlines()
    whole = {line.split(" ")[2] for line in lines if _hierarchy(line, v1_controllers, root) and not _is_part(line)}
    for line in lines:
        hierarchy = _hierarchy(line, v1_controllers, root)
        if hierarchy is not None and not (_is_part(line) and line.split(" ")[2] in whole):
            # A later mount at one place covers the earlier.
            hierarchies[hierarchy.mount_point] = hierarchy
    at_root = hierarchies.get(root)
    if at_root is not None and at_root.version == 2:
        return CgroupHost(layout="v2", hierarchies=(at_root,))
    mounted = tuple(hierarchies.values())
    if not mounted:
        raise NotSupported(
            f"no cgroup hierarchy is mounted at {root}: run `mount -t cgroup2 cgroup2 {root}`", operation="cgroups"
        )
    unified = next((hierarchy for hierarchy in mounted if hierarchy.version == 2), None)
    if unified is None:
        return CgroupHost(layout="v1", hierarchies=mounted)
    left_over = tuple(sorted(unified.controllers))
    return CgroupHost(layout="hybrid", hierarchies=mounted, left_over=left_over, remedy=_remedy(left_over, root))


def _is_part(line: str) -> bool:
    """Whether only what is below one of its cgroups is mounted there: in a container, or by somebody's bind mount."""
    return line.split(" ")[3] != "/"


def _hierarchy(line: str, v1_controllers: frozenset[str], root: str) -> Hierarchy | None:
    mount, separator, source = line.partition(" - ")
    fields, details = mount.split(" "), source.split(" ")
    if not separator or len(fields) < 6 or len(details) < 3 or details[0] not in ("cgroup", "cgroup2"):
        return None
    # Space, tab, line feed and backslash are escaped as three octal digits.
    mount_point = re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), fields[4])
    if mount_point != root and os.path.dirname(mount_point) != root:
        return None
    options = details[2].split(",")
    read_only = "ro" in fields[5].split(",")
    if details[0] == "cgroup":
        controllers = frozenset(name for name in options if name in v1_controllers or name.startswith("name="))
        return Hierarchy(mount_point=mount_point, version=1, controllers=controllers, read_only=read_only)
    return Hierarchy(
        mount_point=mount_point,
        version=2,
        controllers=_v2_controllers(mount_point),
        read_only=read_only,
        local_events="memory_localevents" in options,
    )


def _v2_controllers(mount_point: str) -> frozenset[str]:
    directory = files.open_directory(mount_point, ())
    if directory is None:
        return frozenset()
    try:
        return frozenset((files.read(directory, "cgroup.controllers") or "").split())
    finally:
        os.close(directory)


def _remedy(left_over: tuple[str, ...], root: str) -> str | None:
    # Version 2 calls the block controller io.
    names = ["blkio" if name == "io" else name for name in left_over]
    return _mounting(names, root) or None


def _mounting(names: Iterable[str], root: str) -> str:
    return "; ".join(f"mkdir -p {root}/{name} && mount -t cgroup -o {name} cgroup {root}/{name}" for name in names)
