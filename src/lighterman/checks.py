"""Values that say how to find out whether a container is healthy, and when it is ready."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from lighterman.errors import InvalidSpec

__all__ = [
    "PROBES",
    "Exec",
    "File",
    "HealthCheck",
    "Http",
    "LogPattern",
    "Port",
    "Probe",
    "Readiness",
    "SdNotify",
    "Tcp",
    "UnixSocket",
    "storable",
]

_CONTROL = re.compile(r"[\x00-\x20\x7f]")


class _Tagged(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind"):
    pass


# ---- probes ------------------------------------------------------------------------------------------------------


class Exec(_Tagged, frozen=True, tag="exec"):
    """A command in the container: healthy if it exits with 0. `argv` is a list, never one text."""

    argv: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.argv, str) or not self.argv:
            raise InvalidSpec(f"probe command {self.argv!r}: must be a list of arguments: use ['sh', '-c', ...]")
        words = tuple(self.argv) if isinstance(self.argv, Iterable) else (self.argv,)
        if not all(isinstance(word, str) for word in words):
            raise InvalidSpec(f"probe command {self.argv!r:.140}: its arguments must be texts")
        msgspec.structs.force_setattr(self, "argv", words)


class Tcp(_Tagged, frozen=True, tag="tcp"):
    """A connection to a port is accepted, inside the container's network. `host` is an IP address, never a name."""

    port: int
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        _check_address(self.host, self.port)


class Http(_Tagged, frozen=True, tag="http"):
    """`GET path` over plain HTTP is answered with `status`; None takes any from 200 to 399."""

    port: int
    path: str = "/"
    status: int | None = None
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        _check_address(self.host, self.port)
        if (
            not isinstance(self.path, str)
            or not self.path.startswith("/")
            or _CONTROL.search(self.path)
            or not self.path.isascii()
        ):
            raise InvalidSpec(f"probe path {self.path!r}: must begin with '/' and be ASCII without blanks")
        if self.status is not None and not 100 <= self.status <= 599:
            raise InvalidSpec(f"probe status {self.status!r}: must be 100 to 599")


class UnixSocket(_Tagged, frozen=True, tag="unix"):
    """A connection to the stream socket at this absolute path in the container is accepted."""

    path: str

    def __post_init__(self) -> None:
        _check_path(self.path)


class File(_Tagged, frozen=True, tag="file"):
    """There is a file at this absolute path in the container, changed within the last `max_age_s` seconds."""

    path: str
    max_age_s: float | None = None

    def __post_init__(self) -> None:
        _check_path(self.path)
        if self.max_age_s is not None and (not _is_number(self.max_age_s) or not self.max_age_s > 0):
            raise InvalidSpec(f"probe max_age_s {self.max_age_s!r}: must be more than 0 seconds, or None")
        if self.max_age_s == float("inf"):
            # JSON has no infinity: it would be read as None anyway.
            msgspec.structs.force_setattr(self, "max_age_s", None)


PROBES = Exec | Tcp | Http | UnixSocket | File

if TYPE_CHECKING:
    Probe = PROBES | Callable[[Any], Awaitable[object] | object]
    OnUnhealthy = Literal["none", "restart", "stop", "kill"] | Callable[[Any], Awaitable[object] | object]
else:
    # Functions have no form that could be checked or stored; `HealthCheck` looks at what it is given.
    Probe = OnUnhealthy = Any


class HealthCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How and how often to look, and what follows.

    Attributes:
        probe: one of the probes here; or a function, sync or async, of the `Container`: healthy if what it returns is
            true. A function is known to this process alone: a later engine does without.
        interval_s: from the end of one probe to the next. timeout_s: a probe that takes longer has failed.
        retries: so many failures in a row make it unhealthy.
        start_period_s: failures in the first seconds of a run do not count, until it has been healthy once.
        start_interval_s: before the first probe, and between probes in the start period.
        startup: a probe that takes the place of `probe` until it has succeeded once in a run; None is no such probe.
        on_unhealthy: `none`; `restart`: the run is ended by the stop signal and begun anew whatever the restart policy
            (its delays and its start limit hold); `stop`: stopped as by request; `kill`: killed, the policy decides;
            or a function of the `Container`.
    """

    probe: Probe
    interval_s: float = 30.0
    timeout_s: float = 30.0
    retries: int = 3
    start_period_s: float = 0.0
    start_interval_s: float = 1.0
    startup: Probe | None = None
    on_unhealthy: OnUnhealthy = "none"

    def __post_init__(self) -> None:
        """Raises: InvalidSpec."""
        for name in ("probe", "startup"):
            value = getattr(self, name)
            if isinstance(value, dict):
                msgspec.structs.force_setattr(self, name, msgspec.convert(value, PROBES))
            elif not isinstance(value, PROBES) and not callable(value) and not (name == "startup" and value is None):
                raise InvalidSpec(f"health {name} {value!r}: must be a probe as Tcp(80), or a function")
        for name in ("interval_s", "timeout_s", "start_interval_s"):
            if not _is_number(getattr(self, name)) or not 0.001 <= getattr(self, name) <= 86400:
                raise InvalidSpec(f"health {name} {getattr(self, name)!r}: must be 0.001 to 86400 seconds")
        if not _is_number(self.start_period_s) or not 0 <= self.start_period_s < float("inf"):
            raise InvalidSpec(f"health start_period_s {self.start_period_s!r}: must be 0 seconds or more")
        if not isinstance(self.retries, int) or not 1 <= self.retries <= 1000:
            raise InvalidSpec(f"health retries {self.retries!r}: must be 1 to 1000")
        if not callable(self.on_unhealthy) and self.on_unhealthy not in ("none", "restart", "stop", "kill"):
            raise InvalidSpec(f"on_unhealthy {self.on_unhealthy!r}: must be none, restart, stop, kill or a function")


def storable(check: HealthCheck | None) -> HealthCheck | None:
    """What a later engine can know of it: functions are left out; None where the probe itself is one."""
    if check is None or not isinstance(check.probe, PROBES):
        return None
    return msgspec.structs.replace(
        check,
        startup=check.startup if isinstance(check.startup, PROBES) else None,
        on_unhealthy="none" if callable(check.on_unhealthy) else check.on_unhealthy,
    )


# ---- readiness ---------------------------------------------------------------------------------------------------


class LogPattern(_Tagged, frozen=True, tag="log"):
    """Ready when a line of this run's output matches the regular expression, anywhere in the line.

    Attributes: stream: `stdout`, `stderr` or None for both. What comes after 64 KiB of a line is not looked at.
    """

    pattern: str
    stream: Literal["stdout", "stderr"] | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern.encode())
        except re.error as wrong:
            raise InvalidSpec(f"log pattern {self.pattern!r}: {wrong}") from wrong


class Port(_Tagged, frozen=True, tag="port"):
    """Ready when a connection to this port is accepted, inside the container's network."""

    port: int
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        _check_address(self.host, self.port)


class SdNotify(_Tagged, frozen=True, tag="notify"):
    """Ready when a process in the container sends `READY=1` to NOTIFY_SOCKET, as sd_notify(3) does."""


Readiness = LogPattern | Port | SdNotify


def _check_address(host: str, port: int) -> None:
    import ipaddress  # two milliseconds, for those who probe a port

    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise InvalidSpec(f"probe port {port!r}: must be 1 to 65535")
    try:
        ipaddress.ip_address(host)
    except ValueError as wrong:
        raise InvalidSpec(f"probe host {host!r}: must be an IP address, names are not looked up") from wrong


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_path(path: str) -> None:
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or len(path) > 4095:
        raise InvalidSpec(f"probe path {path!r:.140}: must be absolute, without NUL and shorter than 4096 characters")
