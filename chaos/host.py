"""What is seen of one root from outside, in /proc and the cgroups; and signals to single processes of it."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from lighterman.roots import StateRoot

__all__ = ["Host", "command", "descendants", "fill", "signal_checked"]

_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


def command(pid: int) -> list[bytes]:
    """The argument vector; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except _GONE:
        return []


def signal_checked(pid: int, number: int, expected: list[bytes] | None = None) -> bool:
    """Signal a process if it still is the one that was looked at. Returns whether it was there."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if expected is not None and command(pid) != expected:
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def descendants(pid: int) -> Iterator[int]:
    """Its children, theirs, and so on."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except _GONE:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def fill(path: Path) -> None:
    """Leave no room on the file system of `path`. Blocking."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for size in (1 << 20, 1 << 14, 1 << 12):
            with suppress(OSError):
                while os.write(fd, bytes(size)):
                    pass
    finally:
        os.close(fd)


class Host:
    """One root of an engine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = Path(StateRoot.of(root).run)

    def keepers(self) -> list[int]:
        """The keepers of this root that run."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                words = command(int(entry))
                if str(self.run).encode() in words and any(word.endswith(b"keeper/__main__.py") for word in words):
                    found.append(int(entry))
        return found

    def runtime_calls(self) -> list[tuple[int, list[bytes]]]:
        """The runtime's processes that are under way below the keepers."""
        calls = []
        for keeper in self.keepers():
            for pid in descendants(keeper):
                words = command(pid)
                if b"--root" in words and str(self.run).encode() in b" ".join(words):
                    calls.append((pid, words))
        return calls

    @staticmethod
    def groups(ids: Iterable[str]) -> list[Path]:
        """Every cgroup of these containers."""
        wanted, found = set(ids), []
        for top in (Path("/sys/fs/cgroup/lighterman"), *Path("/sys/fs/cgroup").glob("*/lighterman")):
            with suppress(FileNotFoundError):
                found += [top / name for name in os.listdir(top) if name in wanted]
        return found

    def processes(self, ids: Iterable[str]) -> list[int]:
        """The processes in those cgroups, those below included."""
        pids: set[int] = set()
        for group in self.groups(ids):
            for path, _, _ in os.walk(group):
                with suppress(OSError):
                    pids.update(int(word) for word in Path(path, "cgroup.procs").read_text().split())
        return sorted(pids)

    def init_of(self, id: str) -> int | None:
        """The init process of a container that runs."""
        for pid in self.processes([id]):
            with suppress(*_GONE):
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = next((line for line in status.splitlines() if line.startswith("NSpid:")), "").split()[1:]
                # The runtime's own processes are in the group too, before they are the program.
                if len(numbers) > 1 and numbers[-1] == "1" and b"--root" not in command(pid):
                    return pid
        return None

    def forget_boot(self) -> bool:
        """Let the store be of another life of the host; False where its disk is full. No engine is there. Blocking."""
        try:
            with closing(sqlite3.connect(self.root / "state.db")) as store, store:
                store.execute("UPDATE facts SET value = 'another boot' WHERE name = 'boot_id'")
        except sqlite3.Error:
            return False
        return True

    def left(self, ids: Iterable[str]) -> list[str]:
        """What there still is of this root, whose containers were all removed and whose engine was closed."""
        wanted = list(ids)
        left = [f"process {pid} {b' '.join(command(pid)).decode()[:120]}" for pid in self.processes(wanted)]
        left += [f"keeper {pid}" for pid in self.keepers()]
        left += [f"cgroup {path}" for path in self.groups(wanted)]
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            place = line.split()[4]
            if place.startswith((f"{self.run}/", f"{self.root}/")):
                left.append(f"mount {place}")
        if self.run.exists():
            left.append(f"directory {self.run}: {', '.join(sorted(os.listdir(self.run)))}")
        left += self.left_in_state()
        return left

    def left_in_state(self) -> list[str]:
        """Directories of containers, and exits that nobody has acknowledged."""
        left = []
        for name in ("containers", "exits"):
            with suppress(FileNotFoundError):
                left += [f"{name}/{entry}" for entry in os.listdir(self.root / name)]
        return left
