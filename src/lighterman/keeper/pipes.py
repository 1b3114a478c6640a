"""What a pipe or a terminal holds, and how a terminal's output gets into a pipe. Linux; standard library only."""

import errno
import os
import select
from fcntl import ioctl
from struct import Struct
from termios import FIONREAD

_INT = Struct("i")
# Linux's number; the os module has it as SPLICE_F_NONBLOCK only from 3.10 on with a new enough libc.
NONBLOCK = 2
# What a write to a pipe moves whole or not at all (PIPE_BUF).
_ATOMIC = 4096


def buffered(fd: int) -> int:
    """The number of bytes in a pipe (FIONREAD)."""
    count: int = _INT.unpack(ioctl(fd, FIONREAD, b"\0\0\0\0"))[0]
    return count


def at_end(fd: int) -> bool:
    """Whether a pipe is empty and nobody holds its write end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    events = poll.poll(0)
    # The order matters: after the hang-up nobody can add a byte.
    return bool(events) and bool(events[0][1] & select.POLLHUP) and buffered(fd) == 0


def tty_to_pipe(tty_fd: int, pipe_w: int, max_bytes: int) -> int:
    """Returns 0 when no process has the terminal open. Raises BlockingIOError when it has nothing to say."""
    try:
        try:
            return os.splice(tty_fd, pipe_w, max_bytes, flags=NONBLOCK)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Linux 5.10 to 5.15 can't splice from a terminal. A kill between the two calls would lose these bytes.
        data = os.read(tty_fd, min(max_bytes, _ATOMIC))
        return os.write(pipe_w, data) if data else 0
    except OSError as error:
        if error.errno == errno.EIO:
            return 0
        raise
