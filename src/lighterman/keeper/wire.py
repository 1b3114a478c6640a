"""The keeper's protocol: bytes in, values out, no I/O and nothing but `struct`, so that the keeper starts fast.

One message is one SOCK_SEQPACKET datagram of at most MESSAGE_BYTES:

    version u16 | verb u16 | request u32 | body

all big-endian; this header never changes, so that each side can name the other's version. The body is one encoded
dict. A request has an id greater than 0 and its answer (OK or ERROR) carries it; what the keeper tells by itself has 0.

A value is a tag byte and its payload: N None, T True, F False, i int (signed 64 bits), f float (IEEE 754 double),
b bytes, s str (UTF-8, lone surrogates as `os.fsdecode` makes them), l list, d dict with str keys. Lengths and counts
are u32.
"""

from __future__ import annotations

from struct import Struct

VERSION = 1
# What is understood, the newest first: this release's, and that of the one before. An engine asks a keeper that speaks
# only the older one to become the newer program, in that (`UPGRADE`), and then begins anew. No earlier one exists yet.
PROTOCOLS: tuple[int, ...] = (VERSION,)
MESSAGE_BYTES = 65536
MAX_DEPTH = 8
MAX_VALUES = 16384
MAX_DESCRIPTORS = 64

HELLO = 1
SPAWN = 2
LIST = 3
FETCH = 4
CLOSE = 5
ACKNOWLEDGE = 6
PING = 7
STATS = 8
REGISTER = 9
SHUTDOWN = 10
EXIT_OF = 11
LEASE = 12
ABORT = 13
RELEASE = 14
RENEW = 15
LEASE_OF = 16
UPGRADE = 17
MAILBOX = 18
MAILBOX_OF = 19
DRAINS = 20
OK = 64
ERROR = 65
EXITS = 66
FENCED = 67
LEASES = 68

_HEADER = Struct(">HHI")
HEADER_BYTES = _HEADER.size
_COUNT = Struct(">I")
_INT = Struct(">q")
_FLOAT = Struct(">d")
_TAGGED_COUNT = Struct(">cI")
_TAGGED_INT = Struct(">cq")
_TAGGED_FLOAT = Struct(">cd")
_JOB_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_JOB_REST = _JOB_FIRST | frozenset("_.:-")
MAX_JOB_CHARS = 201


class WireError(Exception):
    """Not a message of this protocol, or one beyond its bounds; the connection can't be trusted any more."""


class TooLong(WireError):
    """A message of more than MESSAGE_BYTES."""


def valid_job(key: str) -> bool:
    """Whether `key` is `[A-Za-z0-9][A-Za-z0-9_.:-]{0,200}`."""
    return 0 < len(key) <= MAX_JOB_CHARS and key[0] in _JOB_FIRST and _JOB_REST.issuperset(key)


def pack(verb: int, request: int, body: dict[str, object], *, version: int = VERSION) -> bytes:
    """One message. Raises: WireError if a value has no encoding or it is longer than MESSAGE_BYTES."""
    message = _HEADER.pack(version, verb, request) + encode(body)
    if len(message) > MESSAGE_BYTES:
        raise TooLong(f"message of {len(message)} bytes: at most {MESSAGE_BYTES}")
    return message


def unpack_header(message: bytes) -> tuple[int, int, int]:
    """`(version, verb, request)`. Raises: WireError."""
    if len(message) < HEADER_BYTES:
        raise WireError(f"message of {len(message)} bytes: shorter than its header")
    version, verb, request = _HEADER.unpack_from(message)
    return version, verb, request


def unpack_body(message: bytes) -> dict[str, object]:
    """The body of a message. Raises: WireError."""
    body = decode(message[HEADER_BYTES:])
    if type(body) is not dict:
        raise WireError(f"message body is {type(body).__name__}: must be dict")
    return body


def encode(value: object) -> bytes:
    """One value as bytes. Raises: WireError if it, or something in it, has no encoding."""
    out = bytearray()
    _put(out, value, 0)
    return bytes(out)


def decode(data: bytes) -> object:
    """The value that `data` holds, exactly. Raises: WireError, and nothing else, on any input."""
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise WireError(f"{len(data) - reader.at} bytes after the value")
    return value


def _text(value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise WireError(f"text {value[:40]!r} has no encoding") from None


def _put(out: bytearray, value: object, depth: int) -> None:
    kind = type(value)
    if kind is str:
        data = _text(value)  # type: ignore[arg-type]
        out += _TAGGED_COUNT.pack(b"s", len(data))
        out += data
    elif kind is int:
        if not -(2**63) <= value < 2**63:  # type: ignore[operator]
            raise WireError(f"number {value}: more than 64 bits")
        out += _TAGGED_INT.pack(b"i", value)
    elif value is None:
        out += b"N"
    elif kind is bool:
        out += b"T" if value else b"F"
    elif kind is float:
        out += _TAGGED_FLOAT.pack(b"f", value)
    elif kind is bytes:
        out += _TAGGED_COUNT.pack(b"b", len(value))  # type: ignore[arg-type]
        out += value  # type: ignore[arg-type]
    elif depth == MAX_DEPTH:
        raise WireError(f"value nested deeper than {MAX_DEPTH}")
    elif kind is list or kind is tuple:
        out += _TAGGED_COUNT.pack(b"l", len(value))  # type: ignore[arg-type]
        for item in value:  # type: ignore[attr-defined]
            _put(out, item, depth + 1)
    elif kind is dict:
        out += _TAGGED_COUNT.pack(b"d", len(value))  # type: ignore[arg-type]
        for key, item in value.items():  # type: ignore[attr-defined]
            if type(key) is not str:
                raise WireError(f"key {key!r}: must be str")
            data = _text(key)
            out += _COUNT.pack(len(data))
            out += data
            _put(out, item, depth + 1)
    else:
        raise WireError(f"value of type {kind.__name__} has no encoding")


class _Reader:
    __slots__ = ("at", "data", "left")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.left = MAX_VALUES

    def value(self, depth: int) -> object:
        self.left -= 1
        if self.left < 0:
            raise WireError(f"more than {MAX_VALUES} values in one message")
        tag = self.data[self.at : self.at + 1]
        self.at += 1
        if tag == b"s":
            return self.text()
        if tag == b"i":
            at = self.skip(8)
            return _INT.unpack_from(self.data, at)[0]
        if tag == b"N":
            return None
        if tag == b"T":
            return True
        if tag == b"F":
            return False
        if tag == b"b":
            size = self.count()
            at = self.skip(size)
            return self.data[at : at + size]
        if tag == b"f":
            at = self.skip(8)
            return _FLOAT.unpack_from(self.data, at)[0]
        if tag not in (b"l", b"d"):
            raise WireError(f"unknown tag {tag!r}")
        if depth == MAX_DEPTH:
            raise WireError(f"value nested deeper than {MAX_DEPTH}")
        if tag == b"l":
            return [self.value(depth + 1) for _ in range(self.count())]
        result: dict[str, object] = {}
        count = self.count()
        for _ in range(count):
            key = self.text()
            result[key] = self.value(depth + 1)
        if len(result) != count:
            raise WireError("a key given twice")
        return result

    def text(self) -> str:
        size = self.count()
        at = self.skip(size)
        return self.data[at : at + size].decode("utf-8", "surrogateescape")

    def count(self) -> int:
        at = self.skip(4)
        count: int = _COUNT.unpack_from(self.data, at)[0]
        # Each counted thing takes a byte at least: a huge count is refused before anything is made for it.
        if count > len(self.data) - self.at:
            raise WireError(f"count {count}: more than the message has")
        return count

    def skip(self, size: int) -> int:
        at = self.at
        if at + size > len(self.data):
            raise WireError("message ends within a value")
        self.at = at + size
        return at
