"""Runtime calls in flight: spawn, the terminal's master that comes back, the deadline."""

from __future__ import annotations

import os
from _collections_abc import Callable
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, socket
from time import CLOCK_BOOTTIME, clock_gettime

from .channel import close_all, receive
from .peer import Peer
from .requests import FAILED, Refused
from .table import Row, Table
from .wire import WireError

_SUN_PATH_BYTES = 108
_SIGKILL = 9
_MAX_DEPTH = 64  # of what a runtime starts, which is three or four deep
_MAKERS = (b"run", b"restore", b"exec")
_PF_EXITING = 0x4


class Call:
    """One runtime process, from its spawn to its exit.

    Attributes:
        row: None for a plain command. since_ticks: what it starts is not older, see `now_ticks`.
        then: called with the wait status instead of an answer, where the keeper itself has started it.
    """

    __slots__ = (
        "console",
        "deadline_ns",
        "peer",
        "pid",
        "pid_file",
        "request",
        "row",
        "since_ticks",
        "spawned_ns",
        "then",
        "timed_out",
    )

    def __init__(
        self,
        pid: int,
        spawned_ns: int,
        since_ticks: int,
        deadline_ns: int,
        peer: Peer | None,
        request: int,
        row: Row | None,
        pid_file: str | None,
        console: ConsoleSocket | None,
        then: Callable[[int], None] | None = None,
    ) -> None:
        self.pid = pid
        self.spawned_ns = spawned_ns
        self.since_ticks = since_ticks
        self.deadline_ns = deadline_ns
        self.peer = peer
        self.request = request
        self.row = row
        self.pid_file = pid_file
        self.console = console
        self.then = then
        self.timed_out = False

    def kill(self) -> None:
        """End the runtime and what still is in its process group; it is not reaped, so its number is its own."""
        self.timed_out = True
        os.killpg(self.pid, _SIGKILL)


class ConsoleSocket:
    """Where the runtime sends the terminal's master (runc's and crun's `--console-socket`): one SCM_RIGHTS message."""

    def __init__(self, path: str, listener: socket, connection: socket | None = None) -> None:
        self.path = path
        self._listener = listener
        self._connection = connection

    @classmethod
    def listening(cls, path: str) -> ConsoleSocket:
        """Listen at `path`, 0600. Raises: Refused."""
        listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        directory, _, name = path.rpartition("/")
        try:
            # Through the directory's descriptor: sun_path holds no more than 108 bytes.
            parent = os.open(directory or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                listener.bind(f"/proc/self/fd/{parent}/{name}")
            finally:
                os.close(parent)
            listener.listen(1)
        except OSError as error:
            listener.close()
            raise Refused(FAILED, f"console socket {path}: {error.strerror}") from error
        return cls(path, listener)

    @classmethod
    def resumed(cls, path: str, fds: list[int]) -> ConsoleSocket:
        """With the `descriptors` of one that the program before this one had."""
        listener, *connections = (socket(AF_UNIX, SOCK_STREAM, 0, fd) for fd in fds)
        return cls(path, listener, connections[0] if connections else None)

    @property
    def descriptors(self) -> list[int]:
        """For `resumed`."""
        return [one.fileno() for one in (self._listener, self._connection) if one is not None]

    def fileno(self) -> int:
        """What to watch now: the listener, or the connection that has not sent yet."""
        return (self._connection or self._listener).fileno()

    def take(self) -> int | None:
        """The master if it was sent; it is left non-blocking, as splicing from it needs."""
        try:
            if self._connection is None:
                fd, _ = self._listener._accept()  # type: ignore[attr-defined]
                self._connection = socket(AF_UNIX, SOCK_STREAM, 0, fd)
            _, fds = receive(self._connection)
        except BlockingIOError:
            return None
        except (OSError, WireError):
            fds = []
        if len(fds) != 1:
            # Not what a runtime sends: wait for another connection.
            close_all(fds)
            self._disconnect()
            return None
        os.set_blocking(fds[0], False)
        return fds[0]

    def close(self) -> None:
        self._disconnect()
        self._listener.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def read_pid_file(path: str) -> int | None:
    """The pid that a runtime wrote; None if it wrote none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 32).strip()
    finally:
        os.close(fd)
    if not text.isdigit() or not 1 < int(text) < 2**31:
        return None
    return int(text)


def now_ticks() -> int:
    """This moment as a start time: clock ticks after boot."""
    return int(clock_gettime(CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def read_start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None if there is no such process."""
    found = _parent_and_start(pid)
    return found[1] if found is not None else None


def descends_from_us(pid: int) -> bool:
    """Whether a process is a child of ours, or of one, and so on; a zombie is too."""
    ours, at = os.getpid(), pid
    for _ in range(_MAX_DEPTH):
        if at == ours:
            return True
        found = _parent_and_start(at)
        if found is None and at == pid:
            return False
        # A parent that has just ended: its children have another one now.
        at = found[0] if found is not None else pid
    return False


def kill_forked(container: str, table: Table) -> bool:
    """Kill what killed runtime calls have forked to make a process of a container; whether any may be left.

    crun does so to detach, into a session of its own. Once its parent is dead that is a child of ours, as what it forks
    itself is when it is dead.
    """
    left = False
    for entry in os.listdir("/proc"):
        fields = _stat(int(entry)) if entry.isdigit() else None
        if fields is None or int(fields[1]) != os.getpid() or table.running(int(entry)) is not None:
            continue
        if int(fields[6]) & _PF_EXITING:
            # It has no arguments any more, and is about to leave its children to us.
            left = True
        elif _makes(int(entry), container):
            os.kill(int(entry), _SIGKILL)
            left = True
    return left


def _makes(pid: int, container: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().removesuffix(b"\0").split(b"\0")
    except OSError:
        return False
    return words[-1] == os.fsencode(container) and any(word in _MAKERS for word in words)


def _parent_and_start(pid: int) -> tuple[int, int] | None:
    fields = _stat(pid)
    return (int(fields[1]), int(fields[19])) if fields is not None else None


def _stat(pid: int) -> list[bytes] | None:
    """Its fields of proc(5), from the third on."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return None
    # The name is in parentheses and may hold any byte: the fields are counted from the last one.
    return stat[stat.rindex(b")") + 2 :].split()


def open_pidfd(pid: int) -> int | None:
    """A descriptor of a process that was not reaped; None if there is no such process."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
