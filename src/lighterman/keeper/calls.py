"""Runtime calls in flight: spawn, the terminal's master that comes back, the deadline."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, socket

from .channel import close_all, receive
from .peer import Peer
from .requests import FAILED, Refused
from .table import Row
from .wire import WireError

_SUN_PATH_BYTES = 108
_SIGKILL = 9


class Call:
    """One runtime process, from its spawn to its exit. `row` is None for a plain command."""

    __slots__ = (
        "console",
        "deadline_ns",
        "peer",
        "pid",
        "pid_file",
        "request",
        "row",
        "spawned_ns",
        "timed_out",
    )

    def __init__(
        self,
        pid: int,
        spawned_ns: int,
        deadline_ns: int,
        peer: Peer | None,
        request: int,
        row: Row | None,
        pid_file: str | None,
        console: ConsoleSocket | None,
    ) -> None:
        self.pid = pid
        self.spawned_ns = spawned_ns
        self.deadline_ns = deadline_ns
        self.peer = peer
        self.request = request
        self.row = row
        self.pid_file = pid_file
        self.console = console
        self.timed_out = False

    def kill(self) -> None:
        """End the runtime and what still is in its process group; it is not reaped, so its number is its own."""
        self.timed_out = True
        os.killpg(self.pid, _SIGKILL)


class ConsoleSocket:
    """Where the runtime sends the terminal's master (runc's and crun's `--console-socket`): one SCM_RIGHTS message."""

    def __init__(self, path: str) -> None:
        """Listen at `path`, 0600. Raises: Refused."""
        self._path = path
        self._connection: socket | None = None
        self._listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        directory, _, name = path.rpartition("/")
        try:
            # Through the directory's descriptor: sun_path holds no more than 108 bytes.
            parent = os.open(directory or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._listener.bind(f"/proc/self/fd/{parent}/{name}")
            finally:
                os.close(parent)
            self._listener.listen(1)
        except OSError as error:
            self._listener.close()
            raise Refused(FAILED, f"console socket {path}: {error.strerror}") from error

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
            os.unlink(self._path)
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


def read_start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return None
    # The name is in parentheses and may hold any byte: the fields are counted from the last one.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def open_pidfd(pid: int) -> int | None:
    """A descriptor of a process that was not reaped; None if there is no such process."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
