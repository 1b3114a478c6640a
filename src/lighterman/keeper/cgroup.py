"""The keeper's own control group, beside the containers', so that ending the owner's does not end it."""

from __future__ import annotations

import os

NAME = "lighterman-keeper"


def enter_own() -> bool:
    """Move into `/lighterman-keeper` on every mounted hierarchy; False if one could not be entered."""
    entered = [_enter(path) for path in _mounts()]
    return bool(entered) and all(entered)


def leave_own() -> None:
    """Back to the top, and remove the group unless another keeper is in it."""
    for path in _mounts():
        try:
            _write(f"{path}/cgroup.procs", str(os.getpid()))
            os.rmdir(f"{path}/{NAME}")
        except OSError:
            # Another keeper lives there, or it was never ours: nothing is lost by an empty group.
            continue


def _enter(path: str) -> bool:
    own = f"{path}/{NAME}"
    try:
        os.makedirs(own, 0o755, exist_ok=True)
        # A new cpuset of v1 has neither CPUs nor memory, and takes nobody in before it has both.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if os.path.exists(f"{own}/{name}") and not _read(f"{own}/{name}").strip():
                _write(f"{own}/{name}", _read(f"{path}/{name}").strip())
        _write(f"{own}/cgroup.procs", str(os.getpid()))
    except OSError:
        return False
    return True


def _mounts() -> list[str]:
    """Mount points of every control group hierarchy (proc(5), mountinfo); the last mount wins where two are stacked."""
    points: dict[str, str] = {}
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith(("cgroup ", "cgroup2 ")):
            fields = left.split()
            points[fields[2]] = fields[4]
    return list(points.values())


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
