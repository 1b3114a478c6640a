"""Reaching the keeper's socket, and starting the keeper where there is none, without disturbing the host program."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import signal
import socket
import sys
from pathlib import Path

from lighterman.ends import to_its_end
from lighterman.errors import KeeperLost, NotSupported
from lighterman.keeper import boot

__all__ = ["build", "connect", "open_connection", "program"]

_DIRECTORY = Path(__file__).parent

# The keeper of another starter holds the lock and is about to listen.
_LOCKED_RETRY_S = 0.01


async def open_connection(run_dir: str, state_dir: str, idle_s: float, deadline: float) -> socket.socket:
    """A connected, non-blocking socket. `deadline` is on the loop's clock. Raises: KeeperLost."""
    loop = asyncio.get_running_loop()
    while True:
        sock = connect(run_dir)
        if sock is not None:
            return sock
        if loop.time() >= deadline:
            raise KeeperLost(f"no keeper listens in {run_dir} and none could be started, see {run_dir}/{boot.LOG_NAME}")
        # Cancelled in the middle, its launcher would stay as a zombie of the host program.
        if await to_its_end(_start(run_dir, state_dir, idle_s, deadline)) == boot.LOCKED:
            await asyncio.sleep(_LOCKED_RETRY_S)


def connect(run_dir: str) -> socket.socket | None:
    """None if nobody listens. Raises: KeeperLost."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise KeeperLost(f"no socket for the keeper in {run_dir}: {error.strerror}") from error
    sock.setblocking(False)
    try:
        directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        sock.close()
        raise KeeperLost(f"run directory {run_dir}: {error.strerror}") from error
    try:
        # Through the descriptor: sun_path holds no more than 108 bytes.
        sock.connect(f"/proc/self/fd/{directory}/{boot.SOCKET_NAME}")
    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
        # The last: its backlog is full, which counts as not there yet.
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise KeeperLost(f"keeper's socket in {run_dir}: {error.strerror}") from error
    finally:
        os.close(directory)
    return sock


async def _start(run_dir: str, state_dir: str, idle_s: float, deadline: float) -> bytes:
    """Start a keeper; what it said: READY, LOCKED, or nothing if it died. Raises: KeeperLost after `deadline`."""
    loop = asyncio.get_running_loop()
    ready_r, ready_w = os.pipe()
    try:
        os.set_blocking(ready_r, False)
        try:
            launcher = await asyncio.to_thread(_spawn, run_dir, state_dir, idle_s, ready_w)
        finally:
            os.close(ready_w)
        readable = asyncio.Event()
        loop.add_reader(ready_r, readable.set)
        try:
            async with asyncio.timeout_at(deadline):
                await readable.wait()
        except TimeoutError:
            raise KeeperLost(f"keeper did not start, see {run_dir}/{boot.LOG_NAME}") from None
        finally:
            loop.remove_reader(ready_r)
            await asyncio.to_thread(_reap, launcher)
        said = os.read(ready_r, 1)
    finally:
        os.close(ready_r)
    if not said:
        raise KeeperLost(f"keeper died while it started, see {run_dir}/{boot.LOG_NAME}")
    return said


def program() -> list[str]:
    """The command line of this package's keeper, without its arguments. Raises: NotSupported."""
    if not sys.executable:
        raise NotSupported("this program does not know its Python interpreter (sys.executable is empty)")
    # A file and not the directory: running a directory imports runpy, which costs more than the keeper's own start.
    return [sys.executable, "-I", "-S", "-E", "-X", "utf8", str(_DIRECTORY / "__main__.py")]


@functools.cache
def build() -> str:
    """A name of the keeper program that this package has: another one for every other text of it. Blocking."""
    digest = hashlib.sha256()
    for path in sorted(_DIRECTORY.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _spawn(run_dir: str, state_dir: str, idle_s: float, ready_w: int) -> int:
    arguments = [*program(), os.path.abspath(run_dir), os.path.abspath(state_dir), str(idle_s), build()]
    # In this order it is right even where the host program has closed its 0, 1 or 2 and the pipe took their place.
    actions = [
        (os.POSIX_SPAWN_DUP2, ready_w, boot.READY_FD),
        *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)),
    ]
    return os.posix_spawn(
        sys.executable,
        arguments,
        {"PATH": os.environ.get("PATH", os.defpath)},
        file_actions=actions,
        setsigmask=(),
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _reap(launcher: int) -> None:
    try:
        os.waitpid(launcher, 0)
    except ChildProcessError:
        # The host program waits for all its children, or ignores SIGCHLD.
        return
