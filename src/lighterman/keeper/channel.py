"""One datagram with its descriptors, in either direction; the keeper and its client both use it."""

from __future__ import annotations

import os
import sys
from _collections_abc import Iterable, Sequence
from _socket import (
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    SCM_RIGHTS,
    SOL_SOCKET,
    socket,
)

from .wire import MAX_DESCRIPTORS, MESSAGE_BYTES, WireError

# SCM_MAX_FD of Linux: with room for less the kernel would cut the list and we could not tell how many were meant.
_ANCILLARY_BYTES = CMSG_SPACE(253 * 4)


class DescriptorsLost(WireError):
    """This process has no room for a message's descriptors, which are lost; `data` is whole, and the connection too."""

    def __init__(self, data: bytes) -> None:
        super().__init__("no room for a message's descriptors: raise `ulimit -n`")
        self.data = data


def receive(sock: socket) -> tuple[bytes, list[int]]:
    """The next message and its descriptors (close-on-exec, the caller's to close); `b""` at the end.

    Raises: BlockingIOError if there is none now; DescriptorsLost; WireError for a cut message or too many descriptors,
    which are then closed; OSError if the connection broke.
    """
    data, ancillary, flags, _ = sock.recvmsg(MESSAGE_BYTES, _ANCILLARY_BYTES, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds.extend(memoryview(payload)[: len(payload) // 4 * 4].cast("i"))
    if flags & MSG_TRUNC:
        close_all(fds)
        raise WireError(f"message cut: longer than {MESSAGE_BYTES} bytes")
    if flags & MSG_CTRUNC:
        # There is room for as many as Linux sends: it was this process's limit that cut them.
        close_all(fds)
        raise DescriptorsLost(data)
    if len(fds) > MAX_DESCRIPTORS:
        close_all(fds)
        raise WireError(f"{len(fds)} descriptors in one message: at most {MAX_DESCRIPTORS}")
    return data, fds


def transmit(sock: socket, data: bytes, fds: Sequence[int]) -> None:
    """Send one message whole. Raises: BlockingIOError if it does not fit now; OSError if the connection broke."""
    if not fds:
        sock.send(data, MSG_DONTWAIT | MSG_NOSIGNAL)
        return
    payload = b"".join(fd.to_bytes(4, sys.byteorder, signed=True) for fd in fds)
    sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, payload)], MSG_DONTWAIT | MSG_NOSIGNAL)


def close_all(fds: Iterable[int]) -> None:
    """Close each descriptor once."""
    for fd in set(fds):
        os.close(fd)
