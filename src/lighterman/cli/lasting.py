"""What was asked of `lighterman run` about the time after its start: health, restarts, its time, its log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lighterman.checks import Exec, HealthCheck
from lighterman.errors import InvalidSpec
from lighterman.quantities import parse_duration
from lighterman.spec import JournaldSink, RestartPolicy, SyslogSink

__all__ = ["Lasting"]


class Lasting(msgspec.Struct, frozen=True, kw_only=True):
    """The options as click gives them; see `cli.run`."""

    health_cmd: str | None
    health_interval: str | None
    health_timeout: str | None
    health_start_period: str | None
    health_start_interval: str | None
    health_retries: int | None
    health_on_failure: str | None
    restart: str | None
    restart_opt: tuple[str, ...]
    timeout: str | None
    log_policy: str | None
    log_sink: tuple[str, ...]

    @property
    def restarts(self) -> bool:
        """Whether more than one run may come."""
        return self.policy().can_restart or self.health_on_failure == "restart"

    def health(self) -> HealthCheck | None:
        """Raises: InvalidSpec with the option that can't be."""
        given = {
            "interval_s": _seconds("--health-interval", self.health_interval),
            "timeout_s": _seconds("--health-timeout", self.health_timeout),
            "start_period_s": _seconds("--health-start-period", self.health_start_period),
            "start_interval_s": _seconds("--health-start-interval", self.health_start_interval),
            "retries": self.health_retries,
            "on_unhealthy": self.health_on_failure,
        }
        wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.health_cmd is None:
            if wanted:
                raise InvalidSpec("--health-* without --health-cmd: give the command that says how it is")
            return None
        # As docker has it: for the container's shell.
        return HealthCheck(Exec(("sh", "-c", self.health_cmd)), **wanted)

    def policy(self) -> RestartPolicy:
        """Raises: InvalidSpec."""
        policy = RestartPolicy.parse(self.restart or "no")
        given: dict[str, Any] = {}
        for text in self.restart_opt:
            key, equals, value = text.partition("=")
            if not equals or key not in _RESTART:
                raise InvalidSpec(f"--restart-opt {text!r:.100}: must be KEY=VALUE, of {', '.join(_RESTART)}")
            name, parse = _RESTART[key]
            try:
                parsed = parse(value)
            except (InvalidSpec, ValueError) as wrong:
                raise InvalidSpec(f"--restart-opt {text!r:.100}: {wrong}") from wrong
            given[name] = (*given.get(name, ()), parsed) if name.endswith("_codes") else parsed
        return msgspec.structs.replace(policy, **given)

    def ttl_s(self) -> float | None:
        """Raises: InvalidSpec."""
        return _seconds("--timeout", self.timeout)

    def sinks(self) -> Sequence[JournaldSink | SyslogSink]:
        """Raises: InvalidSpec."""
        return [_sink(text) for text in self.log_sink]


def _seconds(option: str, text: str | None) -> float | None:
    try:
        return None if text is None else parse_duration(text)
    except InvalidSpec as wrong:
        raise InvalidSpec(f"{option}: {wrong}") from wrong


def _code(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else text


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise InvalidSpec(f"{text!r:.50} must be a whole number")
    return int(text)


def _number(text: str) -> float:
    if not text.isascii() or len(text) > 40:
        raise InvalidSpec(f"{text!r:.50} must be a number")
    return float(text)


_RESTART: dict[str, tuple[str, Callable[[str], Any]]] = {
    "delay": ("initial_delay_s", parse_duration),
    "max-delay": ("max_delay_s", parse_duration),
    "multiplier": ("multiplier", _number),
    "jitter": ("jitter", _number),
    "reset-after": ("reset_after_s", parse_duration),
    "burst": ("burst", _whole),
    "interval": ("interval_s", parse_duration),
    "on": ("force_codes", _code),
    "never-on": ("prevent_codes", _code),
}


def _sink(text: str) -> JournaldSink | SyslogSink:
    kind, colon, address = text.partition(":")
    if kind == "journald":
        return JournaldSink(path=address) if colon else JournaldSink()
    if kind == "syslog":
        return SyslogSink(address=address) if colon else SyslogSink()
    raise InvalidSpec(f"--log-sink {text!r:.100}: must be journald[:SOCKET] or syslog[:SOCKET|udp://IP:PORT]")
