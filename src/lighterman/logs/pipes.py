"""The pipes that carry a container's output."""

from __future__ import annotations

import contextlib
import fcntl
import os

__all__ = ["PIPE_BYTES", "make_output_pipe"]

# Moving a GiB of 64 kB writes from such a pipe into segments takes 0.48 s of CPU; through the kernel's default of
# 64 KiB 0.60 (medians of 10 x 256 MiB from dd). It is also the most that a normal user may ask for
# (/proc/sys/fs/pipe-max-size). The pages are taken only when they are filled.
PIPE_BYTES = 1024 * 1024


def make_output_pipe() -> tuple[int, int]:
    """(read end, write end), both close-on-exec.

    Only the read end is non-blocking: the flag belongs to the open end, and a container that finds its stdout
    non-blocking loses output. Raises: OSError.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(read, False)
        # Refused to a normal user who has many pipes (/proc/sys/fs/pipe-user-pages-soft): the default size works too.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except BaseException:
        os.close(read)
        os.close(write)
        raise
    return read, write
