"""State roots: where an engine keeps its things, who holds one, and what a dead owner left. Blocking."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import uuid

from lighterman.errors import InvalidSpec, RootLocked, StoreError
from lighterman.trees import remove_tree

__all__ = ["StateRoot", "abandoned", "default_run", "default_state"]

# POSIX record locks do not see two engines of one process: the root, and the process that holds it (not a child of it).
_held: dict[str, int] = {}
_held_lock = threading.Lock()


def default_state() -> str:
    """`/var/lib/lighterman`; below `$XDG_DATA_HOME` for a normal user."""
    if os.geteuid() == 0:
        return "/var/lib/lighterman"
    return os.path.join(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "lighterman")


def default_run() -> str:
    """`/run/lighterman`; below `$XDG_RUNTIME_DIR` for a normal user."""
    if os.geteuid() == 0:
        return "/run/lighterman"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or os.path.join(default_state(), "run")
    return os.path.join(runtime, "lighterman")


class StateRoot:
    """A pair of directories, and the lock that makes one engine their owner.

    Attributes:
        state: what survives a reboot. run: what does not.
        cache: shared by all roots of a user: unpacked layers, probes, compiled filters.
        private: whether it ends with its engine.
    """

    def __init__(self, state: str, run: str, *, private: bool) -> None:
        self.state = state
        self.run = run
        self.private = private
        self.cache = default_state()
        self._lock: int | None = None

    @classmethod
    def of(cls, root: str | os.PathLike[str] | None) -> StateRoot:
        """The root at a directory, or a new private one below the default directories.

        Raises: InvalidSpec for a path that can't be one.
        """
        if root is None:
            id = uuid.uuid4().hex[:16]
            return cls(f"{default_state()}/private/{id}", f"{default_run()}/private/{id}", private=True)
        path = os.path.abspath(os.fspath(root))
        if "\0" in path or path == "/":
            raise InvalidSpec(f"root {path!r}: must be a directory of its own")
        if path == default_state():
            return cls(path, default_run(), private=False)
        # Its RUN part must vanish at a reboot and be found again from the path alone.
        name = uuid.uuid5(uuid.NAMESPACE_URL, os.path.realpath(path)).hex[:16]
        return cls(path, f"{default_run()}/roots/{name}", private=False)

    def acquire(self) -> None:
        """Make the directories and take the lock. Raises: RootLocked that names the holder, StoreError."""
        try:
            for path in (self.state, self.run):
                _make_private(path)
            self._lock = _lock(self.state)
        except OSError as failed:
            raise StoreError(f"state root {self.state} can't be used: {failed.strerror}") from failed

    def release(self) -> None:
        """Give the lock back. Again is nothing."""
        if self._lock is None:
            return
        with _held_lock:
            # First the file: whoever takes the root next in this process would lose its lock by our close.
            os.close(self._lock)
            _held.pop(os.path.realpath(self.state), None)
        self._lock = None

    def remove(self) -> None:
        """Take a private root away, whole. Raises: StoreError naming what can't be removed."""
        for path in (self.run, self.state):
            try:
                remove_tree(path)
            except FileNotFoundError:
                continue
            except OSError as failed:
                raise StoreError(f"private root {path} can't be removed: {failed}") from failed

    def remove_run(self) -> None:
        """Take the RUN part away, of which nothing is needed while nothing runs. Raises: StoreError."""
        if not self.run.startswith(f"{default_run()}/roots/"):
            return  # the default root's also holds those of others
        try:
            remove_tree(self.run)
        except FileNotFoundError:
            return
        except OSError as failed:
            raise StoreError(f"{self.run} can't be removed: {failed}") from failed

    def container(self, id: str) -> str:
        """The directory of one container."""
        return f"{self.state}/containers/{id}"


def _lock(state: str) -> int:
    """The descriptor that holds a root's lock. Raises: RootLocked, OSError."""
    key, ours = os.path.realpath(state), os.getpid()
    with _held_lock:
        if _held.get(key) == ours:
            # Its file must not even be opened: the close of any descriptor of it would drop our process's lock.
            raise _locked(state, ours)
        lock = os.open(f"{state}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as taken:
            holder = os.pread(lock, 32, 0).strip()
            os.close(lock)
            raise _locked(state, int(holder) if holder.isdigit() else None) from taken
        except OSError:
            os.close(lock)
            raise
        _held[key] = ours
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % ours, 0)
    return lock


def _locked(state: str, holder: int | None) -> RootLocked:
    return RootLocked(
        f"state root {state} is held by another engine (process {holder or 'unknown'}): use that one, or another root",
        holder_pid=holder,
    )


def _make_private(path: str) -> None:
    """Make a directory, and those of ours above it, for ourselves alone."""
    for ours in (default_state(), default_run()):
        if path.startswith(f"{ours}/"):
            inside = path[len(ours) + 1 :].split("/")
            for depth in range(len(inside)):
                above = "/".join([ours, *inside[:depth]])
                os.makedirs(above, mode=0o700, exist_ok=True)
                os.chmod(above, 0o700)
    os.makedirs(path, mode=0o700, exist_ok=True)
    os.chmod(path, 0o700)


def abandoned() -> list[StateRoot]:
    """Private roots whose owner is dead; each is locked by us now, and ours to remove and release."""
    ids: set[str] = set()
    for parent in (default_state(), default_run()):
        # A removal that was interrupted has left one of the two.
        with contextlib.suppress(FileNotFoundError):
            ids.update(os.listdir(f"{parent}/private"))
    found = []
    for id in sorted(ids):
        root = StateRoot(f"{default_state()}/private/{id}", f"{default_run()}/private/{id}", private=True)
        try:
            root.acquire()
        except (RootLocked, StoreError):
            continue
        found.append(root)
    return found
