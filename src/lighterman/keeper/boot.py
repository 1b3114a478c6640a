"""From a child of the host program to a process of its own, and down again at the end."""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, socket
from time import time_ns

# Spelled out, as `typing` is expensive to import and the checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .server import Keeper
    from .slots import SlotFile

READY_FD = 3
SOCKET_NAME = "keeper.sock"
LOCK_NAME = "keeper.lock"
LOG_NAME = "keeper.log"
EXITS_NAME = "exits"
PROCESS_NAME = "lighterman-keeper"
READY = b"1"
LOCKED = b"0"


def main(arguments: list[str]) -> None:
    """`RUN STATE IDLE_S BUILD`: tells READY or LOCKED on descriptor 3; then `--resume FD`: goes on (see `upgrade.py`).

    `--check` alone: whether this program would take over the state in the memfd at descriptor 3.
    """
    if arguments[0] == "--check":
        from . import handover

        handover.check(READY_FD)
        return
    run_dir, state_dir, idle_s, build, *resume = arguments
    if resume:
        _resume(run_dir, state_dir, float(idle_s), build, int(resume[1]))
        return
    _detach(run_dir)
    lock = os.open(f"{run_dir}/{LOCK_NAME}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.lockf(lock, os.F_TLOCK, 0)
    except OSError:
        os.write(READY_FD, LOCKED)
        return
    _start(run_dir, state_dir, float(idle_s), build, lock)


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


def _start(run_dir: str, state_dir: str, idle_s: float, build: str, lock: int) -> None:
    # Imported here: the launcher does not wait for it.
    from . import cgroup, linux
    from .place import Place
    from .server import Keeper
    from .slots import SlotFile
    from .spawning import Spawner

    own_cgroup = cgroup.enter_own(run_dir)
    linux.become_subreaper()
    linux.set_name(PROCESS_NAME)
    run_fd = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.makedirs(f"{state_dir}/{EXITS_NAME}", 0o700, exist_ok=True)
    slots = SlotFile.make(f"{state_dir}/{EXITS_NAME}/{os.getpid()}-{time_ns()}")
    address = _address(run_fd)
    _unlink(address)
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC)
    listener.bind(address)
    listener.listen(64)
    place = Place(run_dir, state_dir, idle_s, build, run_fd, lock)
    keeper = Keeper(place, listener, slots, Spawner(), own_cgroup)
    os.write(READY_FD, READY)
    os.close(READY_FD)
    _serve(keeper, address, listener, slots)


def _resume(run_dir: str, state_dir: str, idle_s: float, build: str, state_fd: int) -> None:
    from . import handover, linux
    from .place import Place
    from .server import Keeper
    from .slots import SlotFile
    from .spawning import Spawner

    records = handover.read(state_fd)
    handover.let_through(records, False)
    state = handover.parse(records)
    # The rest of what `_start` does outlives an exec.
    linux.set_name(PROCESS_NAME)
    settings, own = state.settings, state.descriptors
    used = {row.slot for row in state.rows.values()}
    slots = SlotFile(settings["slots_path"], own["slots"], settings["slots"], used)
    spawner = Spawner.resumed(own["own_mounts"], own["oom"], settings["spawner"])
    listener = socket(AF_UNIX, SOCK_SEQPACKET, 0, own["listener"])
    listener.setblocking(False)
    place = Place(run_dir, state_dir, idle_s, build, own["run"], own["lock"])
    keeper = Keeper(place, listener, slots, spawner, settings["own_cgroup"])
    keeper.resume(state)
    _serve(keeper, _address(own["run"]), listener, slots)


def _serve(keeper: Keeper, address: str, listener: socket, slots: SlotFile) -> None:
    """Until the end of it."""
    from . import cgroup

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


def _address(run_fd: int) -> str:
    # Through the descriptor: sun_path holds no more than 108 bytes.
    return f"/proc/self/fd/{run_fd}/{SOCKET_NAME}"


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
