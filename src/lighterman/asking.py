"""The keyword arguments of `run`, `container` and `create`, checked and made into a ContainerSpec."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar, cast

import msgspec

from lighterman import limits
from lighterman.arguments import check_text, console_size_of, items_of, words_of
from lighterman.checks import HealthCheck, Readiness, storable
from lighterman.errors import InvalidSpec
from lighterman.lifecycle.restart import RestartRule
from lighterman.quantities import parse_cpus, parse_size, parse_swap_size
from lighterman.spec import (
    BlkioLimit,
    CallableSink,
    ConsoleSize,
    ContainerSpec,
    Device,
    JournaldSink,
    LogPolicy,
    Mount,
    Resources,
    RestartPolicy,
    SyslogSink,
    Ulimit,
)

__all__ = ["Options", "as_stored", "check_name", "container_spec", "split_restart", "split_sinks"]

_Stored = TypeVar("_Stored", bound=msgspec.Struct)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Options(TypedDict, total=False):
    """What a container can be asked to be; all of it optional.

    Keys:
        env: name to value. workdir: an absolute path in the container. hostname: else the first of the id.
        user: `name`, `uid`, `name:group` or `uid:gid`.
        memory, memory_swap, memory_reservation, shm_size: bytes, or text as `"256M"`; memory_swap counts memory and
            swap together, -1 is no limit.
        cpus: 1.5 is a CPU and a half. cpu_shares: 2 to 262144. cpuset_cpus, cpuset_mems: as "0-2,5".
        pids_limit: -1 is no limit. blkio_weight: 10 to 1000. device_*: bounds of single block devices.
        ulimits: as `Ulimit(name="nofile", soft=1024, hard=1024)`.
        network: `none` (the default) or `host`.
        mounts: `Mount` values, or text as `"/host/dir:/inside[:ro]"`; tmpfs by `Mount(type="tmpfs", target="/x")`.
        read_only: the root can't be written. rootfs: a directory instead of an image; through an overlay, unless
            rootfs_rw. init: an init process that reaps. restart: as docker's `--restart`, a
            `RestartPolicy`, or a function of the ends so far to a delay or None, which this process alone knows.
        seccomp: `default`, `unconfined` or a profile's path. runtime: `crun`, `runc` or `youki`.
        log_policy: `block`, `drop-oldest` or `drop-newest`, for when the disk refuses output.
        log_sinks: `JournaldSink`, `SyslogSink`, `CallableSink`: where each line goes beside the log's own files.
        health: a `HealthCheck`. ready: `LogPattern`, `Port` or `SdNotify`.
        ttl_s: it is killed that many seconds after its start was asked for, also when no engine is there; then
            `exit.reason == "lease"`.
        stop_signal: a number. terminal: with a terminal of console_size.
    """

    env: Mapping[str, str]
    workdir: str | None
    user: str | None
    hostname: str | None
    memory: str | int | None
    memory_swap: str | int | None
    memory_reservation: str | int | None
    shm_size: str | int
    cpus: float | str | None
    cpu_shares: int | None
    cpuset_cpus: str | None
    cpuset_mems: str | None
    pids_limit: int | None
    blkio_weight: int | None
    device_read_bps: Sequence[BlkioLimit]
    device_write_bps: Sequence[BlkioLimit]
    device_read_iops: Sequence[BlkioLimit]
    device_write_iops: Sequence[BlkioLimit]
    ulimits: Sequence[Ulimit]
    network: str
    mounts: Sequence[Mount | str]
    devices: Sequence[Device | str]
    sysctls: Mapping[str, str]
    labels: Mapping[str, str]
    read_only: bool
    rootfs: str | os.PathLike[str] | None
    rootfs_rw: bool
    init: bool
    privileged: bool
    cap_add: Sequence[str]
    cap_drop: Sequence[str]
    no_new_privileges: bool
    seccomp: str
    oom_score_adj: int | None
    stop_signal: int | None
    restart: str | RestartPolicy | RestartRule
    runtime: str | None
    log_policy: LogPolicy
    log_sinks: Sequence[JournaldSink | SyslogSink | CallableSink]
    health: HealthCheck | None
    ready: Readiness | None
    ttl_s: float | None
    terminal: bool
    console_size: ConsoleSize | tuple[int, int] | None


_RESOURCES = frozenset(Resources.__struct_fields__)
_SPEC = frozenset(ContainerSpec.__struct_fields__)


_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {  # at import, see `recovery`
    kind: msgspec.json.Decoder(kind) for kind in (ContainerSpec, RestartPolicy, Resources, JournaldSink, SyslogSink)
}


def container_spec(image: str | None, argv: Sequence[str], *, stdin: bool, options: Options) -> ContainerSpec:
    """Check what Python lets through, and bring it into one form.

    Raises: InvalidSpec with the option and its value; TypeError for an option that does not exist.
    """
    given = cast("dict[str, Any]", dict(options))
    resources: dict[str, Any] = {}
    wanted: dict[str, Any] = {"image": image, "argv": words_of(argv), "stdin": stdin}
    for name, value in given.items():
        if value is None or name == "ttl_s":  # of the lease, not of the program
            continue
        if name in ("memory", "memory_reservation"):
            resources[f"{name}_bytes"] = parse_size(value)
        elif name == "memory_swap":
            resources["memory_swap_bytes"] = parse_swap_size(value)
        elif name == "cpus":
            resources["cpus"] = parse_cpus(value)
        elif name == "shm_size":
            wanted["shm_bytes"] = parse_size(value)
        elif name == "mounts":
            wanted["mounts"] = tuple(_mount(one) for one in items_of("mounts", value))
        elif name == "devices":
            wanted["devices"] = tuple(_device(one) for one in items_of("devices", value))
        elif name == "restart":
            wanted["restart"] = RestartPolicy.parse(value) if isinstance(value, str) else value
        elif name == "rootfs":
            wanted["rootfs"] = _directory(value)
        elif name == "console_size":
            wanted["console_size"] = console_size_of(value)
        elif name == "labels":
            wanted["labels"] = _labels(value)
        elif name == "log_sinks":
            wanted["log_sinks"] = split_sinks(value)[0]
        elif name == "health":
            if not isinstance(value, HealthCheck):
                raise InvalidSpec(f"health {value!r}: must be a HealthCheck")
            wanted["health"] = storable(value)
        elif name in _RESOURCES:
            resources[name] = value
        elif name in _SPEC:
            wanted[name] = value
        else:
            raise TypeError(f"no option {name!r}: see lighterman.Options")
    wanted["resources"] = resources
    try:
        # Types are checked in one place, whatever kind of mapping or sequence was given.
        spec = msgspec.convert(wanted, ContainerSpec, from_attributes=True)
    except msgspec.ValidationError as wrong:
        raise InvalidSpec(f"not a container that can be: {wrong}") from wrong
    # Values that the caller has made went through that as they are.
    return as_stored("container", spec)


def as_stored(what: str, value: _Stored) -> _Stored:
    """What a later engine reads of it: a row that it can't read would keep it from the whole root.

    Raises: InvalidSpec if that is not the same.
    """
    decoder = next(decoder for kind, decoder in _DECODERS.items() if isinstance(value, kind))
    try:
        stored: _Stored = decoder.decode(msgspec.json.encode(value))
    except (InvalidSpec, ValueError, TypeError, OverflowError, RecursionError) as wrong:
        why = "must be text in UTF-8" if isinstance(wrong, UnicodeEncodeError) else wrong
        raise InvalidSpec(f"{what} {_offender(value, decoder)}: {why}") from wrong
    if stored != value and not _same(stored, value):
        raise InvalidSpec(f"{what} {_offender(value, decoder)}: has a number that can't be stored: give a finite one")
    return stored


def _offender(value: msgspec.Struct, decoder: msgspec.json.Decoder[Any]) -> str:
    """The first field of it that can't be stored, to be shown."""
    for name in value.__struct_fields__:
        try:
            one = msgspec.structs.replace(type(value)(), **{name: getattr(value, name)})
            if _same(decoder.decode(msgspec.json.encode(one)), one):
                continue
        except (InvalidSpec, ValueError, TypeError, OverflowError, RecursionError):
            pass
        wrong = getattr(value, name)
        inner = next((decoder for kind, decoder in _DECODERS.items() if isinstance(wrong, kind)), None)
        return f"{name} {wrong!r:.200}" if inner is None else f"{name} {_offender(wrong, inner)}"
    return f"{value!r:.200}"


def _same(one: object, other: object) -> bool:
    """Whether two values are equal, a list and a tuple of the same counted as equal."""
    if isinstance(one, msgspec.Struct):
        return isinstance(other, type(one)) and all(
            _same(getattr(one, name), getattr(other, name)) for name in one.__struct_fields__
        )
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(_same, one, other))
    return one == other


def split_restart(policy: str | RestartPolicy | RestartRule) -> tuple[RestartPolicy, RestartRule | None]:
    """What can be stored of a policy, and the function that stands for it here. Raises: InvalidSpec."""
    if isinstance(policy, RestartPolicy):
        return as_stored("restart policy", policy), None
    if isinstance(policy, str):
        return RestartPolicy.parse(policy), None
    if callable(policy):
        if inspect.iscoroutinefunction(policy) or inspect.iscoroutinefunction(getattr(policy, "__call__", None)):  # noqa: B004
            raise InvalidSpec(
                f"restart policy {policy!r:.140}: must be a function that answers at once, not a coroutine"
            )
        return RestartPolicy(), policy
    raise InvalidSpec(f"restart policy {policy!r}: must be a text, a RestartPolicy or a function")


def split_sinks(
    sinks: Sequence[JournaldSink | SyslogSink | CallableSink],
) -> tuple[tuple[JournaldSink | SyslogSink, ...], tuple[CallableSink, ...]]:
    """What can be stored of them, and what only this process knows. Raises: InvalidSpec."""
    for sink in items_of("log_sinks", sinks):
        if not isinstance(sink, JournaldSink | SyslogSink | CallableSink):
            raise InvalidSpec(f"log sink {sink!r:.140}: must be a JournaldSink, SyslogSink or CallableSink")
        if not isinstance(sink, CallableSink):
            as_stored("log sink", sink)
        if isinstance(sink, SyslogSink):
            from lighterman.logs.sinks.syslog import syslog_address

            syslog_address(sink.address)
        elif isinstance(sink, JournaldSink) and (not sink.path.startswith("/") or "\0" in sink.path):
            raise InvalidSpec(f"journald socket {sink.path!r:.140}: must be an absolute path")
        elif isinstance(sink, CallableSink) and not callable(sink.function):
            raise InvalidSpec(f"log sink {sink!r:.140}: must have a function")
    kept = tuple(sink for sink in sinks if isinstance(sink, JournaldSink | SyslogSink))
    return kept, tuple(sink for sink in sinks if isinstance(sink, CallableSink))


def check_name(name: str) -> str:
    """A container's name is shown, typed, and a part of messages. Raises: InvalidSpec."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > limits.NAME_CHARS:
        raise InvalidSpec(
            f"container name {name!r:.140}: must be letters, digits, '_', '.' and '-', begin with a letter or a "
            f"digit, and have at most {limits.NAME_CHARS} characters"
        )
    return name


def _directory(value: str | os.PathLike[str]) -> str:
    if not isinstance(value, str | os.PathLike):
        raise InvalidSpec(f"rootfs {value!r:.140}: must be a directory's path")
    return os.path.abspath(check_text("rootfs", os.fspath(value)))


def _labels(value: Mapping[str, str]) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise InvalidSpec(f"labels {value!r:.140}: must be a mapping of names to values")
    for name, text in value.items():
        if not check_text("label", name):
            raise InvalidSpec(f"label {name!r}={text!r:.80}: must have a name")
        check_text(f"label {name!r:.80}: value", text)
    return value


def _mount(value: Mount | str) -> Mount:
    if isinstance(value, Mount):
        return value
    if not isinstance(value, str):
        raise InvalidSpec(f"mount {value!r:.140}: must be a Mount, or text as /host/path:/path/inside[:ro]")
    parts = value.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise InvalidSpec(f"mount {value!r}: must be /host/path:/path/inside[:ro]")
    read_only, propagation = False, "rprivate"
    for word in parts[2].split(",") if len(parts) == 3 else ():
        if word in ("ro", "rw"):
            read_only = word == "ro"
        elif word in ("private", "rprivate", "slave", "rslave"):
            propagation = word
        else:
            raise InvalidSpec(
                f"mount {value!r}: {word!r} is not an option: use ro, rw, private, rprivate, slave, rslave"
            )
    return Mount(source=parts[0], target=parts[1], read_only=read_only, propagation=propagation)  # type: ignore[arg-type]


def _device(value: Device | str) -> Device:
    if isinstance(value, Device):
        return value
    if not isinstance(value, str):
        raise InvalidSpec(f"device {value!r:.140}: must be a Device, or text as /dev/x[:/dev/inside[:rwm]]")
    parts = value.split(":")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise InvalidSpec(f"device {value!r}: must be /dev/x[:/dev/inside[:rwm]]")
    return Device(
        path_on_host=parts[0],
        path_in_container=parts[1] if len(parts) > 1 else None,
        permissions=parts[2] if len(parts) > 2 else "rwm",
    )
