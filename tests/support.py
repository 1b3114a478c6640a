"""What tests share: waiting for a condition, and seeing what of ours is left on this host."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar, overload

__all__ = [
    "Snapshot",
    "descriptors_left",
    "eventually",
    "eventually_sync",
    "leaked_since",
    "snapshot",
    "why_not_host",
    "why_not_real",
]

T = TypeVar("T")

POLL_S = 0.02
PATIENCE = float(os.environ.get("LIGHTERMAN_TEST_PATIENCE", "1"))  # how much slower this host is than a usual one
if sys.platform == "linux":
    from lighterman.roots import default_run, default_state

    RUN = Path(default_run())
    STATE = Path(default_state())
CAP_SYS_ADMIN = 21  # linux/capability.h

Snapshot = dict[str, frozenset[str]]
"""What there is, by kind (`"processes"`, `"mounts"`, ...); each entry is one line to show."""


# ---- waiting -----------------------------------------------------------------------------------------------------


@overload
async def eventually(condition: Callable[[], Awaitable[T]], timeout_s: float = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], timeout_s: float = ...) -> T: ...
async def eventually(condition: Callable[[], object], timeout_s: float = 20.0) -> object:
    """Poll `condition`, a function or a coroutine function, until it gives something true, and return that.

    Raises: AssertionError after `timeout_s`, with the last value.
    """
    deadline = time.monotonic() + timeout_s * PATIENCE
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {_name(condition)} is {value!r}")
        await asyncio.sleep(POLL_S)


def eventually_sync(condition: Callable[[], T], timeout_s: float = 20.0) -> T:
    """`eventually` without a loop."""
    deadline = time.monotonic() + timeout_s * PATIENCE
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {_name(condition)} is {value!r}")
        pause.wait(POLL_S)


def _name(condition: Callable[[], object]) -> str:
    return getattr(condition, "__qualname__", repr(condition))


# ---- what becomes scarce -----------------------------------------------------------------------------------------


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open so many descriptors more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


# ---- what this host can do ---------------------------------------------------------------------------------------


def why_not_real(runtime: str | None = None) -> str | None:
    """Why containers can't be run here (by `runtime`, or by any), or None if they can."""
    if sys.platform != "linux":
        return f"containers of an OCI runtime need Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "running containers needs root in this version"
    effective = int(_field(Path("/proc/self/status"), "CapEff:"), 16)
    if not effective >> CAP_SYS_ADMIN & 1:
        return "root without CAP_SYS_ADMIN can't run containers (a container without --privileged?)"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    wanted = (runtime,) if runtime else ("crun", "runc", "youki")
    if not any(shutil.which(name, path=path) for name in wanted):
        return f"none of {', '.join(wanted)} is installed"
    return None


def why_not_host(*needs: str) -> str | None:
    """Why this host is not one that a test marked `needs(...)` is for, or None if it is.

    Each is `v1` (hybrid too), `hybrid`, `v2`, `systemd`, `criu` or `linux>=6.7`. Raises: ValueError for any other.
    """
    for need in needs:
        if need in ("v1", "hybrid", "v2"):
            layout = _cgroup_layout()
            if need != layout and not (need == "v1" and layout == "hybrid"):
                return f"is about cgroups of a {need} host, this one has {layout}"
        elif need == "systemd":
            if not os.path.isdir("/run/systemd/system"):  # as sd_booted(3) looks
                return "needs systemd as init"
        elif need == "criu":
            from lighterman.runtimes.oci.checkpointing import why_no_checkpoints

            try:
                reason = why_no_checkpoints("runc")
            except (OSError, subprocess.TimeoutExpired) as failed:
                reason = str(failed)
            if reason is not None:
                return f"needs checkpoints: {reason}"
        elif need.startswith("linux>="):
            wanted, has = need.removeprefix("linux>="), ".".join(os.uname().release.split(".")[:2])
            if tuple(map(int, has.split("."))) < tuple(map(int, wanted.split("."))):
                return f"needs Linux {wanted}, this is {has}"
        else:
            raise ValueError(f"a test needs {need!r}: known are v1, hybrid, v2, systemd, criu and linux>=VERSION")
    return None


def _cgroup_layout() -> str:
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return "v2"
    return "hybrid" if os.path.exists("/sys/fs/cgroup/unified/cgroup.controllers") else "v1"


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return line[len(name) :].strip()
    raise LookupError(f"{path}: no line {name!r}")


# ---- what is left of ours ----------------------------------------------------------------------------------------


def snapshot(*, own: bool = False) -> Snapshot:
    """What of ours exists on this host right now; with `own` this process's descriptors and threads too.

    On another system than Linux: nothing, for there is no keeper and no OCI runtime to leave anything.
    """
    if sys.platform != "linux":
        return {kind: frozenset() for kind in ("processes", "threads")}
    now = {
        "processes": frozenset(_processes()),
        "mounts": frozenset(_mounts()),
        "cgroups": frozenset(_cgroups()),
        "directories": frozenset(_directories()),
        "network namespaces": frozenset(_children(Path("/run/netns"))),
    }
    if own:
        now["descriptors"] = frozenset(_descriptors())
        now["threads"] = frozenset(f"{thread.name} ({thread.ident})" for thread in threading.enumerate())
    return now


def leaked_since(before: Snapshot, timeout_s: float = 20.0) -> list[str]:
    """What has come since `before` and stays: `["processes: 123 ...", ...]`; what goes away in time is no leak.

    Waits up to `timeout_s`, and not at all when nothing is left.
    """
    own = "threads" in before
    left: set[tuple[str, str]] | None = None
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        now = snapshot(own=own)
        new = {(kind, entry) for kind, entries in now.items() for entry in entries - before[kind]}
        # Only what was there at every look: others on this host may run containers of their own meanwhile.
        left = new if left is None else left & new
        if not left or time.monotonic() > deadline:
            return sorted(f"{kind}: {entry}" for kind, entry in left)
        pause.wait(5 * POLL_S)


def _processes() -> Iterator[str]:
    """Keepers and what they keep: a keeper by its command line, a container by its cgroup; our zombies as well."""
    # In a pid namespace of its own the second process is any.
    kernel = "2" if Path("/proc/2/comm").exists() and Path("/proc/2/comm").read_text() == "kthreadd\n" else None
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            stat = (directory / "stat").read_text()
            if stat.rpartition(")")[2].split()[1] == kernel:
                continue
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            cgroup = (directory / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended between two reads
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        state, parent, started = fields[0], int(fields[1]), fields[19]
        is_keeper = "lighterman" in command and "keeper" in command and " -I" in command
        is_zombie = state == "Z" and parent == os.getpid()
        if is_keeper or is_zombie or "/lighterman" in cgroup:
            # The start time goes with the pid: a pid alone may be another process by now.
            yield f"{directory.name} (started {started}) {command or name}{' [zombie]' if is_zombie else ''}"


def _mounts() -> Iterator[str]:
    # What other engines on this host mount while the tests run is none of ours.
    foreign = ("/var/lib/docker", "/run/docker", "/var/lib/containers", "/run/containerd", "/run/user")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if not fields[4].startswith(foreign):
            yield f"{fields[4]} ({' '.join(fields[fields.index('-') + 1 :])})"


def _cgroups() -> Iterator[str]:
    """Those below the parent `lighterman` and its neighbours.

    Not the parent, which is every engine's and stays, as docker's; nor the keepers' own, which stays empty when the
    last of them is killed, until the next one leaves. A keeper that lives is seen as a process. With
    LIGHTERMAN_TESTS_BESIDE_OTHERS set, none: namespaces hide other runs' processes and directories, not their cgroups.
    """
    if os.environ.get("LIGHTERMAN_TESTS_BESIDE_OTHERS"):
        return
    for root, directories, _ in os.walk("/sys/fs/cgroup"):
        name = os.path.basename(root)
        # systemd removes a scope some moments after its keeper has gone.
        if "/lighterman" in root and name not in ("lighterman", "lighterman-keeper") and not name.endswith(".scope"):
            yield root
        elif root.count("/") > 8:
            directories.clear()


def _directories() -> Iterator[str]:
    """Roots under RUN and private ones under STATE; STATE's image cache and the empty parents are meant to stay."""
    parents = {RUN / "private", RUN / "roots"}
    yield from (entry for entry in _children(RUN) if Path(entry) not in parents)
    for parent in (*parents, STATE / "private", STATE / "containers"):
        yield from _children(parent)


def _children(directory: Path) -> Iterator[str]:
    try:
        yield from (str(path) for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return


def _descriptors() -> Iterator[str]:
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue  # the one that listed the directory
        # Tools of the test run itself: its captured output, the random source, its caches.
        if not target.startswith(("/dev/", "/tmp/")) and not {".hypothesis", ".pytest_cache"} & set(target.split("/")):
            yield f"{entry} -> {target}"
