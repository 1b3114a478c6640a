"""The engine's side of the keeper: asyncio, non-blocking, one socket, many requests in flight."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lighterman import limits
from lighterman.errors import InvalidSpec, KeeperLost, LightermanError, NotSupported
from lighterman.keeper import requests, wire
from lighterman.keeper.connection import Connection
from lighterman.keeper.launch import build, connect, open_connection, program

__all__ = [
    "Job",
    "JobExit",
    "JobState",
    "KeeperClient",
    "KeeperStats",
    "LeaseState",
    "MailboxState",
    "MountPlan",
    "SegmentPlan",
    "Spawned",
]

log = logging.getLogger(__name__)


class MountPlan(msgspec.Struct, frozen=True):
    """A detached mount that is attached at `target` in a private mount namespace while the runtime is spawned."""

    fd: int
    target: str


class SegmentPlan(msgspec.Struct, frozen=True):
    """Where the keeper puts output while no engine is connected: at most `max_files` files of `max_bytes` each.

    `policy` says what happens when the disk refuses (see `segments.py`).
    """

    directory: str
    max_bytes: int
    max_files: int
    policy: str = "block"


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
        recipe: what has to be cleaned up; kept and given back by `list_jobs`. At most 16 kB encoded. Of it the keeper
            itself uses `"cgroup"`, a path below `/lighterman/` in every hierarchy, when a lease ends.
        lease: name of a lease (`KeeperClient.lease`) with whose owner it ends; None: it lives on.
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
    lease: str | None = None


class Spawned(msgspec.Struct, frozen=True, kw_only=True):
    """How the runtime call went.

    Attributes:
        pid: of the process that stays; None when the runtime failed, and for a plain command.
        start_time: field 22 of /proc/PID/stat, in clock ticks after boot; None if it had been reaped.
        claimed: the pid that the runtime named, where that can't be of its making: then `pid` is None.
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
    claimed: int | None = None


class JobExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a job's process ended: wait status, and when it was reaped, in seconds (`mono`: CLOCK_MONOTONIC).

    `lease_ended`: the keeper killed it, because the owner of its lease was gone.
    """

    job: str
    status: int
    mono: float
    wall: float
    lease_ended: bool = False


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the keeper has it; `held` names the descriptors that `fetch` gives.

    No pid and no exit: its runtime call is in flight. No pid and an exit: the runtime failed while no engine was
    there to be told, and the status is the runtime's.
    """

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


class LeaseState(msgspec.Struct, frozen=True, kw_only=True):
    """How a lease stands.

    Attributes:
        holds: it is in force. over: it was one of a connection, and has ended. Neither: the keeper does not know it.
        gone_until: its client has hung up, and may come back until then; seconds on CLOCK_BOOTTIME.
        connection: a duplicate of the client's socket, the caller's to close.
    """

    holds: bool
    over: bool
    gone_until: float | None
    connection: int | None


class MailboxState(msgspec.Struct, frozen=True, kw_only=True):
    """A kept socket (a duplicate, the caller's to close; None if it is unknown), and what was read from it last.

    `ready_mono`: when READY=1 came, seconds on CLOCK_MONOTONIC; None if it did not. `status`: the last STATUS.
    """

    socket: int | None
    ready_mono: float | None
    stopping: bool
    status: bytes | None


class KeeperClient:
    """A connection to the keeper of one state root; made by `start_or_connect`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._exits: dict[str, tuple[int, JobExit]] = {}
        self._told: set[str] = set()
        self._waiting: dict[str, asyncio.Future[JobExit]] = {}
        self._hello: dict[str, Any] = {}
        self.on_lease: Callable[[str, float | None, bool], None] = lambda _name, _gone_until, _over: None
        connection.on_lease = lambda said: self.on_lease(said["lease"], said["gone_until"], said["over"])
        connection.on_exits = self._note_exits
        connection.on_lost = self._wake_waiters

    @classmethod
    async def start_or_connect(
        cls, run_dir: str, state_dir: str, *, idle_s: float = limits.KEEPER_IDLE_S
    ) -> KeeperClient:
        """Connect, starting the keeper if none runs; an older engine's connection is fenced.

        A keeper of another build becomes ours, and goes on with all that it has; one that can't stays as it is.
        Raises: KeeperLost if none could be started, NotSupported if it speaks another protocol.
        """
        wanted = await asyncio.to_thread(build)
        deadline = asyncio.get_running_loop().time() + limits.KEEPER_START_S
        was_upgraded = False
        while True:
            client = await cls._connect(run_dir, state_dir, idle_s, deadline)
            if was_upgraded or client.build == wanted:
                return client
            try:
                await client.upgrade()
            except KeeperLost:
                await client.close()
            except LightermanError as failed:
                log.warning("the keeper (process %d) stays of its build %s: %s", client.pid, client.build, failed)
            except BaseException:
                await client.close()
                raise
            if not client.is_lost and client._connection.version == wire.PROTOCOLS[0]:
                return client
            await client.close()
            was_upgraded = True

    @classmethod
    async def observe(cls, run_dir: str) -> KeeperClient | None:
        """Connect to a keeper that is there, to ask it and no more: it stays the engine's, and of its build.

        Returns: None where none runs. Raises: NotSupported if it speaks another protocol.
        """
        for version in wire.PROTOCOLS:
            try:
                sock = connect(run_dir)
            except KeeperLost:
                return None
            if sock is None:
                return None
            client = cls(Connection(sock, version))
            try:
                await client._greet("observer")
            except BaseException as failed:
                await client.close()
                if isinstance(failed, KeeperLost):
                    return None
                if not isinstance(failed, NotSupported) or version == wire.PROTOCOLS[-1]:
                    raise
            else:
                return client
        return None

    async def _greet(self, role: str) -> None:
        self._hello, _ = await self._connection.call(wire.HELLO, {"role": role}, limits.KEEPER_CALL_S)

    @classmethod
    async def _connect(cls, run_dir: str, state_dir: str, idle_s: float, deadline: float) -> KeeperClient:
        """In the newest protocol that it speaks."""
        versions = list(wire.PROTOCOLS)
        while True:
            client = cls(Connection(await open_connection(run_dir, state_dir, idle_s, deadline), versions[0]))
            try:
                await client._greet("engine")
            except KeeperLost:
                # It was about to leave for idleness; the next look starts another.
                await client.close()
                if asyncio.get_running_loop().time() >= deadline:
                    raise
            except NotSupported:
                await client.close()
                if len(versions) == 1:
                    raise
                del versions[0]
            except BaseException:
                await client.close()
                raise
            else:
                return client

    @property
    def pid(self) -> int:
        """The keeper's process id, for showing."""
        return int(self._hello["pid"])

    @property
    def build(self) -> str:
        """Which program it is: see `launch.build`."""
        return str(self._hello.get("build", ""))

    @property
    def is_lost(self) -> bool:
        return self._connection.is_lost

    async def upgrade(self) -> None:
        """Make it the keeper of this package: the same process, with all that it has; calls in flight go on.

        Raises: RuntimeFailed if that program does not take over, and then the keeper goes on as before; InvalidState
            while it is at it already, NotSupported by it, KeeperLost.
        """
        body: dict[str, object] = {"argv": program(), "build": await asyncio.to_thread(build)}
        self._hello, _ = await self._connection.call(wire.UPGRADE, body, limits.KEEPER_UPGRADE_S)

    async def spawn(self, job: Job) -> Spawned:
        """Call the runtime and wait for its end; a failing one does not raise, `status` says.

        Cancelled, or without room for the answer's descriptors: what the call leaves is in `list_jobs`; see `abort`.
        Raises: KeeperLost, AlreadyExists (the job's key), LimitExceeded (disk, descriptors, message),
            RuntimeFailed (it could not be executed), NotFound (no such registered binary), OperationTimeout (the
            keeper itself), InvalidSpec.
        """
        body, fds = _spawn_body(job)
        answer, received = await self._connection.call(
            wire.SPAWN, body, job.timeout_s + limits.KEEPER_CALL_S, fds, subject=job.job, executable=job.executable
        )
        by_name = dict(zip(answer["fds"], received, strict=True))
        if answer["pid"] is not None:
            self._told.add(job.job)
            # A key may be used again once its exit was acknowledged, and that of its earlier use may come late.
            if job.job in self._exits and self._exits[job.job][0] < answer["serial"]:
                del self._exits[job.job]
        return Spawned(
            pid=answer["pid"],
            start_time=answer["start_time"],
            pidfd=by_name.get("pidfd"),
            console=by_name.get("console"),
            status=answer["status"],
            timed_out=answer["timed_out"],
            spawned_mono=answer["spawned_ns"] / 1e9,
            runtime_exited_mono=answer["returned_ns"] / 1e9,
            claimed=answer["claimed"],
        )

    async def wait_exit(self, job: str) -> JobExit:
        """The end of a job's process, also if told before. Any number may wait; cancelled, only the waiting ends.

        Raises: KeeperLost, NotFound (the keeper has no such job).
        """
        if job not in self._exits and job not in self._told:
            answer, _ = await self._connection.call(wire.EXIT_OF, {"job": job}, limits.KEEPER_CALL_S, subject=job)
            self._told.add(job)
            if answer["exit"] is not None:
                self._note_exits([answer["exit"]])
        if job in self._exits:
            return self._exits[job][1]
        self._connection.check()
        future = self._waiting.get(job)
        if future is None:
            future = self._waiting[job] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(future)

    async def acknowledge(self, job: str) -> None:
        """The exit is committed: free its slot and its descriptors. An unknown job is fine. Raises: KeeperLost."""
        self._exits.pop(job, None)
        self._told.discard(job)
        self._connection.send(wire.ACKNOWLEDGE, {"job": job})

    async def abort(self, job: str) -> None:
        """End the job: its runtime call if that is under way (`spawn` then returns with `timed_out`), or its process.

        An unknown or ended job is fine. Raises: KeeperLost.
        """
        await self._connection.call(wire.ABORT, {"job": job}, limits.KEEPER_CALL_S, subject=job)

    async def close_held(self, job: str, names: Sequence[str]) -> None:
        """Close held duplicates; returns when they are closed. Raises: NotFound, KeeperLost."""
        body: dict[str, object] = {"job": job, "names": list(names)}
        await self._connection.call(wire.CLOSE, body, limits.KEEPER_CALL_S, subject=job)

    async def list_jobs(self, of: str = "") -> list[JobState]:
        """Every job that was not acknowledged, in the order of the spawns. Raises: KeeperLost.

        Args: of: only those whose key begins so; who asks for one container among hundreds should say it.
        """
        jobs: list[JobState] = []
        last, more = 0, True
        while more:
            answer, _ = await self._connection.call(wire.LIST, {"after": last, "of": of}, limits.KEEPER_CALL_S)
            # A keeper of an earlier release gives all.
            entries = [entry for entry in answer["jobs"] if entry[0].startswith(of)]
            jobs += [_job_state(entry) for entry in entries]
            # An exit that is not in here will be pushed: nobody has to ask for it any more.
            self._told.update(entry[0] for entry in entries)
            self._note_exits([entry[3] for entry in entries if entry[3] is not None])
            last, more = answer["last"], answer["more"]
        return jobs

    async def fetch(self, job: str) -> dict[str, int]:
        """Duplicates of what is held for a job, by name; the caller closes them. Raises: NotFound, KeeperLost."""
        answer, fds = await self._connection.call(wire.FETCH, {"job": job}, limits.KEEPER_CALL_S, subject=job)
        return dict(zip(answer["names"], fds, strict=True))

    async def register_binary(self, name: str, fd: int) -> None:
        """Let `Job.executable` name the binary behind `fd` (a sealed memfd); it replaces an earlier one."""
        await self._connection.call(wire.REGISTER, {"name": name}, limits.KEEPER_CALL_S, [fd])

    async def lease(
        self,
        name: str,
        owner_pidfd: int | None,
        *,
        until: float | None = None,
        remove: Sequence[str] = (),
        groups: Sequence[str] = (),
    ) -> None:
        """Bind the jobs that name this lease to a process, a time, or both: then they are killed, whoever is connected.

        A later call of the same name replaces it.

        Args:
            until: seconds on CLOCK_BOOTTIME. groups: paths as `recipe["cgroup"]`, whose processes are killed as well.
            remove: directories of a private root, which go too; then the keeper has nothing left to keep.
        Raises: InvalidSpec, LimitExceeded, KeeperLost.
        """
        body: dict[str, object] = {"lease": name, "until": until, "remove": list(remove), "groups": list(groups)}
        fds = [owner_pidfd] if owner_pidfd is not None else []
        await self._connection.call(wire.LEASE, body, limits.KEEPER_CALL_S, fds)

    async def lease_connection(
        self,
        name: str,
        connection: int | None,
        *,
        grace_s: float,
        gone_until: float | None = None,
        until: float | None = None,
        groups: Sequence[str] = (),
    ) -> None:
        """As `lease`, bound to the client at the other end of a socket, of which the keeper takes a duplicate.

        It is over when that client has hung up and has not come back (`reconnect_lease`) for `grace_s` seconds.

        Args: connection: None for a client that is away, until `gone_until` (CLOCK_BOOTTIME; None: for `grace_s`).
        Raises: InvalidSpec, LimitExceeded, KeeperLost.
        """
        body: dict[str, object] = {"lease": name, "until": until, "remove": [], "groups": list(groups)}
        body |= {"grace_s": grace_s, "gone_until": gone_until}
        fds = [connection] if connection is not None else []
        await self._connection.call(wire.LEASE, body, limits.KEEPER_CALL_S, fds)

    async def reconnect_lease(self, name: str, connection: int) -> None:
        """Its client goes on with another connection. Raises: InvalidState if it is over, KeeperLost."""
        await self._connection.call(wire.RENEW, {"lease": name}, limits.KEEPER_CALL_S, [connection])

    async def lease_of(self, name: str) -> LeaseState:
        """How one stands. Raises: KeeperLost."""
        answer, fds = await self._connection.call(wire.LEASE_OF, {"lease": name}, limits.KEEPER_CALL_S)
        return LeaseState(**answer, connection=fds[0] if fds else None)

    async def renew_lease(self, name: str, until: float | None) -> None:
        """Set another end, as in `lease`; None for none. Raises: InvalidState if it is over, KeeperLost."""
        await self._connection.call(wire.RENEW, {"lease": name, "until": until}, limits.KEEPER_CALL_S)

    async def release_lease(self, name: str) -> None:
        """Give a lease up without consequence; an unknown one is fine. Raises: KeeperLost."""
        await self._connection.call(wire.RELEASE, {"lease": name}, limits.KEEPER_CALL_S)

    async def keep_mailbox(self, name: str, socket: int) -> None:
        """Keep a duplicate of a datagram socket, and read it while no engine is there (see `mailboxes.py`).

        A later call of the same name replaces it. Raises: InvalidSpec, LimitExceeded, KeeperLost.
        """
        await self._connection.call(wire.MAILBOX, {"mailbox": name}, limits.KEEPER_CALL_S, [socket])

    async def mailbox_of(self, name: str) -> MailboxState:
        """What an earlier engine has given to keep. Raises: KeeperLost."""
        answer, fds = await self._connection.call(wire.MAILBOX_OF, {"mailbox": name}, limits.KEEPER_CALL_S)
        return MailboxState(
            socket=fds[0] if fds else None,
            ready_mono=answer["ready_ns"] / 1e9 if answer["ready_ns"] else None,
            stopping=answer["stopping"],
            status=answer["status"],
        )

    async def drop_mailbox(self, name: str) -> None:
        """Let it go; an unknown one is fine. Raises: KeeperLost."""
        await self._connection.call(wire.MAILBOX, {"mailbox": name}, limits.KEEPER_CALL_S)

    async def drains(self, directory: str) -> tuple[int, int]:
        """Where to drop output of the job that writes to this directory, see `SegmentWriter.drop_into`.

        Raises: NotFound (no such job), KeeperLost.
        """
        _, fds = await self._connection.call(wire.DRAINS, {"directory": directory}, limits.KEEPER_CALL_S)
        return fds[0], fds[1]

    async def ping(self) -> None:
        """One round trip. Raises: KeeperLost, OperationTimeout."""
        await self._connection.call(wire.PING, {}, limits.KEEPER_CALL_S)

    async def stats(self) -> KeeperStats:
        """Size and load. Raises: KeeperLost."""
        answer, _ = await self._connection.call(wire.STATS, {}, limits.KEEPER_CALL_S)
        return KeeperStats(**answer)

    async def wait_lost(self) -> None:
        """Return when the connection is gone: the keeper died, a newer engine fenced this one, or it was closed."""
        await self._connection.wait_lost()

    async def shutdown(self, *, force: bool = False) -> None:
        """End the keeper, and wait until it has left. Raises: InvalidState while it has jobs, unless `force`.

        No process is signalled by that; with `force` the exits of what runs become unknowable.
        """
        await self._connection.call(wire.SHUTDOWN, {"force": force}, limits.KEEPER_CALL_S)
        await self.wait_lost()
        await self.close()

    async def close(self) -> None:
        """Leave; the keeper goes on. Those who wait get KeeperLost. Again is nothing."""
        self._connection.close("the connection to the keeper was closed")

    def _note_exits(self, exits: list[list[Any]]) -> None:
        for values in exits:
            exit, serial = _job_exit(values), values[1]
            known = self._exits.get(exit.job)
            if known is None or known[0] < serial:
                self._exits[exit.job] = (serial, exit)
                future = self._waiting.pop(exit.job, None)
                if future is not None and not future.done():
                    future.set_result(exit)

    def _wake_waiters(self, error: KeeperLost) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
                # Nobody may be waiting any more; that is not worth a warning.
                future.exception()
        self._waiting.clear()


def _spawn_body(job: Job) -> tuple[dict[str, object], list[int]]:
    # A NaN fails this comparison too.
    if not 0 < job.timeout_s <= requests.MAX_TIMEOUT_S:
        raise InvalidSpec(f"job {job.job}: timeout_s {job.timeout_s}: must be more than 0, at most a day")
    fds: list[int] = []
    places: dict[int, int] = {}

    def index(fd: int) -> int:
        if fd not in places:
            places[fd] = len(fds)
            fds.append(fd)
        return places[fd]

    mount = None if job.mount is None else {"fd": index(job.mount.fd), "target": job.mount.target}
    segments = None
    if job.segments is not None:
        plan = job.segments
        segments = {
            "dir": plan.directory,
            "max_bytes": plan.max_bytes,
            "max_files": plan.max_files,
            "policy": plan.policy,
        }
    body: dict[str, object] = {
        "job": job.job,
        "argv": job.argv,
        "executable": job.executable,
        "env": job.env,
        "cwd": job.cwd,
        "pid_file": job.pid_file,
        "timeout_s": job.timeout_s,
        "stdio": [index(fd) for fd in job.stdio],
        "extra": {str(number): index(fd) for number, fd in job.extra_fds.items()},
        "hold": {name: index(fd) for name, fd in job.hold.items()},
        "mount": mount,
        "console": job.console,
        "segments": segments,
        "recipe": _encoded(job.job, job.recipe),
        "meta": job.meta,
        "lease": job.lease,
    }
    return body, fds


def _encoded(job: str, recipe: dict[str, object]) -> bytes:
    try:
        return wire.encode(recipe)
    except wire.WireError as error:
        raise InvalidSpec(f"recipe of job {job}: {error}") from error


def _job_exit(values: list[Any]) -> JobExit:
    job, _, status, mono_ns, wall_ns, lease_ended = values
    return JobExit(job=job, status=status, mono=mono_ns / 1e9, wall=wall_ns / 1e9, lease_ended=lease_ended)


def _job_state(entry: list[Any]) -> JobState:
    job, pid, start_time, exit, recipe, meta, held = entry
    decoded: Any = wire.decode(recipe)
    return JobState(
        job=job,
        pid=pid,
        start_time=start_time,
        exit=None if exit is None else _job_exit(exit),
        recipe=decoded,
        meta=meta,
        held=tuple(held),
    )
