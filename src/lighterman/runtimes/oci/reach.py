"""Reaching into a running container from outside, with no process in it: its network, its sockets, its files.

A socket belongs for ever to the network namespace that its maker was in: a thread that lives for this alone goes into
the container's, makes the socket and ends; the event loop does the rest with it. Names are never looked up.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import threading
import time

from lighterman import limits
from lighterman.checks import File, Http, Port, Tcp, UnixSocket
from lighterman.errors import NotFound
from lighterman.runtimes.oci.processes import has_exited
from lighterman.runtimes.oci.rooted import open_inside
from lighterman.runtimes.oci.syscalls import set_network_namespace
from lighterman.threads import InThread, in_own_thread

__all__ = ["Reach"]

_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")


class Reach:
    """One run's init process, held by a pidfd. `look` raises OSError for what does not answer, NotFound for its end.

    Args: pidfd: ours to close.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._lock = threading.Lock()  # no thread may look at a number that is somebody else's by then

    def close(self) -> None:
        """Again is nothing."""
        with self._lock:
            pidfd, self._pidfd = self._pidfd, -1
            if pidfd >= 0:
                os.close(pidfd)

    async def look(
        self, probe: Tcp | Http | UnixSocket | File | Port, in_thread: InThread = in_own_thread
    ) -> tuple[bool, str]:
        """Whether it is well, and what was seen. Args: in_thread: calls what may hang."""
        match probe:
            case Tcp() | Port():
                (await self._connected(probe.host, probe.port, in_thread)).close()
                return True, f"port {probe.port} accepts connections"
            case Http():
                return await self._http(probe, in_thread)
            case UnixSocket():
                return await in_thread(lambda: self._unix(probe.path))
            case File():
                return await in_thread(lambda: self._file(probe))

    # ---- network ----

    async def _connected(self, host: str, port: int, in_thread: InThread) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = await in_thread(lambda: self._socket(family), socket.socket.close)
        try:
            await asyncio.get_running_loop().sock_connect(made, (host, port))
            if made.getsockname() == made.getpeername():
                # Nobody listens there, and the kernel has drawn that very port for this end: TCP's simultaneous open.
                raise ConnectionRefusedError(errno.ECONNREFUSED, f"port {port}: the probe met itself, nobody listens")
        except BaseException:
            made.close()
            raise
        return made

    def _socket(self, family: int) -> socket.socket:
        namespace = self._open("ns/net", os.O_RDONLY)
        try:
            set_network_namespace(namespace)
        finally:
            os.close(namespace)
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setblocking(False)
        return made

    async def _http(self, probe: Http, in_thread: InThread) -> tuple[bool, str]:
        loop = asyncio.get_running_loop()
        host = f"[{probe.host}]" if ":" in probe.host else probe.host
        request = (
            f"GET {probe.path} HTTP/1.1\r\nHost: {host}:{probe.port}\r\nUser-Agent: lighterman\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        )
        connected = await self._connected(probe.host, probe.port, in_thread)
        answer = b""
        with connected:
            await loop.sock_sendall(connected, request.encode())
            # Of whatever length it is: a page of it is looked at.
            while len(answer) < limits.PROBE_OUTPUT_BYTES and not _HEAD_END.search(answer):
                piece = await loop.sock_recv(connected, limits.PROBE_OUTPUT_BYTES - len(answer))
                if not piece:
                    break
                answer += piece
        found = _STATUS_LINE.match(answer)
        if found is None:
            return False, f"no answer in HTTP/1: {answer[:200]!r}"
        status = int(found[1])
        ok = 200 <= status <= 399 if probe.status is None else status == probe.status
        return ok, answer[: found.end()].decode("latin-1").strip()

    # ---- files; in a thread ----

    def _unix(self, path: str) -> tuple[bool, str]:
        found = self._inside(path)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
                # Not by the loop: a unix socket is never in between, and where the queue is full asyncio takes "again"
                # for that and the error that never comes for a connection.
                made.setblocking(False)
                made.connect(f"/proc/self/fd/{found}")
        except BlockingIOError:
            return False, f"{path} accepts no connections: its queue is full"
        finally:
            os.close(found)
        return True, f"{path} accepts connections"

    def _file(self, probe: File) -> tuple[bool, str]:
        found = self._inside(probe.path)
        try:
            age_s = time.time() - os.fstat(found).st_mtime
        finally:
            os.close(found)
        ok = probe.max_age_s is None or age_s <= probe.max_age_s
        return ok, f"{probe.path} was changed {age_s:.3f} s ago"

    def _inside(self, path: str) -> int:
        root = self._open("root", os.O_PATH | os.O_DIRECTORY)
        try:
            return open_inside(root, path)
        finally:
            os.close(root)

    def _open(self, what: str, flags: int) -> int:
        try:
            opened = os.open(f"/proc/{self._pid}/{what}", flags | os.O_CLOEXEC)
        except FileNotFoundError as missing:
            raise NotFound(f"process {self._pid} has ended") from missing
        # Checked after opening: while it lives nobody else has its number.
        with self._lock:
            gone = self._pidfd < 0 or has_exited(self._pidfd)
        if gone:
            os.close(opened)
            raise NotFound(f"process {self._pid} has ended")
        return opened
