"""Keepers of a test's own, and programs that behave as an OCI runtime does towards its parent."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lighterman.keeper.client import Job, KeeperClient, Spawned
from support import eventually

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# Of each stream, written by the jobs of `killed_engine.py`.
LINES = 4000

# Leaves a process behind and its pid in a file, and exits: `run --detach` in a line. In Perl, which every Debian has,
# since a shell reaps the children that end before it does, and no OCI runtime does that.
_FORK = 'defined($pid = fork) or die; if (!$pid) { exec "/bin/sh", "-c", $ARGV[1]; exit 127 }'
_WRITE = 'open F, ">", $ARGV[0] or die; print F "$pid\\n"; close F;'
RUNTIME = ("perl", "-e", f"{_FORK} {_WRITE}")
# The same through a process in between that is gone at once, as crun's is; then it waits for the end of a fifo.
SLOW_RUNTIME = ("perl", "-e", f"if (!fork) {{ {_FORK} {_WRITE} exit 0 }} wait; open G, '<', $ARGV[2] or die; <G>;")
# Without a program to execute, for the count: exit code for the script.
EXIT_RUNTIME = ("perl", "-e", f"defined($pid = fork) or die; if (!$pid) {{ exit $ARGV[1] }} {_WRITE}")
PERL = "/usr/bin/perl"


class Keepers:
    """Starts keepers in directories of their own; `end` ends each by its pid, with what it still runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pids: set[int] = set()
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._clients: list[KeeperClient] = []
        self._opened: list[int] = []
        self.may_complain = False

    async def spawn(self, client: KeeperClient, job: Job) -> Spawned:
        """`client.spawn`, with its descriptors closed at the end of the test."""
        spawned = await client.spawn(job)
        self._opened += [fd for fd in (spawned.pidfd, spawned.console) if fd is not None]
        return spawned

    def directory(self, name: str = "k") -> Path:
        path = self.root / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    async def connect(self, name: str = "k", *, idle_s: float = 30.0) -> KeeperClient:
        path = str(self.directory(name))
        client = await KeeperClient.start_or_connect(path, path, idle_s=idle_s)
        self.pids.add(client.pid)
        self._clients.append(client)
        return client

    def job(self, name: str, script: str, **changes: Any) -> Job:
        """A job whose process runs a shell script."""
        pid_file = str(self.root / f"{name}.pid")
        values: dict[str, Any] = {
            "job": name,
            "argv": (*RUNTIME, pid_file, script),
            "executable": PERL,
            "env": {"PATH": PATH},
            "stdio": (self.null, self.null, self.null),
            "pid_file": pid_file,
            "timeout_s": 30.0,
        }
        return Job(**(values | changes))

    def command(self, name: str, argv: Sequence[str], **changes: Any) -> Job:
        """A plain command, whose own exit is the answer."""
        values: dict[str, Any] = {
            "job": name,
            "argv": tuple(argv),
            "executable": argv[0],
            "env": {"PATH": PATH},
            "stdio": (self.null, self.null, self.null),
            "timeout_s": 30.0,
        }
        return Job(**(values | changes))

    async def end(self) -> None:
        for client in self._clients:
            await client.close()
        for pid in self.pids:
            for child in children(pid):
                kill(child)
            kill(pid)
        await eventually(lambda: not any(alive(pid) for pid in self.pids))
        for fd in (self.null, *self._opened):
            os.close(fd)
        remove_cgroups()
        for log in self.root.rglob("keeper.log"):
            assert self.may_complain or log.read_text() == "", f"a keeper had something to say: {log.read_text()}"


def remove_cgroups() -> None:
    """What a killed keeper could not do; another one that still lives in its groups keeps them."""
    for path in Path("/sys/fs/cgroup").glob("*/lighterman-keeper"):
        with contextlib.suppress(OSError):
            path.rmdir()


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def alive(pid: int) -> bool:
    """Whether there is such a process that is not a zombie."""
    return state(pid) not in ("", "Z")


def state(pid: int) -> str:
    """The letter of proc(5), empty if there is no such process."""
    try:
        stat = text_of(f"/proc/{pid}/stat")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def text_of(path: str | Path) -> str:
    """Contents of a small file that never blocks."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def exit_code(status: int) -> int:
    return os.waitstatus_to_exitcode(status)


def read_pipe(fd: int) -> bytes:
    """Everything until the end, then it is closed."""
    with os.fdopen(fd, "rb") as file:
        return file.read()
