"""The engine's side of the keeper: asyncio, non-blocking, one socket, many requests in flight."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lighterman import limits

__all__ = [
    "Job",
    "JobExit",
    "JobState",
    "KeeperClient",
    "KeeperStats",
    "MountPlan",
    "SegmentPlan",
    "Spawned",
]


class MountPlan(msgspec.Struct, frozen=True):
    """A detached mount that is attached at `target` in a private mount namespace while the runtime is spawned."""

    fd: int
    target: str


class SegmentPlan(msgspec.Struct, frozen=True):
    """Where the keeper puts output while no engine is connected: at most `max_files` files of `max_bytes` each."""

    directory: str
    max_bytes: int
    max_files: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a runtime, and the process that it leaves behind.

    Attributes:
        job: unique key, `[A-Za-z0-9][A-Za-z0-9_.:-]{0,200}`.
        executable: a path, or the name of a binary given to `register_binary`.
        pid_file: where the runtime writes the pid of the process that stays; None for a plain command, whose own exit
            is the whole answer and which leaves nothing to wait for.
        stdio: descriptors for 0, 1, 2 of the runtime; they stay the caller's.
        extra_fds: number in the child -> descriptor of ours.
        hold: name -> descriptor of ours of which the keeper keeps a duplicate until `acknowledge` or `close_held`.
            Output is taken from "stdout" and "stderr" (read ends), a terminal's from "console" through
            "console_pipe_r" and "console_pipe_w".
        console: path of a unix socket that the keeper makes and on which the runtime sends the terminal's master; the
            keeper holds that as "console".
        recipe: what has to be cleaned up; kept and given back by `list_jobs`. At most 16 kB encoded.
        meta: opaque, kept and given back by `list_jobs`. At most 16 kB.
        timeout_s: of the runtime call; then it is killed and `Spawned.timed_out` is set.
    """

    job: str
    argv: tuple[str, ...]
    executable: str
    env: dict[str, str]
    stdio: tuple[int, int, int]
    timeout_s: float
    cwd: str = "/"
    pid_file: str | None = None
    extra_fds: dict[int, int] = {}
    hold: dict[str, int] = {}
    mount: MountPlan | None = None
    console: str | None = None
    segments: SegmentPlan | None = None
    recipe: dict[str, object] = {}
    meta: bytes = b""


class Spawned(msgspec.Struct, frozen=True, kw_only=True):
    """How the runtime call went.

    Attributes:
        pid: of the process that stays; None when the runtime failed, and for a plain command.
        start_time: field 22 of /proc/PID/stat, in clock ticks after boot; None if it had been reaped.
        pidfd: the caller closes it; None if the process had been reaped, and for a plain command.
        console: the terminal's master; the caller closes it.
        status: the runtime's wait status (`os.waitstatus_to_exitcode` reads it).
        spawned_mono, runtime_exited_mono: seconds on CLOCK_MONOTONIC.
    """

    pid: int | None
    start_time: int | None
    pidfd: int | None
    console: int | None
    status: int
    timed_out: bool
    spawned_mono: float
    runtime_exited_mono: float


class JobExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a job's process ended: wait status, and the instant it was reaped (`mono`: CLOCK_MONOTONIC, `wall`: epoch)."""

    job: str
    status: int
    mono: float
    wall: float


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the keeper has it; `held` names the descriptors that `fetch` gives."""

    job: str
    pid: int | None
    start_time: int | None
    exit: JobExit | None
    recipe: dict[str, object]
    meta: bytes
    held: tuple[str, ...]


class KeeperStats(msgspec.Struct, frozen=True, kw_only=True):
    """`own_cgroup`: it could leave its owner's control groups, so that nothing done to those ends it."""

    pid: int
    rss_bytes: int
    private_bytes: int
    jobs: int
    descriptors: int
    version: int
    own_cgroup: bool


class KeeperClient:
    """A connection to the keeper of one state root."""

    @classmethod
    async def start_or_connect(
        cls, run_dir: str, state_dir: str, *, idle_s: float = limits.KEEPER_IDLE_S
    ) -> KeeperClient:
        """Connect, starting the keeper if none runs; an older engine's connection is fenced. Raises: KeeperLost."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The keeper's process id, for showing."""
        raise NotImplementedError

    async def spawn(self, job: Job) -> Spawned:
        """Call the runtime and wait for its end; a failing one does not raise, `status` says.

        Raises: KeeperLost, AlreadyExists (the job's key), LimitExceeded (disk, descriptors, message),
            OperationTimeout (the keeper itself), InvalidSpec.
        """
        raise NotImplementedError

    async def wait_exit(self, job: str) -> JobExit:
        """The end of a job's process, also if told before. Any number may wait. Raises: KeeperLost."""
        raise NotImplementedError

    async def acknowledge(self, job: str) -> None:
        """The exit is committed: free its slot and its descriptors. An unknown job is fine."""
        raise NotImplementedError

    async def close_held(self, job: str, names: Sequence[str]) -> None:
        """Close held duplicates; returns when they are closed. Raises: NotFound."""
        raise NotImplementedError

    async def list_jobs(self) -> list[JobState]:
        """Every job that was not acknowledged, in the order of the spawns."""
        raise NotImplementedError

    async def fetch(self, job: str) -> dict[str, int]:
        """Duplicates of what is held for a job, by name; the caller closes them. Raises: NotFound."""
        raise NotImplementedError

    async def register_binary(self, name: str, fd: int) -> None:
        """Let `Job.executable` name the binary behind `fd` (a sealed memfd); it replaces an earlier one."""
        raise NotImplementedError

    async def stats(self) -> KeeperStats:
        """Size and load."""
        raise NotImplementedError

    async def wait_lost(self) -> None:
        """Return when the connection is gone: the keeper died, or a newer engine fenced this one."""
        raise NotImplementedError

    async def shutdown(self, *, force: bool = False) -> None:
        """End the keeper. Raises: InvalidState while jobs are there, unless `force` (which signals no container)."""
        raise NotImplementedError

    async def close(self) -> None:
        """Leave; the keeper goes on."""
        raise NotImplementedError
