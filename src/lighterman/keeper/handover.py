"""What one keeper program leaves to the next over an exec: a memfd, and the descriptors, which keep their numbers.

    magic b"LMKH" | format u16 | 0 u16 | records: length u32, then one encoded list `[kind, body, descriptors]`

The last record is `end` with the number of those before it. Numbers of the frame are big-endian, bodies as `wire.py`
encodes them. A program refuses another format, and a record of a kind or without a key that it needs: it is tried
out before it takes over. Keys that it does not know it leaves out.
"""

from __future__ import annotations

import os
from struct import Struct

from . import wire
from .leases import Lease
from .mailboxes import Mailbox
from .table import Row
from .wire import WireError

# Spelled out, as `typing` is expensive to import and the checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Record = tuple[str, dict[str, Any], list[int]]

FORMAT = 1
_MAGIC = b"LMKH"
_HEAD = Struct(">4sHH")
_LENGTH = Struct(">I")
_CHUNK = 1000
# What a row has beside what it is made of.
_ROW = (
    "lease",
    "lease_ended",
    "pid",
    "start_time",
    "exited",
    "status",
    "mono_ns",
    "wall_ns",
)


class PeerState:
    """One client: its socket, what it was not sent yet, and whose exits it was not told."""

    __slots__ = ("fd", "is_the_engine", "queue", "role", "untold", "version")

    def __init__(self, fd: int, role: str, version: int, is_the_engine: bool) -> None:
        self.fd = fd
        self.role = role
        self.version = version
        self.is_the_engine = is_the_engine
        self.queue: list[tuple[bytes, list[int]]] = []
        self.untold: list[str] = []


class CallState:
    """One runtime call in flight. `console` is its socket's path, `console_fds` the listener and the connection."""

    __slots__ = (
        "console",
        "console_fds",
        "deadline_ns",
        "job",
        "peer",
        "pid",
        "pid_file",
        "request",
        "since_ticks",
        "spawned_ns",
        "timed_out",
    )

    def __init__(self, body: dict[str, Any], console_fds: list[int]) -> None:
        self.console_fds = console_fds
        for name in self.__slots__:
            if name != "console_fds":
                setattr(self, name, body[name])

    if TYPE_CHECKING:
        pid: int
        spawned_ns: int
        since_ticks: int
        deadline_ns: int
        peer: int | None
        request: int
        job: str | None
        pid_file: str | None
        timed_out: bool
        console: str | None


class State:
    """All of it.

    Attributes:
        settings: single values of the keeper. descriptors: its own, by name.
        serial: of the row that was added last. unclaimed: `(pid, wait status, mono_ns)`.
        over: names, see `Leases.over`. binaries: descriptors by name.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.descriptors: dict[str, int] = {}
        self.serial = 0
        self.binaries: dict[str, int] = {}
        self.rows: dict[str, Row] = {}
        self.unclaimed: list[tuple[int, int, int]] = []
        self.leases: list[Lease] = []
        self.ending: list[Lease] = []
        self.over: list[str] = []
        self.mailboxes: list[Mailbox] = []
        self.calls: list[CallState] = []
        self.peers: list[PeerState] = []

    def records(self) -> list[Record]:
        """In an order in which each can be read when it is met."""
        names = list(self.descriptors)
        body = {"settings": self.settings, "serial": self.serial, "names": names}
        made: list[Record] = [("keeper", body, list(self.descriptors.values()))]
        made += [("binary", {"name": name}, [fd]) for name, fd in self.binaries.items()]
        made += [_row_record(row) for row in self.rows.values()]
        made += [("unclaimed", {"exits": some}, []) for some in _chunks(self.unclaimed)]
        made += [("over", {"names": some}, []) for some in _chunks(self.over)]
        made += [_mailbox_record(box) for box in self.mailboxes]
        for kind, leases in (("lease", self.leases), ("ending", self.ending)):
            for lease in leases:
                made.append(_lease_record(kind, lease))
                made += [("of-ending", {"jobs": some}, []) for some in _chunks([row.job for row in lease.rows])]
        for peer in self.peers:
            body = {"role": peer.role, "version": peer.version, "engine": peer.is_the_engine}
            made.append(("peer", body, [peer.fd]))
            made += [("queued", {"message": message}, fds) for message, fds in peer.queue]
            made += [("untold", {"jobs": some}, []) for some in _chunks(peer.untold)]
        made += [_call_record(call) for call in self.calls]
        return made


def pack(records: list[Record]) -> bytes:
    """Raises: WireError for a value without an encoding."""
    out = bytearray(_HEAD.pack(_MAGIC, FORMAT, 0))
    for record in [*records, ("end", {"records": len(records)}, [])]:
        data = wire.encode(list(record))
        out += _LENGTH.pack(len(data))
        out += data
    return bytes(out)


def unpack(data: bytes) -> list[Record]:
    """The inverse of `pack`. Raises: WireError."""
    if len(data) < _HEAD.size:
        raise WireError(f"state of {len(data)} bytes: shorter than its head")
    magic, version, _ = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != FORMAT:
        raise WireError(f"state is of format {magic!r} {version}: this program reads {_MAGIC!r} {FORMAT}")
    records: list[Record] = []
    at = _HEAD.size
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        record: Any = wire.decode(data[at : at + length])
        at += length
        kind, body, fds = record
        if kind == "end" and body["records"] == len(records) and at == len(data):
            return records
        records.append((kind, body, fds))
    raise WireError("state is cut off")


def parse(records: list[Record]) -> State:
    """What the records say. No I/O. Raises: WireError, KeyError, TypeError, ValueError for what can't be understood."""
    state = State()
    for kind, body, fds in records:
        if kind == "keeper":
            state.settings, state.serial = body["settings"], body["serial"]
            state.descriptors = dict(zip(body["names"], fds, strict=True))
        elif kind == "binary":
            (state.binaries[body["name"]],) = fds
        elif kind == "row":
            state.rows[body["job"]] = _row(body, fds)
        elif kind == "unclaimed":
            state.unclaimed += [(pid, status, mono_ns) for pid, status, mono_ns in body["exits"]]
        elif kind == "over":
            state.over += body["names"]
        elif kind == "mailbox":
            state.mailboxes.append(Mailbox(body["name"], fds[0], body["ready_ns"], body["stopping"], body["status"]))
        elif kind == "lease":
            state.leases.append(_lease(body))
        elif kind == "ending":
            state.ending.append(_lease(body))
        elif kind == "of-ending":
            state.ending[-1].rows += [state.rows[job] for job in body["jobs"]]
        elif kind == "peer":
            state.peers.append(PeerState(fds[0], body["role"], body["version"], body["engine"]))
        elif kind == "queued":
            state.peers[-1].queue.append((body["message"], fds))
        elif kind == "untold":
            state.peers[-1].untold += body["jobs"]
        elif kind == "call":
            state.calls.append(CallState(body, fds))
        else:
            raise WireError(f"state has a record of an unknown kind {kind!r:.40}")
    if not state.descriptors:
        raise WireError("state has no record of the keeper itself")
    return state


def write(records: list[Record]) -> int:
    """A memfd of them, which outlives an exec; the caller closes it. Raises: OSError."""
    fd = os.memfd_create("lighterman-keeper", 0)
    try:
        data = memoryview(pack(records))
        while data:
            data = data[os.write(fd, data) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(fd: int) -> list[Record]:
    """The records in a memfd, which is closed. Raises: OSError, WireError."""
    with os.fdopen(fd, "rb") as file:
        return unpack(file.read())


def let_through(records: list[Record], passes: bool) -> None:
    """Whether an exec leaves their descriptors open. Raises: OSError (EBADF: a defect of ours)."""
    for _, _, fds in records:
        for fd in fds:
            os.set_inheritable(fd, passes)


def check(fd: int) -> None:
    """Whether this program would take a state over: raises what `parse` does, and what its modules do."""
    # What is imported late otherwise must be there as well.
    from . import segments, server, upgrade  # noqa: F401

    parse(read(fd))


def _chunks(values: list[Any]) -> list[list[Any]]:
    """Of a size that `wire` decodes."""
    return [values[at : at + _CHUNK] for at in range(0, len(values), _CHUNK)]


def _row_record(row: Row) -> Record:
    body: dict[str, Any] = {name: getattr(row, name) for name in _ROW}
    body |= {
        "serial": row.serial,
        "job": row.job,
        "slot": row.slot,
        "held": list(row.held),
        "segments": row.segments,
        "recipe": row.recipe,
        "meta": row.meta,
    }
    return "row", body, list(row.held.values())


def _row(body: dict[str, Any], fds: list[int]) -> Row:
    held = dict(zip(body["held"], fds, strict=True))
    segments: Any = tuple(body["segments"]) if body["segments"] is not None else None
    row = Row(body["serial"], body["job"], body["slot"], held, segments, body["recipe"], body["meta"])
    for name in _ROW:
        setattr(row, name, body[name])
    return row


def _mailbox_record(box: Mailbox) -> Record:
    said = {"name": box.name, "ready_ns": box.ready_ns, "stopping": box.stopping, "status": box.status}
    return "mailbox", said, [box.fd]


_LEASE = ("name", "pidfd", "until", "remove", "groups", "grace_s", "connection", "gone_until")


def _lease_record(kind: str, lease: Lease) -> Record:
    body: dict[str, Any] = {name: getattr(lease, name) for name in _LEASE}
    return kind, body, [fd for fd in (lease.pidfd, lease.connection) if fd is not None]


def _lease(body: dict[str, Any]) -> Lease:
    return Lease(*(body[name] for name in _LEASE))


def _call_record(call: CallState) -> Record:
    body: dict[str, Any] = {name: getattr(call, name) for name in call.__slots__ if name != "console_fds"}
    return "call", body, call.console_fds
