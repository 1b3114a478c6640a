"""The keeper's own control group, beside the containers', so that ending the owner's does not end it."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from time import sleep

from . import scope

NAME = "lighterman-keeper"
CONTAINERS = "/lighterman/"
_ROOT = "/sys/fs/cgroup"
_SIGKILL = 9
_REMOVE_TRIES, _REMOVE_PAUSE_S = 20, 0.005


def enter_own(run_dir: str) -> bool:
    """Move into `/lighterman-keeper` on every mounted hierarchy; False if one could not be entered.

    Under systemd with version 2: into that of the root's scope, where its containers are as well.
    """
    if scope.is_wanted() and scope.enter(run_dir, NAME) is not None:
        return True
    entered = [_enter(path) for path in mounts()]
    return bool(entered) and all(entered)


def leave_own() -> None:
    """Back to the top, and remove the group unless another keeper is in it. A scope goes by itself, when empty."""
    if f"0::{scope.PARENT}/" in _read("/proc/self/cgroup"):
        return
    for path in mounts():
        try:
            _write(f"{path}/cgroup.procs", str(os.getpid()))
        except OSError:
            continue  # it was never ours
    for path in mounts():
        _remove(f"{path}/{NAME}")


def _remove(group: str) -> None:
    # What a killed runtime call has left there is not listed any more while it still dies: that takes a moment.
    for _ in range(_REMOVE_TRIES):
        try:
            os.rmdir(group)
        except FileNotFoundError:
            return
        except OSError:
            if _members(group):
                return  # another keeper lives there, and removes it in its turn
            sleep(_REMOVE_PAUSE_S)
        else:
            return


def is_a_container(path: str) -> bool:
    """Whether a path within the hierarchies is below the containers' group, where the keeper may kill."""
    above, found, below = path.partition(CONTAINERS)
    if found and scope.is_one(above):
        path = f"{CONTAINERS}{below}"
    return path.startswith(CONTAINERS) and ".." not in path.split("/") and path.strip("/") != CONTAINERS.strip("/")


def end(path: str, mounts: list[str]) -> bool:
    """Kill all that is in a group and below it, on every hierarchy, and remove it; True when it is gone."""
    gone = [_end_one(f"{mount}{path}") for mount in mounts]
    return all(gone)


def kill(path: str, mounts: list[str]) -> None:
    """Kill what is in a group, and remove nothing: the fast part of `end`."""
    for mount in mounts:
        group = f"{mount}{path}"
        try:
            _write(f"{group}/cgroup.kill", "1")
        except OSError:
            _kill_members(group)


def thaw(path: str, freezers: list[str]) -> None:
    """Version 1: nothing frozen takes note of SIGKILL."""
    for mount in freezers:
        try:
            _write(f"{mount}{path}/freezer.state", "THAWED")
        except OSError:
            continue  # it is gone


def _end_one(group: str) -> bool:
    """Kill, then rmdir from the bottom; what has not died yet keeps its group until the next call."""
    if not os.path.isdir(group):
        return True
    try:
        _write(f"{group}/cgroup.kill", "1")
    except OSError:
        # Version 1, or Linux before 5.14.
        _kill_members(group)
    try:
        with os.scandir(group) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        gone = [_end_one(path) for path in below]
        if not all(gone):
            return False
        os.rmdir(group)
        return True
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _kill_members(group: str) -> None:
    """By pidfd, and only who is still a member once that is open: a number can be used again in between."""
    try:
        if os.path.exists(f"{group}/freezer.state"):
            _write(f"{group}/freezer.state", "THAWED")
    except OSError:
        pass  # it is gone in this moment, or does not thaw: who is in there is listed below all the same
    opened = {}
    for pid in _members(group):
        try:
            opened[pid] = os.pidfd_open(pid)
        except OSError:
            continue
    still = _members(group)
    for pid, fd in opened.items():
        try:
            if pid in still:
                _signal.pidfd_send_signal(fd, _SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            os.close(fd)


def _members(group: str) -> set[int]:
    try:
        return {int(word) for word in _read(f"{group}/cgroup.procs").split()}
    except OSError:
        return set()


def _enter(path: str) -> bool:
    own = f"{path}/{NAME}"
    try:
        os.makedirs(own, 0o755, exist_ok=True)
        # A new cpuset of v1 has neither CPUs nor memory, and takes nobody in before it has both; an empty one of v2 has
        # those of the group above, and the root of v2 does not say which.
        is_v1 = not os.path.exists(f"{path}/cgroup.controllers")
        for name in ("cpuset.cpus", "cpuset.mems"):
            if is_v1 and os.path.exists(f"{own}/{name}") and not _read(f"{own}/{name}").strip():
                _write(f"{own}/{name}", _read(f"{path}/{name}").strip())
        _write(f"{own}/cgroup.procs", str(os.getpid()))
    except OSError:
        return False
    return True


def mounts(controller: str | None = None) -> list[str]:
    """Mount points of the hierarchies, or of a controller's of version 1, where runtimes look for them.

    As `runtimes/oci/cgroups/host.py` has it.
    """
    return mounts_in(_read("/proc/self/mountinfo"), controller)


def mounts_in(mountinfo: str, controller: str | None = None) -> list[str]:
    """As `mounts`, of the text of a mountinfo (proc(5)).

    A tree may be mounted elsewhere as well, a part of it may be bound anywhere, and what is mounted on top covers what
    was there: what happens to the groups is asked and done only at the one place for the whole of each.
    """
    points: dict[str, tuple[bool, str]] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        kind, _, options = right.partition(" ")
        if kind not in ("cgroup", "cgroup2"):
            continue
        if controller is not None and (kind != "cgroup" or controller not in options.split()[-1].split(",")):
            continue
        device, root, point = fields[2], fields[3], fields[4]
        if (point == _ROOT or os.path.dirname(point) == _ROOT) and _is_there(device, point):
            is_part = root != "/"
            if device not in points or points[device][0] or not is_part:
                points[device] = is_part, point
    return [point for _, point in points.values()]


def _is_there(device: str, point: str) -> bool:
    """Whether nothing else covers it."""
    try:
        found = os.stat(point).st_dev
    except OSError:
        return False
    return device == f"{os.major(found)}:{os.minor(found)}"


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
