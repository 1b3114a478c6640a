"""What an engine has of a Linux host: its runtimes behind one keeper, images, and the way from wishes to a spec."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from lighterman import limits
from lighterman.checks import SdNotify
from lighterman.ends import to_its_end
from lighterman.errors import (
    InvalidState,
    KeeperLost,
    LightermanError,
    LimitExceeded,
    NotFound,
    NotSupported,
    OperationTimeout,
    RuntimeUnavailable,
    StoreError,
)
from lighterman.images.image import Image
from lighterman.images.store import ImageStore, directory_image
from lighterman.keeper.client import JobState, KeeperClient
from lighterman.linux_jobs import end_job, end_orphans, sweep
from lighterman.roots import StateRoot, default_run, default_state
from lighterman.runtimes.base import CreateOption, RuntimeVersion
from lighterman.runtimes.oci import layer_swap
from lighterman.runtimes.oci.binary import sealed_copy
from lighterman.runtimes.oci.calls import JobMeta, RuntimeCall, decode_meta
from lighterman.runtimes.oci.cgroups import (
    Cgroup,
    CgroupHost,
    MountOptions,
    OomEars,
    Poke,
    cgroup_host,
    check_resources,
    group_of,
)
from lighterman.runtimes.oci.checkpointing import SavedState
from lighterman.runtimes.oci.copying import is_copy, remove
from lighterman.runtimes.oci.document import EtcFiles, HostFacts, build_spec, exec_process, hostname_of, touches_files
from lighterman.runtimes.oci.exec_cgroups import can_exec_into
from lighterman.runtimes.oci.probe import KNOWN as RUNTIMES
from lighterman.runtimes.oci.probe import Probed, pick, probe_all
from lighterman.runtimes.oci.reach import Reach
from lighterman.runtimes.oci.recorded import RecordedEnd, forget_recorded, recorded_ends
from lighterman.runtimes.oci.runtime import OciRuntime, Unremoved
from lighterman.runtimes.oci.seccomp.cache import FilterCache
from lighterman.runtimes.oci.starts import StartSlots
from lighterman.runtimes.oci.tree import Members
from lighterman.runtimes.options import OutputSegments, WithLease
from lighterman.scarcity import Reserve, telling_what_ran_out
from lighterman.spec import (
    ConsoleSize,
    ContainerSpec,
    HostFile,
    Overlay,
    PlainRoot,
    ProcessConfig,
    Resources,
    RestartPolicy,
    Rootfs,
    Spec,
)
from lighterman.threads import in_thread, look_at_files
from lighterman.trees import remove_tree

__all__ = ["OWNER", "HeldJob", "LinuxHost", "open_host"]

log = logging.getLogger(__name__)

_LAST_EXITS_S = 1.0  # for the exits of what has been killed, to be seen by the keeper
_KEEPERS_TRIED = 2  # at the opening, before the last one
OWNER = "owner"  # the keeper's name for the lease of this process


class HeldJob(NamedTuple):
    """A job of the keeper, and what it was started for."""

    job: JobState
    meta: JobMeta


async def open_host(root: StateRoot, wanted: str | None) -> LinuxHost:
    """Find out what this host has, and connect to the root's keeper.

    Raises: RuntimeUnavailable, NotSupported (an unknown runtime), KeeperLost.
    """
    probed = await in_thread(probe_all, f"{root.cache}/cache/runtimes.json")
    chosen, reason = pick(probed, wanted)
    facts = await in_thread(HostFacts.detect)
    await sweep()
    for is_last in (*(False,) * _KEEPERS_TRIED, True):
        keeper = await KeeperClient.start_or_connect(root.run, root.state)
        try:
            host = LinuxHost(root, keeper, probed, facts, chosen, reason)
        except BaseException:
            await keeper.close()
            raise
        try:
            await host.runtime(None)
        except KeeperLost:
            # Nothing was asked of it yet: another one serves as well.
            await host.close(by_force=root.private)
            if is_last:
                raise
        except BaseException:
            await host.close(by_force=root.private)
            raise
        else:
            return host
    raise AssertionError("the last one raises")


class LinuxHost:
    """Made by `open_host`."""

    def __init__(
        self,
        root: StateRoot,
        keeper: KeeperClient,
        probed: tuple[Probed, ...],
        facts: HostFacts,
        chosen: Probed,
        reason: str,
    ) -> None:
        self.keeper = keeper
        self.version = RuntimeVersion(name=chosen.name, version=chosen.version, path=chosen.path, reason=reason)
        self._root = root
        self._probed = probed
        self._facts = facts
        self._chosen = chosen
        self._cgroups = cgroup_host()
        self.poke = Poke(self._cgroups)
        self._images = ImageStore(f"{root.cache}/layers")
        self._runtimes: dict[str, OciRuntime] = {}
        self._slots = StartSlots()
        self._oom_ears = OomEars(self._cgroups)
        self._reserve = Reserve()
        self._unremoved: Unremoved = {}
        self._closing = False
        self.is_left = False
        self._orphaned: set[str] = set()
        # A container that could write there could write everywhere.
        self._forbidden = tuple({root.state, root.run, default_state(), default_run()})

    # ---- runtimes ----

    async def runtime(self, name: str | None) -> OciRuntime:
        """The runtime of that name, or the one that was chosen. Raises: RuntimeUnavailable, NotSupported."""
        probed, reason = pick(self._probed, name) if name else (self._chosen, self.version.reason)
        if probed.name not in self._runtimes:
            executable = await self._register(self.keeper, probed)
            # Another start may have been as far at the same time.
            self._runtimes.setdefault(probed.name, self._make(probed, executable, reason))
        return self._runtimes[probed.name]

    async def runtime_of_before(self, name: str) -> OciRuntime:
        """The runtime that an earlier engine has used.

        One that is gone, or works no more, is not needed to watch, stop and remove what it has started: whatever needs
        it fails by itself. Raises: KeeperLost.
        """
        try:
            return await self.runtime(name or None)
        except (RuntimeUnavailable, NotSupported) as gone:
            if name not in self._runtimes:
                log.error("what %s has started is watched and can be stopped, and no more: %s", name, gone)
                known = (one for one in self._probed if one.name == name)
                probed = next(known, Probed(name=name, path=name, version="unknown", no_checkpoints=str(gone)))
                self._runtimes[name] = self._make(probed, probed.path, str(gone))
            return self._runtimes[name]

    @staticmethod
    async def _register(keeper: KeeperClient, probed: Probed) -> str:
        """Give the keeper a runtime's binary; returns what to call it by."""
        loading = asyncio.ensure_future(in_thread(sealed_copy, probed.name, probed.path))
        try:
            binary = await to_its_end(loading)
        except asyncio.CancelledError:
            if loading.exception() is None and (unused := loading.result()) is not None:
                os.close(unused)
            raise
        if binary is None:
            return probed.path
        try:
            await keeper.register_binary(probed.name, binary)
        finally:
            os.close(binary)
        return probed.name

    def _make(self, probed: Probed, executable: str, reason: str) -> OciRuntime:
        filters = None
        if probed.name == "crun":
            filters = FilterCache(f"{self._root.cache}/cache/seccomp", probed.path, probed.version)
        return OciRuntime(
            RuntimeCall(
                name=probed.name,
                executable=executable,
                root=f"{self._root.run}/runtime/{probed.name}",
                exec_cgroups=can_exec_into(probed.name, probed.version),
            ),
            RuntimeVersion(name=probed.name, version=probed.version, path=probed.path, reason=reason),
            keeper=self.keeper,
            run_dir=self._root.run,
            exits_dir=f"{self._root.state}/exits",
            cgroups=self._cgroups,
            filters=filters,
            no_checkpoints=probed.no_checkpoints,
            slots=self._slots,
            oom_ears=self._oom_ears,
            reserve=self._reserve,
            unremoved=self._unremoved,
        )

    def opened(self, name: str) -> OciRuntime:
        """One that `runtime` gave before."""
        return self._runtimes[name]

    def start_times(self, runtime: str, id: str) -> tuple[float, float] | None:
        """See `OciRuntime.start_times`."""
        return self._runtimes[runtime].start_times(id) if runtime in self._runtimes else None

    def members(self, runtime: str, id: str, pid: int) -> Members | None:
        """See `OciRuntime.members`."""
        return self._runtimes[runtime].members(id, pid) if runtime in self._runtimes else None

    # ---- the keeper ----

    async def lease_ourselves(self) -> None:
        """What is not to live on ends within moments of our death, however that comes: the keeper sees to it."""
        await self.lease_on(self.keeper)

    async def lease_on(self, keeper: KeeperClient, groups: Sequence[str] = ()) -> None:
        """`lease_ourselves` with another keeper; `groups` are the cgroups of what it did not start itself."""
        ourselves = os.pidfd_open(os.getpid())
        try:
            remove = (self._root.run, self._root.state) if self._root.private else ()
            await keeper.lease(OWNER, ourselves, remove=remove, groups=groups)
        finally:
            os.close(ourselves)

    async def watch_keeper(self, grant_again: Callable[[KeeperClient], Awaitable[None]]) -> None:
        """Start another keeper when this one is lost. What it kept is watched by pidfd; the new one serves the rest.

        Args: grant_again: gives it the leases, before it serves anybody.
        """
        while True:
            await self.keeper.wait_lost()
            if self._closing:
                return
            log.error("the keeper (process %d) is lost: containers are watched by pidfd now", self.keeper.pid)
            starting = asyncio.ensure_future(KeeperClient.start_or_connect(self._root.run, self._root.state))
            try:
                keeper = await to_its_end(starting)
                known = {pid for runtime in self._runtimes.values() for pid in runtime.pids()}
                orphaned = await end_orphans(self._root, keeper, known)
                for probed in self._probed:
                    if probed.name in self._runtimes and probed.refusal is None:
                        await self._register(keeper, probed)
                await grant_again(keeper)
            except (LightermanError, OSError) as failed:
                log.error("no other keeper can be started: %s", failed)
                if starting.done() and not starting.cancelled() and starting.exception() is None:
                    await starting.result().close()  # it was lost as well
                await asyncio.sleep(limits.KEEPER_RETRY_S)
                continue
            except asyncio.CancelledError:
                if starting.exception() is None:
                    self.keeper = starting.result()  # for `close` to end
                raise
            self.keeper = keeper
            for runtime in self._runtimes.values():
                runtime.keeper = keeper
            for id in orphaned:
                knows = (runtime for runtime in self._runtimes.values() if runtime.is_open(id))
                try:
                    await next(knows, await self.runtime(None)).remove_remains_of_ended(id)
                except (LightermanError, OSError) as failed:
                    log.error("what the calls for container %s have made may be left: %s", id, failed)

    def reach(self, runtime: str, id: str) -> Reach | None:
        """See `OciSystem.reach`."""
        return self._runtimes[runtime].reach(id) if runtime in self._runtimes else None

    # ---- what an earlier engine left ----

    @staticmethod
    def boot_id() -> str:
        """Of the host's present life. Blocking."""
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()

    @staticmethod
    def now() -> float:
        """Unix time, seconds."""
        return time.time()

    async def held_jobs(self, known: set[int]) -> list[HeldJob]:
        """Every process that the keeper has for this root, or has told the end of without an acknowledgement.

        Args: known: processes of containers that are written down.
        """
        held = []
        jobs = await self._settled_jobs()
        # Not before: a call of CRIU's that outlived its engine takes them away at any moment.
        await in_thread(_recover_options, self._cgroups)
        known |= {job.pid for job in jobs if job.pid is not None}
        self._orphaned = await end_orphans(self._root, self.keeper, known, settled=True)
        for job in jobs:
            meta = decode_meta(job.meta)
            if meta is None:
                try:
                    await self._end_job(job)
                except LimitExceeded as failed:
                    log.error("%s; the next engine tries again", failed)
            else:
                held.append(HeldJob(job, meta))
        return held

    async def _settled_jobs(self) -> list[JobState]:
        """Every job, once no runtime call is in flight: what comes of an earlier engine's is known then."""
        deadline = time.monotonic() + limits.RUNTIME_CALL_S + limits.KEEPER_CALL_S
        while True:
            jobs = await self.keeper.list_jobs()
            in_flight = [job for job in jobs if job.pid is None and job.exit is None]
            is_late = time.monotonic() > deadline
            for job in in_flight:
                # Nobody goes on with a copy. A call that saves a container is let come to its end: a CRIU that is
                # killed can leave a part of itself in the processes.
                if is_copy(job.job) or (is_late and decode_meta(job.meta) is None):
                    with contextlib.suppress(OperationTimeout):
                        await self.keeper.abort(job.job)
            if not in_flight or is_late:
                return jobs
            await asyncio.sleep(0.01)

    def recorded_ends(self) -> dict[str, list[RecordedEnd]]:
        """What keepers of an earlier life of the host have written down and no engine has taken. Blocking."""
        return recorded_ends(f"{self._root.state}/exits")

    def forget_recorded(self, *, told: bool) -> None:
        """See `recorded.forget_recorded`. Blocking."""
        forget_recorded(f"{self._root.state}/exits", told=told)

    async def end_jobs(self, jobs: Sequence[HeldJob], *, remains: bool = True) -> None:
        """Kill what runs of them, acknowledge them, and take away what their runs have left.

        Args: remains: False where a later run of the same container goes on: its bundle and cgroup bear the same name.
        Raises: LimitExceeded (not even SIGKILL ends one), KeeperLost.
        """
        for held in jobs:
            await self._end_job(held.job)
            if remains and held.meta.kind == "init" and held.meta.runtime in RUNTIMES:
                runtime = await self.runtime_of_before(held.meta.runtime)
                await runtime.remove_remains(held.meta.id)

    async def remove_remains(self, *, except_of: set[str]) -> None:
        """Take away the bundles, runtime states and cgroups of runs that nobody knows of any more."""
        for name in RUNTIMES:
            states = await in_thread(_listed, f"{self._root.run}/runtime/{name}")
            for id in states - except_of:
                await (await self.runtime_of_before(name)).remove_remains(id)
        # What an orphaned call has made after its container's remains were taken away has no bundle any more.
        for id in (await in_thread(_listed, f"{self._root.run}/bundles") | self._orphaned) - except_of:
            await (await self.runtime(None)).remove_remains(id)

    def settle_checkpoint(self, id: str, directory: str, name: str, *, leave_running: bool, was_paused: bool) -> bool:
        """After a crash while it was being made: let the container go on, or end by it as it was asked to. Blocking.

        Returns: whether it is whole.
        """
        saved = SavedState.at(directory, name)
        is_whole = os.path.isdir(saved.path)
        cgroup = Cgroup(self.group_of(id), self._cgroups)
        if is_whole and not leave_running:
            cgroup.kill()
        elif not was_paused:
            with contextlib.suppress(NotFound):  # it has ended
                cgroup.thaw()
        try:
            remove(saved.part)
        except StoreError as failed:
            log.error("container %s: a part of checkpoint %s is left: %s", id, name, failed)
        return is_whole

    def settle_layers(self, goes_on: Mapping[str, bool]) -> None:
        """Files of a checkpoint that a killed engine was putting in place: see `layer_swap`. Blocking.

        Args: goes_on: by id, whether no start was under way, or it is one of its runs.
        """
        for id, is_told in goes_on.items():
            try:
                layer_swap.settle(f"{self._root.container(id)}/upper", goes_on=is_told)
            except StoreError as failed:
                log.error("container %s: its files may be those of a checkpoint: %s", id, failed)

    def frozen(self, ids: Sequence[str]) -> set[str]:
        """Those of these containers that are paused, by the kernel. Blocking."""
        return {id for id in ids if Cgroup(self.group_of(id), self._cgroups).is_frozen()}

    def upper_of(self, id: str, wanted: ContainerSpec) -> str | None:
        """Where a container's root is written to; None where that is a directory of the host's."""
        return None if _has_plain_root(wanted) else f"{self._root.container(id)}/upper"

    def group_of(self, id: str) -> str:
        """The path of a container's cgroup."""
        return group_of(self._root.run, id)

    def left_directories(self, *, except_of: set[str]) -> list[str]:
        """Where containers have written that are in no book. Blocking."""
        return [self._root.container(id) for id in sorted(_listed(f"{self._root.state}/containers") - except_of)]

    @staticmethod
    async def remove_directory(path: str) -> None:
        """Take one of `left_directories` away; what can't be now is tried again by the next engine."""
        try:
            await in_thread(remove_tree, path)
        except FileNotFoundError:
            log.debug("%s went by itself", path)
        except OSError as failed:
            log.error("%s can't be removed: %s", path, failed)

    async def _end_job(self, job: JobState) -> None:
        await end_job(self.keeper, job, self._cgroups)

    # ---- from wishes to a spec ----

    async def image(self, name: str | None, rootfs: str | None) -> Image:
        """Raises: NotFound, NotSupported, InvalidSpec."""
        if name is not None:
            cached = self._images.cached(name)
            return cached if cached is not None else await in_thread(self._images.resolve, name)
        assert rootfs is not None
        return await look_at_files(f"root {rootfs!r:.140}", partial(directory_image, rootfs, forbidden=self._forbidden))

    async def spec(self, id: str, wanted: ContainerSpec, image: Image) -> Spec:
        """Check and encode. Raises: as `build_spec`; LimitExceeded."""
        directory = self._root.container(id)
        rootfs = _rootfs(wanted, image, directory, volatile=self._root.private)
        files = EtcFiles(
            hosts=f"{directory}/hosts",
            hostname=f"{directory}/hostname",
            resolv_conf=f"{directory}/resolv.conf",
            notify=f"{directory}/notify" if isinstance(wanted.ready, SdNotify) else None,
        )

        def build() -> Spec:
            spec = build_spec(
                wanted,
                image.config,
                rootfs=rootfs,
                root_lookup=image.layers[0],
                id=id,
                files=files,
                host=self._facts,
                forbidden_sources=self._forbidden,
                cgroup_parent=self._parent_group(),
            )
            etc = _etc(files, hostname_of(wanted, id), host_network=wanted.network == "host")
            return msgspec.structs.replace(spec, files=etc)

        blocks = wanted.network == "host" or touches_files(wanted, image.config)
        with telling_what_ran_out("describe", id):
            return await look_at_files(f"the mounts of container {id}", build) if blocks else build()

    def create_options(
        self, id: str, wanted: ContainerSpec, image: Image | None, lease: str | None
    ) -> list[CreateOption]:
        """Where the keeper puts output while we are away, and what of its leases binds the run."""
        options: list[CreateOption] = [
            OutputSegments(
                self._root.container(id), limits.SEGMENT_BYTES, limits.SEGMENT_FILES, policy=wanted.log_policy
            )
        ]
        if lease is not None:
            options.append(WithLease(lease))
        return options

    async def exec_process(
        self,
        base: ProcessConfig,
        args: tuple[str, ...],
        *,
        pid: int,
        env: dict[str, str] | None,
        workdir: str | None,
        user: str | None,
        terminal: bool,
        console_size: ConsoleSize | None,
        stdin: bool,
    ) -> ProcessConfig:
        """A further process of the container of `pid`. Raises: as `document.exec_process`."""

        def build() -> ProcessConfig:
            return exec_process(
                base,
                args,
                env=env,
                workdir=workdir,
                user=user,
                root_lookup=f"/proc/{pid}/root",
                terminal=terminal,
                console_size=console_size,
                stdin=stdin,
            )

        return await look_at_files(f"user {user!r:.140}", build) if user else build()

    def check_resources(self, resources: Resources) -> None:
        """Blocking. Raises: InvalidSpec, NotSupported for a limit that this host can't enforce."""
        check_resources(resources, self._cgroups, parent=self._parent_group())

    def _parent_group(self) -> str:
        return next(runtime.parent_group() for runtime in self._runtimes.values())

    def check_restart(self, policy: RestartPolicy) -> None:
        """Each can be carried out here."""

    async def copy_checkpoint(self, id: str, name: str, source: str, target: str, runtime: str | None) -> None:
        """See `Host.copy_checkpoint`."""
        (await self.runtime(runtime)).must_checkpoint("create from a checkpoint", id)
        await SavedState.at(source, name).copy_to(SavedState.at(target, name), self.keeper, id)

    # ---- the end ----

    def forget(self, id: str) -> None:
        """Nothing of it is kept outside of its directory."""

    async def close(self, *, by_force: bool, lives: bool = False) -> bool:
        """Finish removals under way; end the keeper where nothing lives on, else leave it. Returns: whether it ended.

        Args:
            by_force: every container has been ended by now; what is left is a call that hangs, or what no signal ends:
                that is left to the keeper (`is_left`).
            lives: a container lives on. A keeper that has it refuses to end; one that has only the lease of it, since
                its own was lost, would not.
        """
        self._closing = True
        self.poke.close()
        for runtime in self._runtimes.values():
            await runtime.close()
        self._reserve.close()
        if lives and not by_force:
            await self.keeper.close()
            return False
        try:
            if by_force and await self._leave_what_does_not_end():
                await self.keeper.close()
                return False
            await self.keeper.shutdown(force=by_force)
        except InvalidState:
            ended = False
        except KeeperLost:
            ended = False
            log.debug("the keeper had ended already")
        except LightermanError as failed:
            ended = False
            log.error("the keeper does not end: %s", failed)
        else:
            ended = True
        await self.keeper.close()
        return ended

    async def _leave_what_does_not_end(self) -> bool:
        """What that leaves only the keeper can take away. Returns: whether there is any. Raises: KeeperLost."""
        ends = [self.keeper.wait_exit(job.job) for job in await self.keeper.list_jobs() if job.pid is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_EXITS_S):
                await asyncio.gather(*ends, return_exceptions=True)
        left = [job.pid for job in await self.keeper.list_jobs() if job.pid is not None and job.exit is None]
        if not left:
            return False
        log.error("%d processes can't be ended (%s): their keeper goes on, and removes the root then", len(left), left)
        try:
            await self.keeper.renew_lease(OWNER, time.clock_gettime(time.CLOCK_BOOTTIME))
        except InvalidState:
            log.debug("the keeper has seen the end of this root already")
        self.is_left = True
        return True


def _recover_options(cgroups: CgroupHost) -> None:
    try:
        MountOptions(cgroups, default_run()).recover()
    except OSError as failed:
        log.error("the cgroup tree may have lost mount options: %s", failed)


def _has_plain_root(spec: ContainerSpec) -> bool:
    return spec.rootfs is not None and spec.rootfs_rw


def _rootfs(spec: ContainerSpec, image: Image, directory: str, *, volatile: bool) -> Rootfs:
    if _has_plain_root(spec):
        return PlainRoot(path=image.layers[0])
    # What is removed with its engine anyway needs no sync when it is unmounted.
    return Overlay(lowers=image.layers, upper=f"{directory}/upper", work=f"{directory}/work", volatile=volatile)


def _etc(files: EtcFiles, hostname: str, *, host_network: bool) -> tuple[HostFile, ...]:
    """The three files, which every container has, whatever its network."""
    hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    resolv = ""
    if host_network:
        hosts, resolv = _read("/etc/hosts") or hosts, _read("/etc/resolv.conf")
    else:
        hosts += f"127.0.1.1\t{hostname}\n"
    texts = ((files.hosts, hosts), (files.hostname, f"{hostname}\n"), (files.resolv_conf, resolv))
    return tuple(HostFile(path=path, content=text.encode()) for path, text in texts)


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


def _listed(directory: str) -> set[str]:
    try:
        return set(os.listdir(directory))
    except FileNotFoundError:
        return set()
