"""What a lease can be asked to be, and how one is shown: values, and the checks of what a caller gives."""

from __future__ import annotations

import errno
import math
import os
import socket
import sys
from typing import Protocol

import msgspec

from lighterman.errors import InvalidSpec, LimitExceeded, NotSupported

__all__ = ["ConnectionLease", "Lease", "asked_lease", "check_ttl", "own_connection"]


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


class ConnectionLease(msgspec.Struct, frozen=True):
    """The container ends with a client: when that hangs up, and does not come back within limits.LEASE_RECONNECT_S.

    Attributes:
        sock: our end of a connected stream socket, its descriptor, or anything with a `fileno`. The keeper takes a
            duplicate, which outlives this program, and never reads from it. Half a close of the client's counts as
            hanging up. To hang up from this side use `shutdown`: after `close` alone the client would see no end.
    """

    sock: _HasDescriptor | int


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What ends a container.

    Attributes:
        kind: `scope` (a block of this program), `process` (this program), `owner` (another process), `connection` (a
            client), None: it lives on.
        owner: the pid of the process that it is held against.
        connected: whether its client is there, of `connection`.
        ttl_s: how long it may run after its start, or after the last renewal.
        left_s: what of that is left, or of the time in which its client may come back.
    """

    kind: str | None
    owner: int | None = None
    connected: bool | None = None
    ttl_s: float | None = None
    left_s: float | None = None


def asked_lease(lease: str | int | ConnectionLease | None, ttl_s: float | None) -> dict[str, object]:
    """The fields of a record for what was asked. Raises: InvalidSpec."""
    fields: dict[str, object] = {"ttl_s": check_ttl(ttl_s) if ttl_s is not None else None}
    if isinstance(lease, ConnectionLease):
        if sys.platform != "linux":
            raise NotSupported("a lease of a connection: only Linux can watch it while no engine is there")
        os.close(own_connection(lease))
        return {**fields, "lease": "connection"}
    if isinstance(lease, int) and not isinstance(lease, bool):
        started = _started(lease)
        return {**fields, "lease": "owner", "owner": lease, "owner_started": started}
    if lease not in ("process", "scope", None):
        raise InvalidSpec(
            f"lease {lease!r:.80}: must be 'process', 'scope', the pid of its owner, a ConnectionLease, or None"
        )
    return {**fields, "lease": lease}


def check_ttl(ttl_s: float) -> float:
    """Raises: InvalidSpec."""
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not ttl_s > 0 or math.isinf(ttl_s):
        raise InvalidSpec(f"ttl_s {ttl_s!r:.80}: must be more than 0 seconds, or None for no limit")
    return float(ttl_s)


def _started(pid: int) -> int:
    if sys.platform == "linux":
        from lighterman.runtimes.oci.processes import read_start_time

        try:
            os.close(os.pidfd_open(pid))
            started = read_start_time(pid)
        except (OSError, OverflowError):
            started = None
        if started is None:
            raise InvalidSpec(f"lease {pid}: there is no such process")
        return started
    raise NotSupported(f"lease {pid}: only Linux can watch another process for a container's sake")


def own_connection(lease: ConnectionLease) -> int:
    """Our duplicate of it, the caller's to close. Raises: InvalidSpec, LimitExceeded."""
    if isinstance(lease.sock, bool) or not (isinstance(lease.sock, int) or hasattr(lease.sock, "fileno")):
        raise InvalidSpec(f"lease connection {lease.sock!r:.80}: must be a socket or its descriptor")
    try:
        fd = lease.sock if isinstance(lease.sock, int) else lease.sock.fileno()
        ours = os.dup(fd)
    except (OSError, OverflowError, ValueError) as failed:
        if isinstance(failed, OSError) and failed.errno in (errno.EMFILE, errno.ENFILE):
            raise LimitExceeded(
                "no descriptor for a lease's connection: raise `ulimit -n`", limit="ulimit -n"
            ) from failed
        raise InvalidSpec(f"lease connection {lease.sock!r:.80}: it is closed") from failed
    try:
        wrong = _wrong_with(ours)
        if wrong is not None:
            raise InvalidSpec(f"lease connection {lease.sock!r:.80}: {wrong}")
    except BaseException:
        os.close(ours)
        raise
    return ours


def _wrong_with(fd: int) -> str | None:
    """Why a descriptor is not one end of a connection; None if it is."""
    try:
        probe = socket.socket(fileno=fd)
    except OSError:
        return "it is not a socket"
    try:
        if probe.type not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            return "it is not a stream socket, so nobody can hang up"
        if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return "it listens: give the connection that it has accepted"
        probe.getpeername()
    except OSError:
        return "it is not connected"
    finally:
        probe.detach()
    return None
