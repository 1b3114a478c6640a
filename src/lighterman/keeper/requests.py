"""What clients send, checked: nothing behind this file sees a value of a wrong type or size."""

from __future__ import annotations

from . import wire

MAX_TIMEOUT_S = 86400.0
MAX_OPAQUE_BYTES = 16384
MAX_CHILD_FD = 63
HELD_NAMES_LIMIT = 16
# Those of `segments.py`, which a keeper whose engine is there does not load; the default first.
POLICIES = ("block", "drop-oldest", "drop-newest")


class Refused(Exception):
    """A request that is not done. `code` is for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


INVALID = "invalid"
EXISTS = "exists"
NOT_FOUND = "not_found"
STATE = "state"
LIMIT = "limit"
FAILED = "failed"
UNSUPPORTED = "unsupported"
VERSION = "version"


class SpawnRequest:
    """A checked SPAWN; descriptors are the keeper's own numbers."""

    __slots__ = (
        "argv",
        "console",
        "cwd",
        "descriptors",
        "env",
        "executable",
        "hold",
        "job",
        "lease",
        "meta",
        "mount_fd",
        "mount_target",
        "pid_file",
        "recipe",
        "segments",
        "timeout_s",
    )

    def __init__(self, body: dict[str, object], fds: list[int]) -> None:
        """Raises: Refused."""
        self.job = job_key(body)
        self.executable = text(body, "executable")
        self.argv = _texts(_list(body, "argv"), "argv")
        if not self.argv:
            raise Refused(INVALID, "argv []: must have the name of the program")
        env = _dict(body, "env")
        self.env = dict(zip(env, _texts(list(env.values()), "env"), strict=True))
        self.cwd = _path(body, "cwd")
        self.pid_file = None if body.get("pid_file") is None else _path(body, "pid_file")
        self.console = None if body.get("console") is None else _path(body, "console")
        self.timeout_s = _seconds(body, "timeout_s")
        self.recipe = _opaque(body, "recipe")
        self.meta = _opaque(body, "meta")
        self.segments = _segments(body)
        self.lease = "" if body.get("lease") is None else text(body, "lease")
        stdio = _list(body, "stdio")
        if len(stdio) != 3:
            raise Refused(INVALID, f"stdio of {len(stdio)} descriptors: must be 3")
        self.descriptors = {number: _fd(index, fds) for number, index in enumerate(stdio)}
        for number, index in _dict(body, "extra").items():
            if not number.isdecimal() or not number.isascii() or not 3 <= int(number[:4]) <= MAX_CHILD_FD:
                raise Refused(INVALID, f"descriptor number {number[:8]!r}: must be 3 to {MAX_CHILD_FD}")
            self.descriptors[int(number)] = _fd(index, fds)
        hold = _dict(body, "hold")
        if len(hold) > HELD_NAMES_LIMIT:
            raise Refused(LIMIT, f"{len(hold)} descriptors to hold: at most {HELD_NAMES_LIMIT}")
        self.hold = {name: _fd(index, fds) for name, index in hold.items()}
        self.mount_fd: int | None = None
        self.mount_target = ""
        if body.get("mount") is not None:
            mount = _dict(body, "mount")
            self.mount_fd = _fd(mount.get("fd"), fds)
            self.mount_target = _path(mount, "target")


def job_key(body: dict[str, object]) -> str:
    key = text(body, "job")
    if not wire.valid_job(key):
        raise Refused(INVALID, f"job {key[:40]!r}: must be [A-Za-z0-9][A-Za-z0-9_.:-]{{0,200}}")
    return key


def lease_name(body: dict[str, object]) -> str:
    return _name(body, "lease")


def mailbox_name(body: dict[str, object]) -> str:
    return _name(body, "mailbox")


def _name(body: dict[str, object], key: str) -> str:
    name = text(body, key)
    if not wire.valid_job(name):
        raise Refused(INVALID, f"{key} {name[:40]!r}: must be [A-Za-z0-9][A-Za-z0-9_.:-]{{0,200}}")
    return name


def text(body: dict[str, object], key: str) -> str:
    value = body.get(key)
    if type(value) is not str or "\0" in value:
        raise Refused(INVALID, f"{key}: must be text without NUL")
    return value


def names(body: dict[str, object]) -> list[str]:
    return texts(body, "names")


def texts(body: dict[str, object], key: str) -> list[str]:
    return _texts(_list(body, key), key)


def number(body: dict[str, object], key: str) -> int:
    value = body.get(key)
    if type(value) is not int or value < 0:
        raise Refused(INVALID, f"{key} {value!r}: must be a number of 0 or more")
    return value


def moment(body: dict[str, object], key: str) -> float | None:
    """Seconds on some clock, or None."""
    value = body.get(key)
    if value is None:
        return None
    # A NaN fails this comparison too.
    if type(value) not in (int, float) or not 0 <= value < 2**62:  # type: ignore[operator]
        raise Refused(INVALID, f"{key} {value!r:.40}: must be seconds of 0 or more")
    return float(value)  # type: ignore[arg-type]


def paths(body: dict[str, object], key: str) -> list[str]:
    found = _texts(_list(body, key), key)
    for path in found:
        if not path.startswith("/") or not path.strip("/") or ".." in path.split("/"):
            raise Refused(INVALID, f"{key} {path[:80]!r}: must be an absolute path without '..'")
    return found


def _path(body: dict[str, object], key: str) -> str:
    value = text(body, key)
    if not value.startswith("/"):
        raise Refused(INVALID, f"{key} {value[:80]!r}: must be an absolute path")
    return value


def _seconds(body: dict[str, object], key: str) -> float:
    value = body.get(key)
    # A NaN fails this comparison too.
    if type(value) not in (int, float) or not 0 < value <= MAX_TIMEOUT_S:  # type: ignore[operator]
        raise Refused(INVALID, f"{key} {value!r}: must be more than 0, at most {MAX_TIMEOUT_S} seconds")
    return float(value)  # type: ignore[arg-type]


def _opaque(body: dict[str, object], key: str) -> bytes:
    value = body.get(key)
    if type(value) is not bytes:
        raise Refused(INVALID, f"{key}: must be bytes")
    if len(value) > MAX_OPAQUE_BYTES:
        raise Refused(LIMIT, f"{key} of {len(value)} bytes: at most {MAX_OPAQUE_BYTES}")
    return value


def _segments(body: dict[str, object]) -> tuple[str, int, int, str] | None:
    if body.get("segments") is None:
        return None
    plan = _dict(body, "segments")
    policy = plan.get("policy", POLICIES[0])
    if policy not in POLICIES:
        raise Refused(INVALID, f"policy {policy!r:.40}: must be one of {', '.join(POLICIES)}")
    return _path(plan, "dir"), number(plan, "max_bytes"), number(plan, "max_files"), str(policy)


def _texts(values: list[object], key: str) -> list[str]:
    for value in values:
        if type(value) is not str or "\0" in value:
            raise Refused(INVALID, f"{key}: must be texts without NUL")
    return values  # type: ignore[return-value]


def _list(body: dict[str, object], key: str) -> list[object]:
    value = body.get(key)
    if type(value) is not list:
        raise Refused(INVALID, f"{key}: must be a list")
    return value


def _dict(body: dict[str, object], key: str) -> dict[str, object]:
    value = body.get(key)
    if type(value) is not dict:
        raise Refused(INVALID, f"{key}: must be a dict")
    return value


def _fd(index: object, fds: list[int]) -> int:
    if type(index) is not int or not 0 <= index < len(fds):
        raise Refused(INVALID, f"descriptor index {index!r}: {len(fds)} came with the message")
    return fds[index]
