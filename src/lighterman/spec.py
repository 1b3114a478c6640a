"""The frozen values that travel between the layers. No behaviour beyond what a value can say of itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from lighterman import limits
from lighterman.checks import HealthCheck, Readiness
from lighterman.errors import InvalidSpec
from lighterman.signal_names import SIGNAL_NUMBERS, signal_name

__all__ = [
    "BlkioLimit",
    "CallableSink",
    "ConsoleSize",
    "ContainerSpec",
    "Device",
    "ExitCode",
    "ExitRecord",
    "HostFile",
    "JournaldSink",
    "LeaseKind",
    "LogPolicy",
    "Mount",
    "Overlay",
    "PlainRoot",
    "Pressure",
    "ProcessConfig",
    "ProcessSummary",
    "Resources",
    "RestartPolicy",
    "Rootfs",
    "Spec",
    "Statistics",
    "SyslogSink",
    "Timings",
    "Ulimit",
    "User",
    "split_environment",
]


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the values here: immutable, made by keyword, compared by content."""


# ---- what a runtime is given -------------------------------------------------------------------------------------


class ConsoleSize(Value, frozen=True):
    """A terminal's size in character cells."""

    height: int
    width: int


class User(Value, frozen=True):
    """Whom a process runs as: numbers on Linux, a name on Windows."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    umask: int | None = None
    username: str | None = None


class ProcessConfig(Value, frozen=True):
    """One process, init or exec; the `process` object of an OCI config.json in our words.

    Attributes:
        args: the argument vector; `args[0]` is looked up in the PATH of `env` inside the container.
        env: name to value.
        cwd: an absolute path in the container; empty means `/`, for an exec the init process's.
        stdin: whether the caller wants to write to it; otherwise it reads end of file at once.
        command_line: Windows only, instead of `args`: one line, quoted by the caller.
        oci: what else stands in the OCI object (capabilities, rlimits, apparmorProfile ...), passed on as it is.
    """

    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = ""
    user: User = User()
    terminal: bool = False
    console_size: ConsoleSize | None = None
    stdin: bool = False
    command_line: str | None = None
    oci: dict[str, Any] = {}


class Overlay(Value, frozen=True):
    """A root made of read-only layers under a writable one, mounted by the engine for this run alone.

    Attributes:
        lowers: absolute paths of the layers, the topmost first.
        upper, work: absolute paths on one file system that is not itself an overlay.
        volatile: skip every sync of `upper` (overlayfs's own option): what is removed at the end needs none.
    """

    lowers: tuple[str, ...]
    upper: str
    work: str
    volatile: bool = False


class PlainRoot(Value, frozen=True):
    """A directory that is the root itself; what the container writes stays in it."""

    path: str


Rootfs = Overlay | PlainRoot


class HostFile(Value, frozen=True):
    """A file of the host that the document's mounts refer to, written anew before each run; everybody may read it."""

    path: str
    content: bytes


class Spec(Value, frozen=True):
    """What makes one compute system: an OCI document, and what OCI has no word for.

    Attributes:
        process: the init process.
        document: the encoded OCI config.json (runtime-spec 1.x) without its `process`; never changed after.
        rootfs: the root; None on a platform where the document names it (Windows).
        files: are written before the start.
        stop_signal: asks the init process to end.
        os_build: the build of the image's Windows; None elsewhere.
    """

    process: ProcessConfig
    document: bytes = b"{}"
    rootfs: Rootfs | None = None
    files: tuple[HostFile, ...] = ()
    stop_signal: int = 15
    os_build: int | None = None

    @classmethod
    def from_oci(
        cls, document: dict[str, Any], *, rootfs: Rootfs | None = None, stdin: bool = False, stop_signal: int = 15
    ) -> Spec:
        """Take a decoded config.json apart; an `env` entry without `=` is dropped with a warning [L08].

        Raises: InvalidSpec where `process` is missing or is not of the shape that the OCI spec gives it.
        """
        rest = dict(document)
        try:
            raw = dict(rest.pop("process"))
            raw_user = dict(raw.pop("user", {}))
            size = raw.pop("consoleSize", None)
            process = ProcessConfig(
                args=tuple(raw.pop("args", ())),
                env=split_environment(raw.pop("env", ())),
                cwd=raw.pop("cwd", "/"),
                user=User(
                    uid=raw_user.get("uid", 0),
                    gid=raw_user.get("gid", 0),
                    additional_gids=tuple(raw_user.get("additionalGids", ())),
                    umask=raw_user.get("umask"),
                    username=raw_user.get("username"),
                ),
                terminal=bool(raw.pop("terminal", False)),
                console_size=ConsoleSize(height=size["height"], width=size["width"]) if size else None,
                stdin=stdin,
                command_line=raw.pop("commandLine", None),
                oci=raw,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as wrong:
            raise InvalidSpec(f"the OCI document's `process` is not usable: {wrong!r}") from wrong
        return cls(process=process, document=msgspec.json.encode(rest), rootfs=rootfs, stop_signal=stop_signal)


def split_environment(entries: Iterable[str]) -> dict[str, str]:
    """Split each `KEY=value` at its first `=`; what has none is dropped with a RuntimeWarning. The last one wins."""
    environment: dict[str, str] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            warnings.warn(f"environment entry {entry!r} is not KEY=value: dropped", RuntimeWarning, stacklevel=3)
            continue
        environment[key] = value
    return environment


# ---- limits ------------------------------------------------------------------------------------------------------


class BlkioLimit(Value, frozen=True):
    """A bound on one block device: bytes or operations a second."""

    path: str
    rate: int


class Resources(Value, frozen=True):
    """Limits of a cgroup. None leaves the host's own. A limit that can't be enforced is an error, not a silence.

    Attributes:
        memory_bytes: hard limit; memory_swap_bytes: memory and swap together (docker's meaning), -1 for no limit.
        cpus: CPU time a second of wall time, in CPUs (1.5 is a CPU and a half).
        cpu_shares: relative weight, 2 to 262144 (1024 is usual). cpuset_cpus, cpuset_mems: lists as "0-2,5".
        pids_limit: tasks in the cgroup, -1 for no limit. blkio_weight: 10 to 1000.
    """

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids_limit: int | None = None
    blkio_weight: int | None = None
    device_read_bps: tuple[BlkioLimit, ...] = ()
    device_write_bps: tuple[BlkioLimit, ...] = ()
    device_read_iops: tuple[BlkioLimit, ...] = ()
    device_write_iops: tuple[BlkioLimit, ...] = ()


class Ulimit(Value, frozen=True):
    """One resource limit of a process, by its shell name (`"nofile"`, `"core"`); -1 is unlimited."""

    name: str
    soft: int
    hard: int


# ---- what the engine is given ------------------------------------------------------------------------------------


class Mount(Value, frozen=True):
    """Something mounted into the container.

    Attributes:
        type: `bind` (a file or directory of the host) or `tmpfs`.
        source: absolute path on the host, for `bind`. target: absolute path in the container.
        propagation: `rprivate` unless asked for; `size_bytes` and `mode` are for `tmpfs`.
    """

    target: str
    source: str | None = None
    type: Literal["bind", "tmpfs"] = "bind"
    read_only: bool = False
    propagation: Literal["private", "rprivate", "slave", "rslave"] = "rprivate"
    size_bytes: int | None = None
    mode: int | None = None


class Device(Value, frozen=True):
    """A device node of the host in the container; `permissions` is some of `rwm`."""

    path_on_host: str
    path_in_container: str | None = None
    permissions: str = "rwm"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_RESTART_NAMES = ("no", "always", "unless-stopped", "on-failure")


class RestartPolicy(Value, frozen=True):
    """When an ended container is started again, and after how long.

    Attributes:
        max_retries: counts for `on-failure` only; 0 has no limit.
        initial_delay_s, multiplier, max_delay_s: the back-off: the first delay, what each next one is multiplied by,
            and its bound. jitter: a fraction, 0 to 1: each delay is changed by up to that much of it, at random.
        reset_after_s: a run this long resets the back-off and the count of retries; None, or infinity, is never.
        burst, interval_s: no restart that would be start number `burst` + 1 within `interval_s`, the first start
            counted too (systemd's StartLimitBurst); 0 has no limit; at most 100.
        force_codes: restart after these ends whatever the name of the policy. prevent_codes: never after these; they
            come first. A number is an exit code as a shell has it (137 is SIGKILL too), `"SIGTERM"` is a signal.
    """

    name: Literal["no", "always", "unless-stopped", "on-failure"] = "no"
    max_retries: int = 0
    initial_delay_s: float = limits.RESTART_BACKOFF_FIRST_S
    multiplier: float = 2.0
    max_delay_s: float = limits.RESTART_BACKOFF_MAX_S
    jitter: float = 0.0
    reset_after_s: float | None = limits.RESTART_RESET_S
    burst: int = 0
    interval_s: float = 10.0
    force_codes: tuple[int | str, ...] = ()
    prevent_codes: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        """Raises: InvalidSpec."""
        if self.name not in _RESTART_NAMES:
            raise InvalidSpec(f"restart policy: name {self.name!r:.80} must be one of {', '.join(_RESTART_NAMES)}")
        if self.reset_after_s == float("inf"):
            # JSON has no infinity: it would be read as None anyway.
            msgspec.structs.force_setattr(self, "reset_after_s", None)
        for name in ("initial_delay_s", "max_delay_s", "reset_after_s", "interval_s"):
            value = getattr(self, name)
            # A NaN fails this comparison too.
            if not (value is None and name == "reset_after_s") and not (
                _is_number(value) and 0 <= value < float("inf")
            ):
                raise InvalidSpec(f"restart policy: {name} {value!r:.80} must be a number of seconds of 0 or more")
        if not _is_number(self.multiplier) or not 1 <= self.multiplier <= 1000:
            raise InvalidSpec(f"restart policy: multiplier {self.multiplier!r:.80} must be 1 to 1000")
        if not _is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise InvalidSpec(f"restart policy: jitter {self.jitter!r:.80} must be a fraction from 0 to 1")
        if not _is_whole(self.burst) or not 0 <= self.burst <= limits.RESTART_ENDS_KEPT:
            raise InvalidSpec(f"restart policy: burst {self.burst!r:.80} must be 0 to {limits.RESTART_ENDS_KEPT}")
        if not _is_whole(self.max_retries) or self.max_retries < 0:
            raise InvalidSpec(f"restart policy: max_retries {self.max_retries!r:.80} must be 0 or more")
        for name in ("force_codes", "prevent_codes"):
            codes = getattr(self, name)
            if isinstance(codes, str) or not isinstance(codes, Sequence):
                raise InvalidSpec(
                    f"restart policy: codes {codes!r:.80} must be a tuple of exit codes and names of signals"
                )
            msgspec.structs.force_setattr(self, name, tuple(codes))
        for code in (*self.force_codes, *self.prevent_codes):
            if not _is_whole(code) and not (isinstance(code, str) and code in SIGNAL_NUMBERS):
                raise InvalidSpec(
                    f"restart policy: {code!r:.80} is no signal and no exit code: use a name as 'SIGTERM', or a number"
                )

    @property
    def can_restart(self) -> bool:
        """Whether there is any end after which it starts the container again."""
        return self.name != "no" or bool(self.force_codes)

    @classmethod
    def parse(cls, text: str) -> RestartPolicy:
        """Read docker's spelling: `no`, `always`, `unless-stopped`, `on-failure`, `on-failure:3`.

        Raises: InvalidSpec for anything else.
        """
        name, colon, number = text.partition(":")
        if name in ("no", "always", "unless-stopped") and not colon:
            return cls(name=name)  # type: ignore[arg-type]  # narrowed by the line above
        if name == "on-failure" and (not colon or (number.isascii() and number.isdigit())):
            return cls(name="on-failure", max_retries=int(number or 0))
        raise InvalidSpec(f"restart policy {text!r}: must be no, always, unless-stopped or on-failure[:max]")


LogPolicy = Literal["block", "drop-oldest", "drop-newest"]


class JournaldSink(Value, frozen=True, tag="journald"):
    """Also sends each line to journald, by its native protocol; `identifier` is the container's name by default."""

    path: str = "/run/systemd/journal/socket"
    identifier: str | None = None


class SyslogSink(Value, frozen=True, tag="syslog"):
    """Also sends each line to a syslog daemon, in the form of RFC 5424.

    Attributes:
        address: the path of a datagram socket, or `udp://IP:PORT`. UDP tells nobody what it has lost.
        facility: 0 to 23; 1 is `user`. identifier: the application's name there; by default the container's.
    """

    address: str = "/dev/log"
    facility: Annotated[int, msgspec.Meta(ge=0, le=23)] = 1
    identifier: str | None = None


class CallableSink:
    """Also calls `function(record)` for each line, in order, from the container's creation on.

    A coroutine function runs on the event loop; any other one in a thread of its own, so that it may block. What it
    raises is shown in `Container.log_state`, and the same record is offered again later. A record without data counts
    in `lost` what is missing. It ends with this process.
    """

    def __init__(self, function: Callable[[Any], object]) -> None:
        self.function = function

    def __repr__(self) -> str:
        return f"CallableSink({self.function!r})"


LeaseKind = Literal["scope", "process"]


class ContainerSpec(Value, frozen=True):
    """A container as the user asks for it; checked when it is made (see `lighterman.engine`).

    Attributes:
        image: a name that the image store knows (`busybox`), or None with `rootfs`.
        rootfs: a directory to run instead; through an overlay, unless `rootfs_rw`.
        argv: the command; empty takes the image's own.
        user: `name`, `uid`, `name:group`, `uid:gid`; looked up inside the root.
        network: `none` or `host`.
        runtime: `crun`, `runc`, `youki` or None for the first that works here.
        seccomp: `default`, `unconfined`, or the path of a profile in Docker's format.
        health, ready: see `lighterman.checks`; of health what can be stored.
        log_policy: what happens when the disk refuses output, or a reader that may lose nothing falls behind: `block`
            (the program waits), `drop-oldest`, `drop-newest`. log_sinks: where the log goes beside its files.
    """

    image: str | None = None
    rootfs: str | None = None
    rootfs_rw: bool = False
    argv: tuple[str, ...] = ()
    env: dict[str, str] = {}
    workdir: str | None = None
    user: str | None = None
    hostname: str | None = None
    stdin: bool = False
    terminal: bool = False
    console_size: ConsoleSize | None = None
    network: str = "none"
    resources: Resources = Resources()
    ulimits: tuple[Ulimit, ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    sysctls: dict[str, str] = {}
    labels: dict[str, str] = {}
    read_only: bool = False
    init: bool = False
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: str = "default"
    oom_score_adj: int | None = None
    shm_bytes: int = 64 * 1024 * 1024
    stop_signal: int | None = None
    restart: RestartPolicy = RestartPolicy()
    runtime: str | None = None
    log_policy: LogPolicy = "block"
    log_sinks: tuple[JournaldSink | SyslogSink, ...] = ()
    health: HealthCheck | None = None
    ready: Readiness | None = None


# ---- what comes back ---------------------------------------------------------------------------------------------


class ExitCode(Value, frozen=True):
    """How a process ended, from the runtime: `code` is 128+n when `signal` is n; 32 bits, unsigned, on Windows.

    Attributes:
        finished_mono, finished_at: when, where the runtime knows (seconds; `CLOCK_MONOTONIC`, Unix epoch).
        reason: who ended it, where only the runtime knows: `"lease"`.
    """

    code: int
    signal: int | None = None
    finished_mono: float | None = None
    finished_at: float | None = None
    reason: str | None = None


class ExitRecord(Value, frozen=True):
    """How one run, or one exec, ended. Exactly one of `code`, `signal`, `unknown`, `not_started` is set.

    Attributes:
        code: what the program exited with. signal: the number of the signal that ended it.
        unknown: why the end could not be known (`"keeper lost"`); never to be taken for success.
        not_started: why the program never ran.
        reason: who or what ended it where that is known; None for what has ended by itself, also if an end was asked
            for after that. `"stop"`: by `stop`. `"kill"`: by `kill` with SIGKILL or the stop signal, whatever the
            program made of that. `"timeout"`; `"removed"`; `"lease"`: its time is over, or its owner has ended,
            also while it waited for a restart; `"unhealthy"`: its health check's action; `"checkpoint"`: it was saved;
            `"cancelled"`: its start was; `"oom"`: the kernel killed its first process for memory. Of several it is who
            asked first.
        oom_killed: whether the kernel killed a process of the container for memory; oom_kills: how many.
        memory_peak_bytes, cpu_s: of the whole container, read before its cgroup was removed.
        last_words: the end of its stderr (of a terminal's output), where it did not succeed; at most 2 KiB.
        started_at, finished_at: Unix time in seconds; None where it never started, or is not known.
        duration_s: by the monotonic clock. generation: of the run; one that could not be made has its own.
    """

    code: int | None = None
    signal: int | None = None
    unknown: str | None = None
    not_started: str | None = None
    reason: str | None = None
    oom_killed: bool = False
    oom_kills: int | None = None
    memory_peak_bytes: int | None = None
    cpu_s: float | None = None
    last_words: bytes = b""
    started_at: float | None = None
    finished_at: float | None = None
    duration_s: float | None = None
    generation: int = 1

    @property
    def ok(self) -> bool:
        """Whether it exited by itself with 0."""
        return self.code == 0

    @property
    def shell_code(self) -> int:
        """One unsigned byte as a shell and docker have it: the code, 128+n for a signal, 255 for unknown."""
        if self.code is not None:
            return self.code & 0xFF
        if self.signal is not None:
            return (128 + self.signal) & 0xFF
        return 125 if self.not_started is not None else 255

    def __str__(self) -> str:
        if self.code is not None:
            text = f"exit code {self.code}"
        elif self.signal is not None:
            text = f"killed by {signal_name(self.signal)}"
        elif self.not_started is not None:
            text = f"not started ({self.not_started})"
        else:
            text = f"end unknown ({self.unknown})"
        return f"{text} ({self.reason})" if self.reason else text


class Timings(Value, frozen=True):
    """Where the time of one run went, in seconds by the monotonic clock; a phase that did not happen is None.

    Attributes:
        prepare: spec, directories and root, until the keeper was asked. runtime: the OCI runtime, until it returned.
        program: from then until the exit was known. drain: until the last byte was in safety. total: all of it.
    """

    prepare: float | None = None
    runtime: float | None = None
    program: float | None = None
    drain: float | None = None
    total: float | None = None


class Pressure(Value, frozen=True):
    """How long processes waited for one resource, as Linux tells it (accounting/psi): the share of the last 10, 60
    and 300 seconds in percent, and nanoseconds since the cgroup was made.

    Attributes: some: at least one of them waited. full: all that were not idle did; None where it is not counted (for
        the CPU before Linux 5.13).
    """

    some_avg10: float
    some_avg60: float
    some_avg300: float
    some_total_ns: int
    full_avg10: float | None = None
    full_avg60: float | None = None
    full_avg300: float | None = None
    full_total_ns: int | None = None


class Statistics(Value, frozen=True):
    """Counters of one compute system at one moment. Bytes, nanoseconds and counts; None where the host has none.

    Attributes:
        read_at: Unix time, seconds.
        memory_bytes: page cache included, of which memory_inactive_file_bytes can be had back at once.
        memory_peak_bytes: the most since its start. memory_limit_bytes, pids_limit: None for no limit.
        memory_limit_events: how often the limit was reached and memory had to be reclaimed, or the OOM killer asked.
        oom_events: how often nothing could be reclaimed; cgroup v2 only. oom_kills: processes killed for that.
        cpu_throttled_ns: how long it was kept from running by its own limit.
        read_bytes, write_bytes, read_operations, write_operations: of all block devices together.
        cpu_pressure, memory_pressure, io_pressure: cgroup v2 only.
    """

    read_at: float
    cpu_ns: int | None = None
    cpu_user_ns: int | None = None
    cpu_system_ns: int | None = None
    cpu_throttled_ns: int | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_inactive_file_bytes: int | None = None
    memory_limit_events: int | None = None
    oom_events: int | None = None
    oom_kills: int | None = None
    pids: int | None = None
    pids_limit: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None
    read_operations: int | None = None
    write_operations: int | None = None
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None


class ProcessSummary(Value, frozen=True):
    """One process of a container. `pid` is the host's; times in seconds, memory in bytes."""

    pid: int
    image_name: str
    command: tuple[str, ...] = ()
    user_s: float = 0.0
    system_s: float = 0.0
    resident_bytes: int = 0
    started_at: float | None = None
