"""From a child of the host program to a process of its own, and down again at the end."""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, socket
from time import time_ns

READY_FD = 3
SOCKET_NAME = "keeper.sock"
LOCK_NAME = "keeper.lock"
LOG_NAME = "keeper.log"
EXITS_NAME = "exits"
READY = b"1"
LOCKED = b"0"


def main(arguments: list[str]) -> None:
    """`RUN STATE IDLE_S`; tells READY or LOCKED on descriptor 3."""
    run_dir, state_dir, idle_s = arguments
    _detach(run_dir)
    lock = os.open(f"{run_dir}/{LOCK_NAME}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.lockf(lock, os.F_TLOCK, 0)
    except OSError:
        os.write(READY_FD, LOCKED)
        return
    _serve(run_dir, state_dir, float(idle_s))


def _detach(run_dir: str) -> None:
    """A child of init (or of the next subreaper) in a session of its own that can never get a terminal."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    null = os.open("/dev/null", os.O_RDWR)
    # What a defect of ours has to say; nothing else writes there.
    log = os.open(f"{run_dir}/{LOG_NAME}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(log, 2)
    os.set_inheritable(READY_FD, False)
    os.closerange(READY_FD + 1, os.sysconf("SC_OPEN_MAX"))


def _serve(run_dir: str, state_dir: str, idle_s: float) -> None:
    # Imported here: the launcher does not wait for it.
    from . import cgroup, linux
    from .server import Keeper
    from .slots import SlotFile
    from .spawning import Spawner

    own_cgroup = cgroup.enter_own()
    linux.become_subreaper()
    linux.set_name("lighterman-keeper")
    run_fd = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.makedirs(f"{state_dir}/{EXITS_NAME}", 0o700, exist_ok=True)
    slots = SlotFile(f"{state_dir}/{EXITS_NAME}/{os.getpid()}-{time_ns()}")
    # Through the descriptor: sun_path holds no more than 108 bytes.
    address = f"/proc/self/fd/{run_fd}/{SOCKET_NAME}"
    _unlink(address)
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC)
    listener.bind(address)
    listener.listen(64)
    keeper = Keeper(listener, slots, Spawner(), idle_s, own_cgroup)
    os.write(READY_FD, READY)
    os.close(READY_FD)
    try:
        keeper.run()
    finally:
        # Before the lock goes with the process: a newer keeper makes a new socket.
        _unlink(address)
        listener.close()
    slots.close(remove=len(keeper.jobs.table) == 0)
    cgroup.leave_own()
    sys.stderr.flush()
    os._exit(0)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
