"""Under systemd: a transient scope, in which the tree of control groups is ours by delegation.

systemd owns the rest of a version 2 tree: it may take away controllers that no unit of its own needs, and ends a unit
by what is in the unit's group. A scope of their own keeps a keeper and its containers out of both: whoever asked for
them may be stopped, reloaded or logged out.
"""

from __future__ import annotations

import os
from binascii import crc32
from time import monotonic, sleep

PARENT = "/system.slice"
_ROOT = "/sys/fs/cgroup"
_BUSCTL = ("/usr/bin/busctl", "/bin/busctl")
_WAIT_S, _PAUSE_S = 5.0, 0.002
_TRIES, _TRY_PAUSE_S = 10, 0.05
_NO_LIMIT = str(2**64 - 1)


def path_of(run_dir: str) -> str:
    """Where in the tree the scope of a root is, whether it exists or not. Two that share one do no harm."""
    return f"{PARENT}/lighterman-{crc32(os.fsencode(run_dir)):08x}.scope"


def is_one(path: str) -> bool:
    """Whether a path in the tree is a scope of ours."""
    name = path.removeprefix(f"{PARENT}/lighterman-").removesuffix(".scope")
    return len(name) == 8 and path == f"{PARENT}/lighterman-{name}.scope" and all(c in "0123456789abcdef" for c in name)


def is_wanted() -> bool:
    """Whether systemd runs this host (sd_booted(3)), and the tree is of version 2 alone."""
    return os.path.isdir("/run/systemd/system") and os.path.exists(f"{_ROOT}/cgroup.controllers")


def enter(run_dir: str, group: str) -> str | None:
    """Move this process into `group` within the scope of a root, which is made if there is none.

    Returns: the scope's path; None where systemd gives none.
    """
    path = path_of(os.path.abspath(run_dir))
    busctl = next((each for each in _BUSCTL if os.path.exists(each)), None)
    if busctl is None:
        return None
    for _ in range(_TRIES):
        if _ask(busctl, path.rpartition("/")[2], run_dir):
            if not _moved_to(path):
                return None
            _move(path, group)
            return path
        # Another keeper's, or one whose containers have outlived theirs.
        if os.path.isdir(f"{_ROOT}{path}/{group}"):
            try:
                _move(path, group)
            except OSError:
                pass  # it has come to its end in this moment
            else:
                return path
        elif not os.path.isdir(f"{_ROOT}{path}"):
            return None
        sleep(_TRY_PAUSE_S)
    return None


def _ask(busctl: str, name: str, run_dir: str) -> bool:
    """Have systemd make the scope with this process in it; False if it refuses, as for one that exists."""
    properties = (
        ("Description", "s", f"Lighterman: containers of {run_dir}"),
        ("Slice", "s", PARENT[1:]),
        ("Delegate", "b", "true"),
        ("TasksMax", "t", _NO_LIMIT),  # of all containers together: each has its own
        ("CollectMode", "s", "inactive-or-failed"),
        ("PIDs", "au", "1", str(os.getpid())),
    )
    manager = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
    words = [busctl, "--quiet", f"--timeout={_WAIT_S:.0f}", "call", *manager]
    words += ["StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail"]
    words += [str(len(properties)), *(word for each in properties for word in each), "0"]
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    try:
        pid = os.posix_spawn(busctl, words, {}, file_actions=null)
    except OSError:
        return False
    return os.waitpid(pid, 0)[1] == 0


def _moved_to(path: str) -> bool:
    deadline = monotonic() + _WAIT_S
    while monotonic() < deadline:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            if f"0::{path}\n" in file.read():
                return True
        sleep(_PAUSE_S)
    return False


def _move(path: str, group: str) -> None:
    os.makedirs(f"{_ROOT}{path}/{group}", 0o755, exist_ok=True)
    with open(f"{_ROOT}{path}/{group}/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
