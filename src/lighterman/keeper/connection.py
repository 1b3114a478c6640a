"""Requests and answers over one SOCK_SEQPACKET socket in an asyncio loop; many in flight, descriptors with each."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from lighterman.errors import (
    AlreadyExists,
    InternalError,
    InvalidSpec,
    InvalidState,
    KeeperLost,
    LightermanError,
    LimitExceeded,
    NotFound,
    NotSupported,
    OperationTimeout,
    RuntimeFailed,
)
from lighterman.keeper import requests, wire
from lighterman.keeper.channel import DescriptorsLost, close_all, receive, transmit

__all__ = ["Connection"]

_MESSAGES_A_TURN = 64
# What a request needs that the host ran out of, as the keeper's system calls name it.
_OUT_OF = {
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "fs.file-max",
    errno.ENOSPC: "disk space",
    errno.EDQUOT: "disk quota",
    errno.ENOMEM: "memory",
    errno.EAGAIN: "ulimit -u",
    errno.E2BIG: "ARG_MAX",
}

_Answer = tuple[dict[str, Any], list[int]]


class Connection:
    """The engine's end of the socket, which it owns; `version` is the protocol that it speaks."""

    def __init__(self, sock: socket.socket, version: int = wire.VERSION) -> None:
        self.version = version
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._request = 0
        self._calls: dict[int, asyncio.Future[_Answer]] = {}
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._lost: KeeperLost | None = None
        self._gone = asyncio.Event()
        self.on_exits: Callable[[list[list[Any]]], None] = lambda _exits: None
        self.on_lease: Callable[[dict[str, Any]], None] = lambda _lease: None
        self.on_lost: Callable[[KeeperLost], None] = lambda _error: None
        self._loop.add_reader(sock, self._readable)

    @property
    def is_lost(self) -> bool:
        return self._lost is not None

    def check(self) -> None:
        """Raises: KeeperLost if the connection is gone."""
        if self._lost is not None:
            raise KeeperLost(self._lost.message)

    async def wait_lost(self) -> None:
        await self._gone.wait()

    async def call(
        self,
        verb: int,
        body: dict[str, object],
        timeout_s: float,
        fds: Sequence[int] = (),
        *,
        subject: str = "",
        executable: str = "",
    ) -> _Answer:
        """One request and its answer, whose descriptors are the caller's.

        Raises: KeeperLost, OperationTimeout, LimitExceeded (the message; the answer's descriptors, and then it is done
            all the same), or what the keeper refused with.
        """
        request = self.send(verb, body, fds, subject=subject)
        future: asyncio.Future[_Answer] = self._loop.create_future()
        self._calls[request] = future
        delivered = False
        try:
            async with asyncio.timeout(timeout_s):
                answer, received = await future
                delivered = True
        except TimeoutError:
            raise OperationTimeout(f"keeper did not answer within {timeout_s} s", operation=_NAMES[verb]) from None
        finally:
            self._calls.pop(request, None)
            if not delivered and future.done() and not future.cancelled() and future.exception() is None:
                # Cancelled between the answer and our turn: nobody else would close them.
                close_all(future.result()[1])
        if "code" in answer:
            close_all(received)
            raise _error(answer, _NAMES[verb], subject, executable)
        return answer, received

    def send(self, verb: int, body: dict[str, object], fds: Sequence[int] = (), *, subject: str = "") -> int:
        """Send, or queue in order; the request's id. Raises: KeeperLost, LimitExceeded, InvalidSpec."""
        self.check()
        self._request = self._request % 0x7FFFFFFF + 1
        try:
            message = wire.pack(verb, self._request, body, version=self.version)
        except wire.TooLong as error:
            raise LimitExceeded(
                f"request about {subject or _NAMES[verb]}: {error}",
                limit="KEEPER_MESSAGE_BYTES",
                operation=_NAMES[verb],
                container=subject or None,
            ) from error
        except wire.WireError as error:
            raise InvalidSpec(f"request about {subject or _NAMES[verb]}: {error}") from error
        if self._unsent:
            self._queue(message, fds)
            return self._request
        try:
            transmit(self._sock, message, fds)
        except BlockingIOError:
            self._queue(message, fds)
            self._loop.add_writer(self._sock, self._writable)
        except (ConnectionError, BrokenPipeError) as error:
            self.close(f"keeper is gone: {error.strerror}")
            self.check()
        except OSError as error:
            if error.errno == errno.EBADF:
                raise InvalidSpec(f"request about {subject or _NAMES[verb]}: a descriptor is closed") from error
            raise
        return self._request

    def close(self, reason: str) -> None:
        """Let go; every call in flight gets KeeperLost with `reason`. Again is nothing."""
        if self._lost is not None:
            return
        self._lost = KeeperLost(reason)
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, fds in self._unsent:
            close_all(fds)
        self._unsent.clear()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(KeeperLost(reason))
        self.on_lost(self._lost)
        self._gone.set()

    def _queue(self, message: bytes, fds: Sequence[int]) -> None:
        # Duplicates: a cancelled caller may close its own before it is their turn.
        ours: list[int] = []
        try:
            for fd in fds:
                ours.append(os.dup(fd))
        except OSError as failed:
            close_all(ours)
            if failed.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            text = f"no room for a request's descriptors: {failed.strerror}: raise `ulimit -n`"
            raise LimitExceeded(text, limit="ulimit -n") from failed
        self._unsent.append((message, ours))

    def _writable(self) -> None:
        try:
            while self._unsent:
                message, fds = self._unsent[0]
                transmit(self._sock, message, fds)
                self._unsent.popleft()
                close_all(fds)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"keeper is gone: {error.strerror}")
            return
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        for _ in range(_MESSAGES_A_TURN):
            if self._lost is not None:
                return
            out_of = None
            try:
                message, fds = receive(self._sock)
            except BlockingIOError:
                return
            except OSError as error:
                self.close(f"keeper is gone: {error.strerror}")
                return
            except DescriptorsLost as lost:
                # Costs the one call, and none of the containers whose exits come over this connection.
                message, fds, out_of = lost.data, [], str(lost)
            except wire.WireError as error:
                self.close(f"keeper broke the protocol: {error}")
                return
            if not message:
                close_all(fds)
                self.close("keeper is gone: it closed the connection")
                return
            try:
                self._dispatch(message, fds, out_of)
            except wire.WireError as error:
                close_all(fds)
                self.close(f"keeper broke the protocol: {error}")

    def _dispatch(self, message: bytes, fds: list[int], out_of: str | None) -> None:
        _, verb, request = wire.unpack_header(message)
        body: dict[str, Any] = wire.unpack_body(message)
        if verb == wire.EXITS:
            self.on_exits(body["exits"])
        elif verb == wire.LEASES:
            self.on_lease(body)
        elif verb == wire.FENCED:
            self.close("fenced: a newer engine took over")
        else:
            future = self._calls.get(request)
            if future is not None and not future.done():
                if out_of is None:
                    future.set_result((body, fds))
                    return
                future.set_exception(LimitExceeded(out_of, limit="ulimit -n"))
        close_all(fds)


def _error(answer: dict[str, Any], operation: str, subject: str, executable: str) -> LightermanError:
    """The keeper's refusal as one of ours, by its code."""
    code, text = answer["code"], answer["text"]
    container = subject or None
    if code == requests.LIMIT:
        return LimitExceeded(text, limit="keeper", operation=operation, container=container)
    if code == requests.FAILED:
        scarce = _OUT_OF.get(answer.get("errno", 0))
        if scarce is not None:
            return LimitExceeded(text, limit=scarce, operation=operation, container=container)
        return RuntimeFailed(text, runtime=executable, operation=operation, container=container)
    kinds: dict[str, type[LightermanError]] = {
        requests.INVALID: InvalidSpec,
        requests.EXISTS: AlreadyExists,
        requests.NOT_FOUND: NotFound,
        requests.STATE: InvalidState,
        requests.UNSUPPORTED: NotSupported,
        requests.VERSION: NotSupported,
    }
    return kinds.get(code, InternalError)(text, operation=operation, container=container)


_NAMES = {
    wire.HELLO: "connect",
    wire.SPAWN: "spawn",
    wire.LIST: "list",
    wire.FETCH: "fetch",
    wire.CLOSE: "close",
    wire.ACKNOWLEDGE: "acknowledge",
    wire.PING: "ping",
    wire.STATS: "stats",
    wire.REGISTER: "register",
    wire.SHUTDOWN: "shutdown",
    wire.EXIT_OF: "wait",
    wire.ABORT: "abort",
    wire.LEASE: "lease",
    wire.RELEASE: "release",
    wire.RENEW: "renew",
    wire.LEASE_OF: "lease",
    wire.UPGRADE: "upgrade",
    wire.DRAINS: "count what is dropped",
    wire.MAILBOX: "keep a mailbox",
    wire.MAILBOX_OF: "keep a mailbox",
}
