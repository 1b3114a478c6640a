"""What was asked of `lighterman run`, from docker's words to the engine's options."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, cast

import msgspec

from lighterman.asking import Options
from lighterman.cli.lasting import Lasting
from lighterman.container import signal_number
from lighterman.errors import InvalidSpec, UsageError
from lighterman.quantities import parse_size
from lighterman.spec import BlkioLimit, LogPolicy, Mount, Ulimit

__all__ = ["Asked", "Wanted", "pair"]

_ENV_FILE_BYTES = 16 * 1024 * 1024  # far above what execve takes; a device or a pipe has to end somewhere


class Wanted(NamedTuple):
    """What the engine is asked for."""

    image: str | None
    argv: tuple[str, ...]
    options: Options


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The options as click gives them; what they may be is the engine's to say."""

    words: tuple[str, ...]
    workdir: str | None
    user: str | None
    hostname: str | None
    memory: str | None
    memory_swap: str | None
    memory_reservation: str | None
    shm_size: str | None
    cpus: str | None
    cpuset_cpus: str | None
    cpuset_mems: str | None
    stop_signal: str | None
    runtime: str | None
    cpu_shares: int | None
    pids_limit: int | None
    blkio_weight: int | None
    oom_score_adj: int | None
    env: tuple[str, ...]
    env_file: tuple[str, ...]
    label: tuple[str, ...]
    volume: tuple[str, ...]
    tmpfs: tuple[str, ...]
    device: tuple[str, ...]
    sysctl: tuple[str, ...]
    ulimit: tuple[str, ...]
    cap_add: tuple[str, ...]
    cap_drop: tuple[str, ...]
    security_opt: tuple[str, ...]
    device_read_bps: tuple[str, ...]
    device_write_bps: tuple[str, ...]
    device_read_iops: tuple[str, ...]
    device_write_iops: tuple[str, ...]
    rm: bool
    interactive: bool
    tty: bool
    privileged: bool
    read_only: bool
    init: bool
    rw: bool
    timings: bool
    detach: bool
    lasting: Lasting
    name: str | None
    network: str
    rootfs: str | None
    root: str | None

    @property
    def restarts(self) -> bool:
        """Whether more than one run may come."""
        return self.lasting.restarts

    def wanted(self) -> Wanted:
        """Raises: UsageError and InvalidSpec with the word that can't be."""
        if self.rm and self.restarts:
            raise UsageError("--rm and --restart exclude each other: a container that is removed can't start again")
        if self.detach and self.root is None:
            raise UsageError("--detach needs --root DIR: what is in a private root ends with this command")
        if self.detach and self.rm:
            raise UsageError("--detach and --rm exclude each other: nobody is there to remove it")
        if self.interactive and self.restarts:
            raise UsageError("--interactive and --restart exclude each other: stdin can be read only once")
        image, rootfs, argv = self._what()
        if self.rw and rootfs is None:
            raise UsageError("--rw is for a directory: give one with --rootfs DIR")
        return Wanted(image=image, argv=argv, options=self._options(rootfs))

    def _what(self) -> tuple[str | None, str | None, tuple[str, ...]]:
        if self.rootfs is not None:
            return None, self.rootfs, self.words
        if not self.words:
            raise UsageError("no image given: lighterman run [OPTIONS] IMAGE|DIR [COMMAND...]")
        first, argv = self.words[0], self.words[1:]
        # The name of an image in a registry has a slash too, and no directory of that name.
        if first.startswith(("/", "./", "../")) or ("/" in first and os.path.isdir(first)):
            return None, first, argv
        return first, None, argv

    def _options(self, rootfs: str | None) -> Options:
        options: Options = {
            "env": dict(self._environment()),
            "workdir": self.workdir,
            "user": self.user,
            "hostname": self.hostname,
            "memory": self.memory,
            "memory_swap": self.memory_swap,
            "memory_reservation": self.memory_reservation,
            "cpus": self.cpus,
            "cpu_shares": self.cpu_shares,
            "cpuset_cpus": self.cpuset_cpus,
            "cpuset_mems": self.cpuset_mems,
            "pids_limit": self.pids_limit,
            "blkio_weight": self.blkio_weight,
            "device_read_bps": [_rate("--device-read-bps", text, parse_size) for text in self.device_read_bps],
            "device_write_bps": [_rate("--device-write-bps", text, parse_size) for text in self.device_write_bps],
            "device_read_iops": [_rate("--device-read-iops", text, _whole) for text in self.device_read_iops],
            "device_write_iops": [_rate("--device-write-iops", text, _whole) for text in self.device_write_iops],
            "ulimits": [_ulimit(text) for text in self.ulimit],
            "network": self.network,
            "mounts": [*map(_volume, self.volume), *map(_tmpfs, self.tmpfs)],
            "devices": self.device,
            "sysctls": dict(pair("--sysctl", text) for text in self.sysctl),
            "labels": {key: value for key, _, value in (text.partition("=") for text in self.label)},
            "read_only": self.read_only,
            "rootfs": rootfs,
            "rootfs_rw": self.rw,
            "init": self.init,
            "privileged": self.privileged,
            "cap_add": self.cap_add,
            "cap_drop": self.cap_drop,
            "oom_score_adj": self.oom_score_adj,
            "stop_signal": None if self.stop_signal is None else _signal(self.stop_signal),
            "restart": self.lasting.policy(),
            "health": self.lasting.health(),
            "ttl_s": self.lasting.ttl_s(),
            "log_sinks": self.lasting.sinks(),
            "runtime": self.runtime,
            "terminal": self.tty,
        }
        if self.lasting.log_policy is not None:
            options["log_policy"] = cast("LogPolicy", self.lasting.log_policy)  # looked at with all the others
        if self.shm_size is not None:
            options["shm_size"] = self.shm_size
        for text in self.security_opt:
            _security(text, options)
        return options

    def _environment(self) -> Iterator[tuple[str, str]]:
        for path in self.env_file:
            yield from _variables(_lines(path), f"--env-file {path}")
        yield from _variables(self.env, "--env")


def _variables(entries: Iterable[str], where: str) -> Iterator[tuple[str, str]]:
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name:
            raise InvalidSpec(f"{where} {entry!r:.100}: must be KEY=VALUE or KEY")
        if equals:
            yield name, value
        elif name in os.environ:
            yield name, os.environ[name]


def _lines(path: str) -> Sequence[str]:
    try:
        with open(path, "rb") as file:
            data = file.read(_ENV_FILE_BYTES + 1)
    except (OSError, ValueError) as missing:
        raise InvalidSpec(f"--env-file {path!r:.100}: {getattr(missing, 'strerror', missing)}") from missing
    if len(data) > _ENV_FILE_BYTES:
        raise InvalidSpec(f"--env-file {path!r:.100}: has more than {_ENV_FILE_BYTES} bytes")
    lines = (line.lstrip() for line in os.fsdecode(data.removeprefix(b"\xef\xbb\xbf")).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def pair(option: str, text: str) -> tuple[str, str]:
    """KEY=VALUE in two. Raises: InvalidSpec that names the option."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidSpec(f"{option} {text!r:.100}: must be KEY=VALUE")
    return key, value


def _volume(text: str) -> str:
    source, colon, rest = text.partition(":")
    if not colon:
        raise InvalidSpec(f"--volume {text!r:.200}: must be SOURCE:TARGET[:ro]")
    if source.startswith("/"):
        return text
    if source in (".", "..") or source.startswith(("./", "../")):
        return f"{os.path.abspath(source)}:{rest}"
    raise InvalidSpec(
        f"--volume {text!r:.200}: named volumes are not supported in this version: give a path that begins with / or ./"
    )


def _tmpfs(text: str) -> Mount:
    target, _, options = text.partition(":")
    size_bytes, mode, read_only = None, None, False
    for word in filter(None, options.split(",")):
        key, _, value = word.partition("=")
        if key == "size":
            size_bytes = parse_size(value)
        elif key == "mode" and value and set(value) <= set("01234567") and len(value) <= 5:
            mode = int(value, 8)
        elif word in ("ro", "rw"):
            read_only = word == "ro"
        elif word not in ("noexec", "nosuid", "nodev"):  # these are so anyway
            raise InvalidSpec(f"--tmpfs {text!r:.200}: {word!r:.50} is not an option: use size=, mode=, ro, rw")
    return Mount(type="tmpfs", target=target, size_bytes=size_bytes, mode=mode, read_only=read_only)


def _ulimit(text: str) -> Ulimit:
    name, values = pair("--ulimit", text)
    soft, colon, hard = values.partition(":")
    try:
        return Ulimit(name=name, soft=_whole(soft), hard=_whole(hard if colon else soft))
    except InvalidSpec as wrong:
        raise InvalidSpec(f"--ulimit {text!r:.100}: must be NAME=SOFT[:HARD], as nofile=1024:2048") from wrong


def _whole(text: str) -> int:
    if text == "-1" or (text.isascii() and text.isdigit() and len(text) <= 19):
        return int(text)
    raise InvalidSpec(f"{text!r:.50}: must be a whole number")


def _rate(option: str, text: str, parse: Callable[[str], int]) -> BlkioLimit:
    path, colon, rate = text.rpartition(":")
    if not colon or not path:
        raise InvalidSpec(f"{option} {text!r:.100}: must be DEVICE:RATE")
    return BlkioLimit(path=path, rate=parse(rate))


def _signal(text: str) -> int:
    return signal_number(int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else text)


def _security(text: str, options: Options) -> None:
    # Docker takes both signs.
    key, separator, value = text.partition("=" if "=" in text else ":")
    if key == "no-new-privileges" and value in ("", "true", "false"):
        options["no_new_privileges"] = value != "false"
    elif key == "seccomp" and separator and value:
        words = {"builtin": "default", "unconfined": "unconfined"}
        options["seccomp"] = words.get(value) or os.path.abspath(value)
    else:
        raise InvalidSpec(
            f"--security-opt {text!r:.100}: must be no-new-privileges, seccomp=unconfined or seccomp=FILE"
        )
