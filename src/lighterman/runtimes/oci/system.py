"""One compute system on an OCI runtime: `run --detach` through the keeper, the rest natively by cgroup and pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal as signals
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

import msgspec

from lighterman import limits
from lighterman.errors import (
    AlreadyClosed,
    AlreadyExists,
    AlreadyStopped,
    InvalidState,
    KeeperLost,
    LimitExceeded,
    NotFound,
    NotSupported,
    OperationPending,
    StoreError,
)
from lighterman.keeper.client import Job, JobState, KeeperClient, MountPlan, SegmentPlan, Spawned
from lighterman.runtimes.base import KnownExec, OomCounters
from lighterman.runtimes.oci import layer_swap
from lighterman.runtimes.oci.adoption import adopt, of_process
from lighterman.runtimes.oci.bundle import Bundle, check_id, unlink_all, write_file
from lighterman.runtimes.oci.calls import JobMeta, RuntimeCall, decode_meta, find_kept, in_memory
from lighterman.runtimes.oci.cgroups import Cgroup, resources_to_oci, set_rates, without_rates
from lighterman.runtimes.oci.checkpointing import SavedState
from lighterman.runtimes.oci.document import encode_process
from lighterman.runtimes.oci.exec_cgroups import ExecCgroups, OwnCgroup
from lighterman.runtimes.oci.failures import runtime_failed
from lighterman.runtimes.oci.oom import OomWatch
from lighterman.runtimes.oci.pausing import freeze, thaw
from lighterman.runtimes.oci.process import OciProcess
from lighterman.runtimes.oci.processes import PidRef, process_summaries, uninterruptible
from lighterman.runtimes.oci.reach import Reach
from lighterman.runtimes.oci.saving import Saving, restoring
from lighterman.runtimes.oci.spawning import Spawning
from lighterman.runtimes.oci.stdio import Ends, make_ends, taken_over
from lighterman.runtimes.oci.strays import Strays
from lighterman.runtimes.oci.tree import Members, Tree
from lighterman.runtimes.options import OutputSegments
from lighterman.scarcity import Reserve, telling_what_ran_out
from lighterman.spec import ProcessConfig, ProcessSummary, Resources, Statistics
from lighterman.threads import in_removing_thread, in_thread, look_at_files

__all__ = ["OciSystem"]

log = logging.getLogger(__name__)

_EXEC_FD = 3  # the runtime reads an exec's `process` from there, and closes it before it starts the program


class OciSystem:
    """Made by `OciRuntime.create` with a prepared bundle, or by `OciRuntime.open` from what the keeper has."""

    def __init__(
        self,
        id: str,
        *,
        call: RuntimeCall,
        keeper: Callable[[], KeeperClient],
        exits_dir: str,
        bundle: Bundle,
        cgroup: Cgroup,
        cgroup_path: str,
        process: ProcessConfig,
        mount: int | None,
        plain_root: str | None = None,
        own_pid_namespace: bool,
        oom: OomWatch,
        segments: OutputSegments | None,
        lease: str | None,
        upper: str | None = None,
        own_network: bool = False,
        no_checkpoints: str | None = None,
        start_slot: Callable[[], AbstractAsyncContextManager[None]],
        queue_removal: Callable[[OciSystem], None],
        reserve: Reserve,
    ) -> None:
        self._id = id
        self.call = call
        self.bundle = bundle
        self.cgroup = cgroup
        self.cgroup_path = cgroup_path
        self.mount = mount
        self._plain_root = plain_root
        self._keeper = keeper
        self._exits_dir = exits_dir
        self._process = process
        self._own_pid_namespace = own_pid_namespace
        self._oom = oom
        self._segments = segments
        self._lease = lease
        self._upper = upper
        self.saving = Saving(id, call.name, cgroup, keeper, self.command, no_checkpoints, own_network)
        self._start_slot = start_slot
        self._queue_removal = queue_removal
        self._reserve = reserve
        self._spawning = Spawning(id, call, keeper)
        self.listed: Sequence[JobState] = ()  # what `open` has seen of it, until its execs are asked for
        self.start_times: tuple[float, float] | None = None
        self.adopt: Callable[[], OciProcess] | None = None  # finds the init process where the keeper was lost
        self.goes_on = False  # from its checkpoint, and that is told
        self._init: OciProcess | None = None
        self._execs: dict[str, OciProcess] = {}
        self._terminating = False
        self._closed = False
        self._strays: Strays | None = None  # made at the first exec
        self._exec_cgroups = ExecCgroups(cgroup, possible=call.exec_cgroups)

    @property
    def id(self) -> str:
        return self._id

    def reach(self) -> Reach | None:
        """A way into its first process's namespaces, the caller's to close; None where none runs."""
        pidfd = self._init.duplicate_pidfd() if self._init is not None else None
        return Reach(self._init.pid, pidfd) if self._init is not None and pidfd is not None else None

    @property
    def init_job(self) -> str | None:
        """The keeper's key of the init process, once there is one."""
        return self._init.job if self._init else None

    # ---- starting ----

    async def start(self) -> None:
        """Nothing: `create_process` runs the runtime once, not twice."""

    async def create_process(self, process: ProcessConfig, *, exec_id: str | None = None) -> OciProcess:
        if self._closed:
            raise AlreadyClosed(f"container {self._id} is closed", container=self._id)
        if exec_id is None:
            with telling_what_ran_out("start", self._id):
                return await self._create_init(process)
        with telling_what_ran_out("exec in", self._id):
            return await self._create_exec(process, exec_id)

    async def _create_init(self, process: ProcessConfig) -> OciProcess:
        if process != self._process:
            raise InvalidState(f"container {self._id}: its init process is the one of its spec", container=self._id)
        return await self._spawn_init("run", (), process)

    async def _spawn_init(self, operation: str, words: Sequence[str], process: ProcessConfig) -> OciProcess:
        if self._init is not None:
            raise InvalidState(f"container {self._id} has an init process already", container=self._id)
        if self._terminating:
            raise AlreadyStopped(f"container {self._id} was terminated", container=self._id)
        command = [operation, *words, "--detach", "--bundle", self.bundle.path, "--pid-file", self.bundle.pid_file]
        if process.terminal:
            command += ["--console-socket", self.bundle.console]
        self._init = await self._spawn(
            operation,
            "init",
            process,
            self.call.argv(self.bundle.log, *command, self._id),
            pid_file=self.bundle.pid_file,
            console=self.bundle.console if process.terminal else None,
            log=self.bundle.log,
        )
        return self._init

    async def _create_exec(self, process: ProcessConfig, exec_id: str) -> OciProcess:
        check_id(exec_id)
        if self._init is None or self._init.has_exited:
            raise AlreadyStopped(f"container {self._id} is not running", container=self._id)
        known = self._execs.get(exec_id)
        if known is not None and not known.has_exited:
            raise AlreadyExists(f"container {self._id} runs a process {exec_id!r} already", container=self._id)
        files = f"{self.bundle.path}/exec-{uuid.uuid4().hex[:12]}"
        pid_file, log, console = (f"{files}.{kind}" for kind in ("pid", "log", "console"))
        command = ["exec", "--detach", "--process", f"/proc/self/fd/{_EXEC_FD}", "--pid-file", pid_file]
        if process.terminal:
            command += ["--console-socket", console]
        own = await self._exec_cgroups.make()
        if own is not None:
            command += ["--cgroup", own.name]

        def clean_up() -> None:
            unlink_all(pid_file, log)
            if own is not None:
                self._exec_cgroups.leave(own)

        spec = -1
        try:
            spec = in_memory(encode_process(process))
            async with self._starting_exec(own):
                made = self._execs[exec_id] = await self._spawn(
                    "exec",
                    exec_id,
                    process,
                    self.call.argv(log, *command, self._id),
                    pid_file=pid_file,
                    console=console if process.terminal else None,
                    log=log,
                    extra_fds={_EXEC_FD: spec},
                    own=own,
                    clean_up=clean_up,
                )
        except BaseException:
            try:
                if own is not None:
                    # What a runtime that failed has started is in there.
                    await in_thread(self._reserve.use, own.kill)
            finally:
                await in_thread(clean_up)
            raise
        finally:
            if spec >= 0:
                os.close(spec)
        return made

    def _starting_exec(self, own: OwnCgroup | None) -> AbstractAsyncContextManager[None]:
        if own is not None:
            return contextlib.nullcontext()
        if not self._own_pid_namespace:
            # Its orphans are the keeper's children too: a stray can't be told from them.
            return contextlib.nullcontext()
        if self._strays is None:
            self._strays = Strays(self.cgroup.pids, self.known_pids, lambda: self._keeper().pid, self._reserve)
        return self._strays.starting()

    def known_pids(self) -> set[int]:
        """Of its first process and its execs."""
        return {process.pid for process in (self._init, *self._execs.values()) if process is not None}

    async def _spawn(
        self,
        operation: str,
        name: str,
        process: ProcessConfig,
        argv: tuple[str, ...],
        *,
        pid_file: str,
        console: str | None,
        log: str,
        extra_fds: dict[int, int] | None = None,
        own: OwnCgroup | None = None,
        clean_up: Callable[[], None] | None = None,
    ) -> OciProcess:
        spawned: Spawned | None = None
        ends = make_ends(terminal=process.terminal, stdin=process.stdin)
        try:
            job = self._job(name, process, argv, ends, extra_fds or {}, pid_file=pid_file, console=console, own=own)
            if operation == "restore":
                job = restoring(job)
            async with self._start_slot():
                spawned = await self._spawning.spawn(job, operation)
            if spawned.status != 0 or spawned.pid is None:
                raise await self._failure(operation, process, spawned, log)
            stdio, terminal = ends.ours(spawned.console)
        except BaseException:
            ends.close()
            if spawned is not None and spawned.pid is not None:
                await self._spawning.take_away(job.job, spawned)
            raise
        ends.close_theirs()
        if name == "init":
            self.start_times = spawned.spawned_mono, spawned.runtime_exited_mono
        return OciProcess(
            job=job.job,
            pid=spawned.pid,
            pidfd=spawned.pidfd,
            start_time=spawned.start_time,
            started_mono=spawned.runtime_exited_mono,
            stdio=stdio,
            terminal=terminal,
            keeper=self._keeper(),
            exits_dir=self._exits_dir,
            members=self._members(own) if operation == "exec" else None,
            clean_up=clean_up,
            reserve=self._reserve,
        )

    def _members(self, own: OwnCgroup | None) -> Callable[[int], Members]:
        """All that an exec has started, by its pid: what is in its own cgroup, or its family in the container's."""
        return lambda pid: own if own is not None else Tree(pid, self.cgroup.pids, self.cgroup.let_die)

    def members(self, pid: int) -> Members | None:
        """Of the exec with that pid; None where none has it."""
        return next((process.members() for process in self._execs.values() if process.pid == pid), None)

    def _job(
        self,
        name: str,
        process: ProcessConfig,
        argv: tuple[str, ...],
        ends: Ends,
        extra_fds: dict[int, int],
        *,
        pid_file: str,
        console: str | None,
        own: OwnCgroup | None,
    ) -> Job:
        hold = dict(ends.hold)
        mount = None
        if name == "init" and self.mount is not None:
            # Closing the last reference of a mount can sync a file system: the keeper's is never the last.
            hold["rootfs"] = self.mount
            mount = MountPlan(fd=self.mount, target=self.bundle.rootfs)
        segments = None
        if self._segments is not None:
            plan = self._segments
            segments = SegmentPlan(plan.of(name), plan.max_bytes, plan.max_files, plan.policy)
        meta = JobMeta(
            kind="init" if name == "init" else "exec",
            id=self._id,
            runtime=self.call.name,
            name=name,
            terminal=process.terminal,
            started_mono=asyncio.get_running_loop().time(),
            segments=self._segments,
            lease=self._lease,
            cgroup=own.name if own is not None else None,
            upper=self._upper if name == "init" else None,
        )
        return Job(
            job=f"{self._id}:{uuid.uuid4().hex[:12]}",
            argv=argv,
            executable=self.call.executable,
            env=self.bundle.runtime_environment,
            pid_file=pid_file,
            stdio=ends.theirs,
            extra_fds=extra_fds,
            hold=hold,
            mount=mount,
            console=console,
            segments=segments,
            recipe={
                "cgroup": self.cgroup_path,
                "bundle": self.bundle.path,
                "runtime": self.call.name,
                "runtime_root": self.call.root,
            },
            meta=msgspec.json.encode(meta),
            lease=self._lease,
            timeout_s=limits.RUNTIME_CALL_S,
        )

    async def undone(self) -> None:
        """See `Spawning.undone`."""
        await self._spawning.undone()

    async def _failure(self, operation: str, process: ProcessConfig, spawned: Spawned, log: str) -> Exception:
        for fd in (spawned.console, spawned.pidfd):
            if fd is not None:
                os.close(fd)
        root: int | str | None = self.mount if self.mount is not None else self._plain_root
        config: str | None = self.bundle.config
        if self._init is not None:
            root, config = f"/proc/{self._init.pid}/root", None
        return await look_at_files(
            f"the root of container {self._id}",
            partial(
                runtime_failed,
                runtime=self.call.name,
                operation=operation,
                container=self._id,
                process=process,
                spawned=spawned,
                log=log,
                root=root,
                config=config,
            ),
        )

    # ---- taking over ----

    async def open_process(self, process_id: int | str) -> OciProcess:
        try:
            with telling_what_ran_out("take over", self._id):
                kept = await self._open_kept(process_id)
        except KeeperLost:
            if process_id != "init" or self.adopt is None:
                raise
            kept = None  # since it was asked for the container
        if kept is not None:
            return kept
        if process_id == "init" and self.adopt is not None:
            with telling_what_ran_out("take over", self._id):
                self._init = await in_thread(self.adopt)
            return self._init
        raise NotFound(f"container {self._id} has no process {process_id!r}", container=self._id)

    async def _open_kept(self, process_id: int | str) -> OciProcess | None:
        kept = find_kept(self.listed, self._id, process_id)
        kept = kept or find_kept(await self._keeper().list_jobs(of=f"{self._id}:"), self._id, process_id)
        if kept is None:
            return None
        job, meta = kept
        process, mount = await taken_over(
            self._keeper(),
            job,
            terminal=meta.terminal,
            started_mono=meta.started_mono,
            exits_dir=self._exits_dir,
            members=self._members(self._exec_cgroups.found(meta.cgroup)) if meta.kind == "exec" else None,
            clean_up=self._exec_cgroups.leaving(meta.cgroup),
            reserve=self._reserve,
        )
        if meta.kind == "init":
            self._init, self.mount = process, mount
        else:
            self._execs[meta.name] = process
        return process

    async def exec_ids(self) -> Sequence[str]:
        jobs, self.listed = self.listed or await self._keeper().list_jobs(of=f"{self._id}:"), ()
        metas = [decode_meta(job.meta) for job in jobs]
        ours = [meta for meta in metas if meta is not None and meta.id == self._id and meta.kind == "exec"]
        await self._exec_cgroups.take_up({meta.cgroup for meta in ours})
        return [meta.name for meta in ours]

    async def adopt_exec(self, known: KnownExec) -> OciProcess:
        if known.start_time is None:
            raise NotSupported(
                f"{self.call.name}: process {known.name!r} of container {self._id} is known by its number alone"
            )
        process = await in_thread(self._adopt_exec, PidRef(known.pid, known.start_time))
        self._execs[known.name] = process
        return process

    def _adopt_exec(self, process: PidRef) -> OciProcess:
        own = self._exec_cgroups.of_process(process.pid)
        return adopt(
            of_process(self._exits_dir, self._id, process),
            self._exits_dir,
            members=self._members(own),
            clean_up=None if own is None else lambda: self._exec_cgroups.leave(own),
            reserve=self._reserve,
        )

    # ---- ending ----

    async def shutdown(self) -> None:
        """Before the init's end: its stop is asked for. After it: what is left in the cgroup is killed."""
        if self._init is None:
            raise AlreadyStopped(f"container {self._id} runs nothing", container=self._id)
        if not self._init.has_exited:
            await self._init.kill(signals.SIGTERM)
            raise OperationPending(f"container {self._id} was asked to end", container=self._id)
        if self._own_pid_namespace:
            # The kernel has killed the whole pid namespace before it let the init's end be seen.
            raise AlreadyStopped(f"container {self._id} has ended", container=self._id)
        await self._kill_cgroup()

    async def terminate(self) -> None:
        self._terminating = True
        self.saving.give_up()
        if self._init is None:
            await self._kill_cgroup()
            return
        if self._init.has_exited and self._own_pid_namespace:
            raise AlreadyStopped(f"container {self._id} has ended", container=self._id)
        if not self._init.has_exited:
            try:
                await self._init.kill(signals.SIGKILL)
            except AlreadyStopped:
                if self._own_pid_namespace:
                    raise
        # Also thaws what is frozen: a process in cgroup v1's freezer does not die of SIGKILL.
        try:
            await self._kill_cgroup()
        except LimitExceeded:
            if not self._own_pid_namespace:
                raise
            # Its first process has its SIGKILL, and all others end with that one; the removal sees to what is left.
        if not self._init.has_exited:
            raise OperationPending(f"container {self._id} is being killed", container=self._id)

    async def _kill_cgroup(self) -> None:
        with telling_what_ran_out("kill", self._id):
            empty = await in_thread(self._reserve.use, self.cgroup.kill)
        if not empty:
            raise OperationPending(f"processes of container {self._id} have not died yet", container=self._id)

    async def wait(self) -> None:
        if self._init is None:
            raise AlreadyStopped(f"container {self._id} runs nothing", container=self._id)
        await self._init.wait()

    # ---- while it runs ----

    async def pause(self) -> None:
        self._must_run()
        with telling_what_ran_out("pause", self._id):
            await in_thread(freeze, self.cgroup, self._id)

    async def resume(self) -> None:
        with telling_what_ran_out("resume", self._id):
            await in_thread(self._reserve.use, partial(thaw, self.cgroup, self._id))

    async def is_paused(self) -> bool | None:
        # Of every container that an engine comes back to: one small read of cgroupfs costs less than a thread's turn.
        with telling_what_ran_out("look at", self._id):
            return self.cgroup.is_frozen()

    async def statistics(self) -> Statistics:
        self._must_run()
        with telling_what_ran_out("measure", self._id):
            return await in_thread(self.cgroup.statistics)

    async def pids(self) -> Sequence[int]:
        return sorted(await in_thread(self.cgroup.pids))

    async def process_list(self) -> Sequence[ProcessSummary]:
        self._must_run()
        # To read a command line can wait for a process that hangs in the kernel.
        with telling_what_ran_out("look into", self._id):
            return await look_at_files(
                f"the processes of container {self._id}", lambda: process_summaries(sorted(self.cgroup.pids()))
            )

    async def oom_counters(self) -> OomCounters | None:
        # On the way of every exit: a few small reads of cgroupfs, which is memory, cost less than a thread's turn.
        kills, peak, cpu = self.cgroup.final_counters()
        return OomCounters(oom_kills=kills, memory_peak_bytes=peak, cpu_ns=cpu)

    def watch_oom(self, told: int, tell: Callable[[int], None]) -> None:
        if self._init is not None:
            self._oom.begin(self._init, told, tell)

    async def stuck(self) -> str | None:
        return await in_thread(self._stuck)

    def _stuck(self) -> str | None:
        places = {pid: uninterruptible(pid) for pid in sorted(self.cgroup.pids())}
        return ", ".join(f"pid {pid} in {where}" for pid, where in places.items() if where) or None

    async def has_pending_updates(self) -> bool:
        return False

    async def update_resources(self, resources: Resources) -> None:
        self._must_run()
        with telling_what_ran_out("update", self._id):
            await self._update_resources(resources)

    async def _update_resources(self, resources: Resources) -> None:
        by_runtime = without_rates(resources)
        if by_runtime != Resources():
            path = f"{self.bundle.path}/exec-{uuid.uuid4().hex[:12]}.json"
            await in_thread(write_file, path, msgspec.json.encode(resources_to_oci(by_runtime)))
            try:
                await self.command("update", "--resources", path, self._id)
            finally:
                await in_thread(unlink_all, path)
        if resources != by_runtime:
            await in_thread(set_rates, self.cgroup, resources)
        if resources.memory_bytes is not None:
            self._oom.has_a_limit()

    # ---- checkpoints ----

    async def checkpoint(self, name: str, directory: str, *, leave_running: bool) -> None:
        self.saving.must_be_possible("checkpoint")
        self._must_run()
        assert self._init is not None
        beside = [process for process in self._execs.values() if not process.has_exited]
        await self.saving.save(SavedState.at(directory, name), self._init, beside, self._upper, leave_running)

    async def restore(self, name: str, directory: str) -> OciProcess:
        self.saving.must_be_possible("restore")
        spawn = partial(self._spawn_init, "restore", process=self._process)
        return await self.saving.restore(SavedState.at(directory, name), spawn)

    def begun(self) -> Callable[[], Awaitable[None]] | None:
        self.goes_on = True
        return partial(self._keep_files, self._upper) if self._upper is not None else None

    async def _keep_files(self, upper: str) -> None:
        try:
            await in_thread(layer_swap.keep, upper)
            await in_removing_thread(partial(layer_swap.clear, upper))
        except StoreError as failed:
            log.error("container %s: the files that it had before are left: %s", self._id, failed)

    def take_files_back(self) -> None:
        """Where it was to go on from a checkpoint and does not. Blocking; nothing of it runs. Raises: StoreError."""
        if self._upper is not None and not self.goes_on:
            layer_swap.take_back(self._upper)

    async def command(
        self, operation: str, *words: str, env: dict[str, str] | None = None, timeout_s: float | None = None
    ) -> None:
        """Call the runtime for a command and raise its failure; it has `limits.RUNTIME_CALL_S`, or so many seconds."""
        files = f"{self.bundle.path}/exec-{uuid.uuid4().hex[:12]}"
        log = f"{files}.log"
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            spawned = await self._keeper().spawn(
                Job(
                    job=f"{self._id}:{uuid.uuid4().hex[:12]}",
                    argv=self.call.argv(log, operation, *words),
                    executable=self.call.executable,
                    env={**self.bundle.runtime_environment, **(env or {})},
                    stdio=(null, null, null),
                    # Never there. A call that can take long is one that the keeper lists: the next engine waits for it.
                    pid_file=f"{files}.pid" if timeout_s is not None else None,
                    timeout_s=timeout_s if timeout_s is not None else limits.RUNTIME_CALL_S,
                )
            )
            if spawned.status != 0:
                raise await self._failure(operation, ProcessConfig(), spawned, log)
        finally:
            os.close(null)
            await in_thread(unlink_all, log)

    def _must_run(self) -> None:
        if self._init is None or self._init.has_exited:
            raise AlreadyStopped(f"container {self._id} is not running", container=self._id)

    # ---- the end ----

    async def close(self) -> None:
        if self._closed:
            raise AlreadyClosed(f"container {self._id} is closed", container=self._id)
        self._closed = True
        self._oom.end()
        self._queue_removal(self)

    async def let_go(self) -> None:
        """Close what we hold of it; what runs goes on, and the keeper has its own duplicates."""
        self._oom.end()
        if self._strays is not None:
            await self._strays.settled()
        for process in (self._init, *self._execs.values()):
            if process is not None:
                with contextlib.suppress(AlreadyClosed):
                    await process.close()
        if self.mount is not None:
            mount, self.mount = self.mount, None
            await in_thread(os.close, mount)
