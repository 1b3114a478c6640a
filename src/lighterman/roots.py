"""State roots: where an engine keeps its things, who holds one, and what a dead owner left. Blocking."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import sys
import threading
import uuid

from lighterman.disks import refusal
from lighterman.errors import InvalidSpec, RootLocked, StoreError
from lighterman.keeper.files import OURS, pread, pwrite
from lighterman.trees import remove_tree

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["StateRoot", "abandoned", "default_run", "default_state"]

log = logging.getLogger(__name__)

# POSIX record locks do not see two engines of one process: the root, and the process that holds it (not a child of it).
_held: dict[str, int] = {}
_held_lock = threading.Lock()
_removing: set[str] = set()  # by this process, for the same reason

_GONE = ".gone-"  # what a private root is called while it is being removed

# Which byte of the file is locked on Windows, where nobody else can read it then: not one of the holder's number.
_LOCKED_AT = 1 << 20

# How often it is tried again where a sweep of another engine came in between.
_TRIES = 20


def default_state() -> str:
    """`/var/lib/lighterman`; below `$XDG_DATA_HOME` for a normal user.

    On Windows `%ProgramData%\\lighterman` for an administrator, else below `%LOCALAPPDATA%`.
    """
    if sys.platform == "win32":
        name, other = (
            ("ProgramData", "C:\\ProgramData") if _is_administrator() else ("LOCALAPPDATA", "~\\AppData\\Local")
        )
        return os.path.join(os.environ.get(name) or os.path.expanduser(other), "lighterman")
    if os.geteuid() == 0:
        return "/var/lib/lighterman"
    return os.path.join(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "lighterman")


def default_run() -> str:
    """`/run/lighterman`; below `$XDG_RUNTIME_DIR` for a normal user; on Windows beside the state."""
    if sys.platform == "win32":
        return os.path.join(default_state(), "run")
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
            return cls(*_new_private(), private=True)
        path = os.path.abspath(os.fspath(root))
        if "\0" in path or path == os.path.dirname(path):
            raise InvalidSpec(f"root {path!r}: must be a directory of its own")
        if path == default_state():
            return cls(path, default_run(), private=False)
        # Its RUN part must vanish at a reboot and be found again from the path alone.
        name = uuid.uuid5(uuid.NAMESPACE_URL, os.path.realpath(path)).hex[:16]
        return cls(path, f"{default_run()}/roots/{name}", private=False)

    def acquire(self) -> None:
        """Make the directories and take the lock.

        Raises: RootLocked that names the holder; InvalidSpec for a directory that holds something else; StoreError.
        """
        for _ in range(_TRIES if self.private else 0):
            with contextlib.suppress(RootLocked, StoreError):
                self.take()
                return
            # Not locked yet, it looked abandoned to another engine: a new one is as good.
            self.state, self.run = _new_private()
        self.take()

    def take(self) -> None:
        """As `acquire`, of these directories and no others."""
        if not self.private:
            _check_own(self.state)
        try:
            for path in (self.state, self.run):
                _make_private(path)
            self._lock = _lock(self.state)
        except OSError as failed:
            raise StoreError(f"state root can't be used: {refusal(self.state, failed)}") from failed

    def release(self) -> None:
        """Give the lock back. Again is nothing."""
        if self._lock is None:
            return
        with _held_lock:
            # First the file: whoever takes the root next in this process would lose its lock by our close.
            os.close(self._lock)
            _held.pop(os.path.realpath(self.state), None)
        self._lock = None

    def leave(self) -> None:
        """Leave a private root to its keeper, which removes it. It stays locked as long as this process lives."""
        self._lock = None

    def remove(self) -> None:
        """Take a private root away, whole. Raises: StoreError naming what can't be removed."""
        try:
            with contextlib.suppress(FileNotFoundError):
                remove_tree(self.run)
            if sys.platform == "win32":
                # What is open can't be renamed there, nor removed: the lock goes first, and may be taken by a sweep.
                _empty(self.state)
                self.release()
                with contextlib.suppress(OSError):
                    os.unlink(f"{self.state}/lock")
                    os.rmdir(self.state)
                return
            # Out of the way of who makes it, or sweeps, at the same time; from now on only its inode is ours.
            gone = f"{os.path.dirname(self.state)}/{_GONE}{uuid.uuid4().hex[:16]}"
            with _held_lock:
                _removing.add(gone)
            try:
                try:
                    os.rename(self.state, gone)
                except FileNotFoundError:
                    return
                _remove_renamed(gone)
            finally:
                with _held_lock:
                    _removing.discard(gone)
        except OSError as failed:
            raise StoreError(f"private root {self.state} can't be removed: {failed}") from failed

    def remove_run(self) -> None:
        """Take the RUN part away, of which nothing is needed while nothing runs; what can't be is said in the log.

        With it go the exits that keepers have left: those that were not acknowledged are of nobody's.
        """
        paths = [f"{self.state}/exits"]
        if self.run.startswith(f"{default_run()}/roots/"):  # the default root's also holds those of others
            paths.append(self.run)
        for path in paths:
            try:
                remove_tree(path)
            except FileNotFoundError:
                continue
            except OSError as failed:
                log.error("%s stays: %s", path, refusal(path, failed))

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
        lock = os.open(f"{state}/lock", os.O_RDWR | os.O_CREAT | OURS, 0o600)
        try:
            _take(lock)
        except (BlockingIOError, PermissionError) as taken:
            holder = pread(lock, 32, 0).strip()
            os.close(lock)
            raise _locked(state, int(holder) if holder.isdigit() else None) from taken
        except OSError:
            os.close(lock)
            raise
        if not _is_at(lock, f"{state}/lock"):
            os.close(lock)
            raise FileNotFoundError(errno.ENOENT, "it was removed just now", state)
        try:
            os.ftruncate(lock, 0)
            pwrite(lock, b"%d\n" % ours, 0)
        except OSError:
            os.close(lock)
            raise
        _held[key] = ours
    return lock


def _take(lock: int) -> None:
    """Raises: BlockingIOError or PermissionError if another process has it; OSError."""
    if sys.platform == "win32":
        os.lseek(lock, _LOCKED_AT, os.SEEK_SET)
        msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _locked(state: str, holder: int | None) -> RootLocked:
    return RootLocked(
        f"state root {state} is held by another engine (process {holder or 'unknown'}): use that one, or another root",
        holder_pid=holder,
    )


def _is_at(descriptor: int, path: str) -> bool:
    """Whether the file of that name is still the one that was opened: a lock on a removed one keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


@functools.cache
def _is_administrator() -> bool:
    import ctypes

    return sys.platform == "win32" and bool(ctypes.windll.shell32.IsUserAnAdmin())


def _new_private() -> tuple[str, str]:
    id = uuid.uuid4().hex[:16]
    return f"{default_state()}/private/{id}", f"{default_run()}/private/{id}"


def _check_own(path: str) -> None:
    """Refuse a directory with somebody else's things, which would be closed to everybody. Raises: InvalidSpec."""
    if path == default_state():
        return
    try:
        status, names = os.stat(path), os.listdir(path)
    except OSError:
        return  # it is made, or told, next
    if sys.platform != "win32" and status.st_uid != os.geteuid():
        raise InvalidSpec(f"root {path!r}: belongs to user {status.st_uid}: choose a directory of your own")
    # A file system of its own has one of these.
    if "lock" not in names and set(names) - {"lost+found"}:
        raise InvalidSpec(f"root {path!r}: holds something else: choose a new or an empty directory")


def _remove_renamed(path: str) -> None:
    """The lock last: as long as it is there and held, nobody else removes this."""
    _empty(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}/lock")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


def _empty(path: str) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            # The keeper of a killed program removes the same, and has it open since before it was renamed.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                elif entry.name != "lock":
                    os.unlink(entry.path)


def _finish_removal(path: str) -> None:
    """Go on with a removal whose process is dead."""
    with _held_lock:
        if path in _removing:
            return
        _removing.add(path)
    try:
        lock = os.open(f"{path}/lock", os.O_RDWR | OURS)
        try:
            _take(lock)
            _remove_renamed(path)
        finally:
            os.close(lock)
    except FileNotFoundError:
        # All that was left to do.
        with contextlib.suppress(OSError):
            os.rmdir(path)
    except (BlockingIOError, PermissionError):
        return  # it lives
    except OSError as failed:
        log.warning("what a killed engine left in %s can't be removed: %s", path, failed)
    finally:
        with _held_lock:
            _removing.discard(path)


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
        if id.startswith(_GONE):
            _finish_removal(f"{default_state()}/private/{id}")
            continue
        root = StateRoot(f"{default_state()}/private/{id}", f"{default_run()}/private/{id}", private=True)
        try:
            root.take()
        except (RootLocked, StoreError):
            continue
        found.append(root)
    return found
