"""A directory, a cgroup parent and a prepared root of our own; all of it is gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lighterman.images.builtin import busybox_image
from lighterman.images.image import Image
from lighterman.roots import default_state

__all__ = ["Workspace", "in_own_mount_namespace"]

CGROUPS = Path("/sys/fs/cgroup")
_MARK = "LIGHTERMAN_BENCH_NAMESPACE"
_GONE_S = 10.0


def in_own_mount_namespace() -> None:
    """Start over in a mount namespace of our own, once: no mount of ours outlives us, however we end."""
    if os.environ.get(_MARK) or os.geteuid() != 0:
        return
    unshare = shutil.which("unshare")
    if unshare is None:
        return
    # Slaves: what the host unmounts meanwhile is unmounted for us as well.
    argv = [unshare, "--mount", "--propagation", "slave", sys.executable, "-m", "bench", *sys.argv[1:]]
    os.execve(unshare, argv, {**os.environ, _MARK: "1"})


class Workspace:
    """Made on the disk that holds /var/tmp, because an overlay's upper may lie neither on an overlay nor in memory.

    Attributes:
        path: the directory. cgroup: the parent of all the peers' cgroups. image: the built-in busybox.
        root: a root file system that can be written: an overlay over the image, mounted once.
    """

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="lighterman-bench-", dir="/var/tmp")
        self.cgroup = f"/lighterman-bench-{self.path[-8:]}"
        self.root = f"{self.path}/root"
        self.image: Image = busybox_image(Path(default_state(), "layers"))
        for name in ("root", "upper", "work", "bundles", "state"):
            os.mkdir(f"{self.path}/{name}")
        options = f"lowerdir={self.image.layers[0]},upperdir={self.path}/upper,workdir={self.path}/work,volatile"
        mounted = subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", self.root], check=False)
        if mounted.returncode != 0:
            shutil.copytree(self.image.layers[0], self.root, symlinks=True, dirs_exist_ok=True)

    def directory(self, name: str) -> str:
        """A new directory below."""
        path = f"{self.path}/{name}"
        os.makedirs(path)
        return path

    def close(self) -> None:
        """Kill what still runs in our cgroups, remove them, unmount, unlink."""
        self._end_cgroups()
        self._unmount()
        shutil.rmtree(self.path, ignore_errors=False, onerror=_tell)

    def _end_cgroups(self) -> None:
        deadline = time.monotonic() + _GONE_S
        while list(self._cgroups()) and time.monotonic() < deadline:
            for directory in self._cgroups():
                for pid in _pids(directory):
                    _kill(pid)
                try:
                    directory.rmdir()
                except OSError:
                    continue  # somebody in it has not died yet: the next turn
            time.sleep(0.02)
        for directory in self._cgroups():
            print(f"bench: could not remove {directory}", file=sys.stderr)

    def _cgroups(self) -> Iterator[Path]:
        """The deepest first."""
        for hierarchy in (CGROUPS, *CGROUPS.iterdir()):
            top = Path(f"{hierarchy}{self.cgroup}")
            if top.is_dir() and not hierarchy.is_symlink():
                for root, _, _ in os.walk(top, topdown=False):
                    yield Path(root)

    def _unmount(self) -> None:
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for target in reversed([one for one in mounted if one.startswith(f"{self.path}/")]):
            subprocess.run(["umount", "--lazy", target], check=False)


def _pids(directory: Path) -> list[int]:
    try:
        return [int(line) for line in (directory / "cgroup.procs").read_text().split()]
    except (FileNotFoundError, OSError):
        return []  # it went in this moment


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _tell(_function: object, path: str, error: object) -> None:
    print(f"bench: could not remove {path}: {error}", file=sys.stderr)
