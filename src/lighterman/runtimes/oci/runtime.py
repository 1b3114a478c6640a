"""Containers through an OCI runtime: crun, runc or youki, called by the keeper."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

import msgspec

from lighterman import limits
from lighterman.ends import to_its_end
from lighterman.errors import (
    AlreadyExists,
    InvalidSpec,
    KeeperLost,
    LightermanError,
    NotFound,
    NotSupported,
)
from lighterman.keeper.client import JobState, KeeperClient
from lighterman.runtimes.base import CreateOption, Features, RuntimeVersion
from lighterman.runtimes.oci import layer_swap
from lighterman.runtimes.oci.adoption import adopt, find_evidence
from lighterman.runtimes.oci.bundle import Bundle, check_id, write_host_files
from lighterman.runtimes.oci.calls import RuntimeCall, decode_meta
from lighterman.runtimes.oci.cgroups import Cgroup, CgroupHost, OomEars, group_of, group_parent
from lighterman.runtimes.oci.checkpointing import SavedState, going_to
from lighterman.runtimes.oci.document import encode_config
from lighterman.runtimes.oci.failures import check_behind_init
from lighterman.runtimes.oci.mounts import detached_overlay
from lighterman.runtimes.oci.oom import OomWatch
from lighterman.runtimes.oci.process import OciProcess
from lighterman.runtimes.oci.reach import Reach
from lighterman.runtimes.oci.removal import remove_natively
from lighterman.runtimes.oci.seccomp.cache import FilterCache
from lighterman.runtimes.oci.starts import StartSlots
from lighterman.runtimes.oci.system import OciSystem
from lighterman.runtimes.oci.tree import Members
from lighterman.runtimes.oci.upper import make_upper
from lighterman.runtimes.options import OutputSegments, WithCheckpoint, WithLease
from lighterman.scarcity import Reserve, telling_what_ran_out
from lighterman.spec import Overlay, PlainRoot, ProcessConfig, Spec
from lighterman.threads import in_thread

__all__ = ["OciRuntime"]

log = logging.getLogger(__name__)

# Removals run behind the exits; who starts containers in a loop must not get ahead of them for ever.
_REMOVALS_BEHIND = 64
# A removal begins so long after the exit was seen: whoever waits for that exit would share the interpreter with it.
_REMOVAL_AFTER_S = 0.001
_OF_AN_ENGINE = re.compile("[0-9a-f]{32}")  # an id that nobody else has: a look for that would make its starts slower


class _Namespace(msgspec.Struct, frozen=True):
    type: str
    path: str | None = None


class _Memory(msgspec.Struct, frozen=True):
    limit: int | None = None


class _Resources(msgspec.Struct, frozen=True):
    memory: _Memory | None = None


class _Linux(msgspec.Struct, frozen=True, rename="camel"):
    cgroups_path: str | None = None
    namespaces: tuple[_Namespace, ...] = ()
    resources: _Resources | None = None


class _Document(msgspec.Struct, frozen=True):
    """What of an OCI document decides how the container is ended and removed."""

    linux: _Linux = _Linux()
    hooks: dict[str, Any] = {}

    def own(self, kind: str) -> bool:
        """Whether it gets a new namespace of that kind."""
        return any(one.type == kind and not one.path for one in self.linux.namespaces)

    @property
    def memory_limited(self) -> bool:
        memory = self.linux.resources.memory if self.linux.resources is not None else None
        return memory is not None and memory.limit is not None and memory.limit > 0


class _Listed(NamedTuple):
    """See `OciRuntime.listed`."""

    jobs: Sequence[JobState] = ()
    memory_limited: bool = True
    upper: str | None = None


Unremoved = dict[str, "tuple[OciRuntime, OciSystem]"]
"""Whose removals have left something, by id: tried again before the next run, by any runtime, and at the close."""


class OciRuntime:
    """One of the OCI runtimes of this host; everything that it makes lies below `run_dir`.

    Args:
        call: how to call it. exits_dir: where keepers write down exits.
        filters: compiled seccomp filters, where the runtime takes them.
        no_checkpoints: why it can make none here; None where it can.
        reserve, unremoved: shared by the runtimes of one root, whose containers have the same cgroups and bundles.
    """

    def __init__(
        self,
        call: RuntimeCall,
        version: RuntimeVersion,
        *,
        keeper: KeeperClient,
        run_dir: str,
        exits_dir: str,
        cgroups: CgroupHost,
        filters: FilterCache | None = None,
        no_checkpoints: str | None = "they were not asked for",
        slots: StartSlots | None = None,
        oom_ears: OomEars | None = None,
        reserve: Reserve | None = None,
        unremoved: Unremoved | None = None,
    ) -> None:
        self._call = call
        self._version = version
        self.keeper = keeper  # replaced by whoever starts another one, after it was lost
        self._run_dir = run_dir
        self._exits_dir = exits_dir
        self._cgroups = cgroups
        self._filters = filters
        self._no_checkpoints = no_checkpoints
        self._slots = slots or StartSlots()
        self._oom_ears = oom_ears or OomEars(cgroups)
        self._owns_reserve = reserve is None
        self._reserve = reserve or Reserve()
        self._systems: dict[str, OciSystem] = {}
        self._listed: dict[str, _Listed] = {}
        self._parent: tuple[int, str] | None = None  # of the containers' cgroups, and the keeper beside which they are
        self._creating: set[str] = set()  # not among the systems yet
        self._removals: dict[str, asyncio.Task[None]] = {}
        self._unremoved = unremoved if unremoved is not None else {}

    @property
    def name(self) -> str:
        return self._call.name

    async def version(self) -> RuntimeVersion:
        return self._version

    def features(self) -> Features:
        can = self._no_checkpoints is None
        options = {"OutputSegments", "WithLease"} | ({"WithCheckpoint"} if can else set())
        return Features(checkpoint=can, create_options=frozenset(options))

    async def list(self) -> Sequence[str]:
        metas = [decode_meta(job.meta) for job in await self.keeper.list_jobs()]
        return sorted({meta.id for meta in metas if meta is not None and meta.runtime == self.name})

    async def create(self, id: str, spec: Spec, options: Sequence[CreateOption] = ()) -> OciSystem:
        check_id(id)
        segments, lease, checkpoint = self._check_options(options)
        if spec.rootfs is None:
            raise InvalidSpec(f"container {id}: its spec names no root file system", container=id)
        while len(self._removals) > _REMOVALS_BEHIND:
            await asyncio.wait(tuple(self._removals.values()), return_when=asyncio.FIRST_COMPLETED)
        # What an ended run has left goes first: until then the id is not free.
        await self._removed(id)
        if id in self._unremoved:
            _, system = self._unremoved[id]
            await self._remove_again(id)
            if self._unremoved.pop(id, None) is not None:
                # What is left now is mixed with what this run makes; but the container's files are its own.
                await in_thread(system.take_files_back)
        if id in self._systems or id in self._creating:
            raise AlreadyExists(f"{self.name}: a container {id!r} exists already", container=id)
        self._creating.add(id)
        try:
            with telling_what_ran_out("create", id):
                return await self._create(id, spec, segments, lease, checkpoint)
        finally:
            self._creating.discard(id)

    async def _create(
        self,
        id: str,
        spec: Spec,
        segments: OutputSegments | None,
        lease: str | None,
        checkpoint: WithCheckpoint | None,
    ) -> OciSystem:
        assert spec.rootfs is not None
        document = _read_document(spec.document)
        cgroup_path = f"{self.parent_group()}/{id}"
        if not _OF_AN_ENGINE.fullmatch(id) and not await in_thread(Cgroup(cgroup_path, self._cgroups).is_empty):
            # Without a scope of its own each root has its containers there: the end of one would be the other's.
            raise AlreadyExists(
                f"{self.name}: a container {id!r} of another root, or what is left of one, is in cgroup {cgroup_path}",
                container=id,
            )
        if document.linux.cgroups_path != cgroup_path:
            spec = _with_cgroup_path(spec, cgroup_path)
        upper = spec.rootfs.upper if isinstance(spec.rootfs, Overlay) else None
        bundle = Bundle(f"{self._run_dir}/bundles/{id}")
        try:
            if checkpoint is not None:
                await self._put_files_back(id, checkpoint, upper)
                spec = going_to(spec, cgroup_path, bundle.criu_config)
            return await self._make_system(id, spec, document, bundle, cgroup_path, segments, lease, upper)
        except BaseException:
            if checkpoint is not None and upper is not None:
                await to_its_end(in_thread(layer_swap.take_back, upper))
            raise

    async def _make_system(
        self,
        id: str,
        spec: Spec,
        document: _Document,
        bundle: Bundle,
        cgroup_path: str,
        segments: OutputSegments | None,
        lease: str | None,
        upper: str | None,
    ) -> OciSystem:
        # Directories, config.json and the mount can all meet a slow disk: together, in one turn of a thread.
        preparing = asyncio.ensure_future(in_thread(self._prepare, bundle, spec))
        try:
            mount = await to_its_end(preparing)
        except asyncio.CancelledError:
            if preparing.exception() is None:
                await to_its_end(in_thread(self._undo_prepare, bundle, preparing.result()))
            raise
        cgroup = Cgroup(cgroup_path, self._cgroups)
        system = OciSystem(
            id,
            call=self._call,
            keeper=lambda: self.keeper,
            exits_dir=self._exits_dir,
            bundle=bundle,
            cgroup=cgroup,
            cgroup_path=cgroup_path,
            process=spec.process,
            mount=mount,
            plain_root=spec.rootfs.path if isinstance(spec.rootfs, PlainRoot) else None,
            own_pid_namespace=document.own("pid"),
            oom=OomWatch(cgroup, self._oom_ears, limited=document.memory_limited),
            segments=segments,
            lease=lease,
            upper=upper,
            own_network=document.own("network"),
            no_checkpoints=self._no_checkpoints,
            start_slot=self._slots.slot,
            queue_removal=self._queue_removal,
            reserve=self._reserve,
        )
        self._systems[id] = system
        return system

    async def _put_files_back(self, id: str, checkpoint: WithCheckpoint, upper: str | None) -> None:
        saved = SavedState.at(checkpoint.directory, checkpoint.name)
        await in_thread(saved.require_whole, id)
        if upper is None:
            return
        if not await in_thread(os.path.isdir, saved.upper):
            raise NotFound(
                f"the checkpoint at {saved.path} lacks the container's files", operation="restore", container=id
            )
        await saved.put_files_back(self.keeper, upper, id)

    def must_checkpoint(self, operation: str, id: str) -> None:
        """Raises: NotSupported where its containers can't be checkpointed."""
        if self._no_checkpoints is not None:
            raise NotSupported(
                f"{self.name}: {operation} is not possible here: {self._no_checkpoints}",
                operation=operation,
                container=id,
            )

    def parent_group(self) -> str:
        """Below which its containers' cgroups are made. Asked for once for each keeper."""
        keeper = self.keeper.pid
        if self._parent is None or self._parent[0] != keeper:
            self._parent = keeper, group_parent(self._run_dir, keeper)
        return self._parent[1]

    def start_times(self, id: str) -> tuple[float, float] | None:
        """When the runtime was called for the init process, and when it had returned; CLOCK_MONOTONIC, seconds."""
        system = self._systems.get(id)
        return system.start_times if system else None

    def reach(self, id: str) -> Reach | None:
        """See `OciSystem.reach`."""
        system = self._systems.get(id)
        return system.reach() if system else None

    def members(self, id: str, pid: int) -> Members | None:
        """What the exec `pid` of a container has started; None where it is not known."""
        system = self._systems.get(id)
        return system.members(pid) if system else None

    def root_of(self, id: str) -> int | None:
        """The descriptor of a container's mounted root, for looking inside; None where there is no mount of ours."""
        system = self._systems.get(id)
        return system.mount if system else None

    def _check_options(
        self, options: Sequence[CreateOption]
    ) -> tuple[OutputSegments | None, str | None, WithCheckpoint | None]:
        segments = lease = checkpoint = None
        for option in options:
            if isinstance(option, OutputSegments):
                segments = option
            elif isinstance(option, WithLease):
                lease = option.name
            elif isinstance(option, WithCheckpoint) and self._no_checkpoints is None:
                checkpoint = option
            else:
                why = f": {self._no_checkpoints}" if isinstance(option, WithCheckpoint) else ""
                raise NotSupported(f"{self.name}: option {type(option).__name__} is not possible here{why}")
        return segments, lease, checkpoint

    def _prepare(self, bundle: Bundle, spec: Spec) -> int | None:
        try:
            bundle.make()
            write_host_files(spec.files)
            bundle.write_config(encode_config(self._with_filter(spec)))
            if not isinstance(spec.rootfs, Overlay):
                if isinstance(spec.rootfs, PlainRoot):
                    self._check_behind_init(bundle, spec, spec.rootfs.path)
                return None
            make_upper(spec.rootfs)
            mount = detached_overlay(spec.rootfs)
            try:
                self._check_behind_init(bundle, spec, mount)
            except BaseException:
                os.close(mount)
                raise
            return mount
        except BaseException:
            self._reserve.use(bundle.remove)
            raise

    def _undo_prepare(self, bundle: Bundle, mount: int | None) -> None:
        if mount is not None:
            os.close(mount)
        self._reserve.use(bundle.remove)

    def _check_behind_init(self, bundle: Bundle, spec: Spec, root: int | str) -> None:
        check_behind_init(
            spec.process,
            root=root,
            config=bundle.config,
            runtime=self.name,
            container=os.path.basename(bundle.path),
        )

    def _with_filter(self, spec: Spec) -> Spec:
        if self._filters is None:
            return spec
        document = self._filters.apply(spec.document)
        if document is spec.document and self._filters.is_worth_preparing(document):
            # Once for each profile on a host; this start waits for it, no other does.
            self._filters.prepare(document)
            document = self._filters.apply(document)
        return msgspec.structs.replace(spec, document=document)

    def listed(
        self, id: str, jobs: Sequence[JobState], *, memory_limited: bool = True, upper: str | None = None
    ) -> None:
        """What the keeper has just said that it has of a container, for its `open`: it is not asked again.

        Args:
            memory_limited: whether it has a memory limit; True where that is not known.
            upper: its root's writable layer, for where no keeper knows of it any more.
        """
        self._listed[id] = _Listed(jobs, memory_limited, upper)

    async def open(self, id: str) -> OciSystem:
        check_id(id)
        if id in self._systems:
            return self._systems[id]
        listed = self._listed.pop(id, _Listed())
        try:
            kept = await self._open_kept(id, listed)
        except KeeperLost:
            kept = None  # in this moment
        if kept is not None:
            return kept
        # No keeper knows of it; if one was lost, the runtime's own state still names the process.
        evidence = await in_thread(find_evidence, f"{self._call.root}/{id}", self._exits_dir, id)
        if evidence is None:
            raise NotFound(f"{self.name}: no container {id!r}", container=id)
        system = self._opened(id, None, None, listed.upper, memory_limited=listed.memory_limited)
        system.adopt = lambda: adopt(evidence, self._exits_dir)
        return system

    async def _open_kept(self, id: str, listed: _Listed) -> OciSystem | None:
        jobs = listed.jobs or await self.keeper.list_jobs(of=f"{id}:")
        for job in jobs:
            meta = decode_meta(job.meta)
            if meta is None or meta.id != id or meta.kind != "init" or meta.runtime != self.name:
                continue
            # Its mount comes with its process: what the keeper holds is fetched once.
            system = self._opened(id, meta.segments, meta.lease, meta.upper, memory_limited=listed.memory_limited)
            system.adopt = lambda: self._adopt(id)
            system.listed = jobs
            return system
        return None

    def _adopt(self, id: str) -> OciProcess:
        """Find it without a keeper. Blocking. Raises: NotFound."""
        evidence = find_evidence(f"{self._call.root}/{id}", self._exits_dir, id)
        if evidence is None:
            raise NotFound(f"{self.name}: no container {id!r}", container=id)
        return adopt(evidence, self._exits_dir)

    def _opened(
        self,
        id: str,
        segments: OutputSegments | None,
        lease: str | None,
        upper: str | None = None,
        *,
        memory_limited: bool = True,
    ) -> OciSystem:
        cgroup_path = group_of(self._run_dir, id)
        cgroup = Cgroup(cgroup_path, self._cgroups)
        system = OciSystem(
            id,
            call=self._call,
            keeper=lambda: self.keeper,
            exits_dir=self._exits_dir,
            bundle=Bundle(f"{self._run_dir}/bundles/{id}"),
            cgroup=cgroup,
            cgroup_path=cgroup_path,
            process=ProcessConfig(),
            mount=None,
            own_pid_namespace=False,  # not known any more: what is left in the cgroup is killed
            oom=OomWatch(cgroup, self._oom_ears, limited=memory_limited),
            segments=segments,
            lease=lease,
            upper=upper,
            no_checkpoints=self._no_checkpoints,
            start_slot=self._slots.slot,
            queue_removal=self._queue_removal,
            reserve=self._reserve,
        )
        system.goes_on = True
        self._systems[id] = system
        return system

    # ---- removal, off everybody's way ----

    def _queue_removal(self, system: OciSystem) -> None:
        self._start_removal(system, self._remove_behind(system))

    def _start_removal(self, system: OciSystem, removing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(removing, name=f"remove {system.id}")
        self._removals[system.id] = task
        task.add_done_callback(lambda _: self._forget(system, task))

    def _forget(self, system: OciSystem, task: asyncio.Task[None]) -> None:
        if self._removals.get(system.id) is task:
            del self._removals[system.id]
        if self._systems.get(system.id) is system:
            del self._systems[system.id]

    async def _remove_behind(self, system: OciSystem) -> None:
        await asyncio.sleep(_REMOVAL_AFTER_S)
        await self._remove(system)

    async def _remove(self, system: OciSystem) -> None:
        await system.saving.idle.wait()
        try:
            await system.undone()
            if system.mount is not None and system.init_job is not None:
                # Not found: it was acknowledged, and nobody else holds the mount any more.
                with contextlib.suppress(NotFound, KeeperLost):
                    await self.keeper.close_held(system.init_job, ["rootfs"])
            left = await in_thread(self._take_away, system)
            if left:
                log.info("container %s: left to `%s delete`: %s", system.id, self.name, ", ".join(left))
                await in_thread(os.makedirs, system.bundle.path, exist_ok=True)
                await system.command("delete", "--force", system.id)
                left = await in_thread(self._take_away, system)
            if not left:
                self._unremoved.pop(system.id, None)
                return
            log.error("container %s: can't be removed: %s", system.id, ", ".join(left))
        except (LightermanError, OSError) as failed:
            log.error("container %s: its removal failed: %s", system.id, failed)
        self._unremoved[system.id] = self, system

    async def _remove_again(self, id: str) -> None:
        runtime, system = self._unremoved[id]
        runtime._start_removal(system, runtime._remove(system))
        await runtime._removed(id)

    def _take_away(self, system: OciSystem) -> Sequence[str]:
        mount, system.mount = system.mount, None
        if mount is not None:
            # The last reference: closing it may sync a whole file system.
            os.close(mount)
        state = f"{self._call.root}/{system.id}"
        left = self._reserve.use(lambda: remove_natively(state, system.cgroup, system.bundle))
        if not left:
            # In the same turn of a thread: one more for each container costs a tenth of its run.
            system.take_files_back()
        return left

    async def remove_remains(self, id: str) -> None:
        """Take away what a run has left of which only the id is known any more; nothing of it may run."""
        check_id(id)
        await self._removed(id)
        system = self._systems.get(id) or self._opened(id, None, None)
        # Who creates one with this id waits for it, as for any other removal.
        self._start_removal(system, self._remove(system))
        await self._removed(id)

    async def _removed(self, id: str) -> None:
        """Return when nothing of a container is being removed."""
        while (removal := self._removals.get(id)) is not None:
            await asyncio.wait((removal,))

    def pids(self) -> set[int]:
        """Of every process of a container that is known here."""
        return {pid for system in self._systems.values() for pid in system.known_pids()}

    def is_open(self, id: str) -> bool:
        """Whether it was created or opened here, and what it has left was not taken away yet."""
        return id in self._systems

    async def remove_remains_of_ended(self, id: str) -> None:
        """`remove_remains`, unless it runs: then they are its own."""
        await self._removed(id)
        if id not in self._systems and id not in self._creating:
            await self.remove_remains(id)

    async def close(self) -> None:
        """Return when every removal is done, or limits.CLOSE_S is over; of what goes on no descriptor is kept."""
        for runtime, system in tuple(self._unremoved.values()):
            # An id of somebody's own may be another root's by now.
            if runtime is self and _OF_AN_ENGINE.fullmatch(system.id):
                self._start_removal(system, self._remove(system))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limits.CLOSE_S
        while self._removals and loop.time() < deadline:
            await asyncio.wait(tuple(self._removals.values()), timeout=max(0.0, deadline - loop.time()))
        for id, removal in self._removals.items():
            log.error("container %s: its removal takes longer than %g s: the next engine goes on", id, limits.CLOSE_S)
            removal.cancel()
        for system in tuple(self._systems.values()):
            await system.let_go()
        self._systems.clear()
        self._oom_ears.close()
        if self._owns_reserve:
            self._reserve.close()


_DOCUMENT = msgspec.json.Decoder(_Document)  # at import, see `recovery`


def _read_document(encoded: bytes) -> _Document:
    try:
        return _DOCUMENT.decode(encoded)
    except (msgspec.DecodeError, msgspec.ValidationError) as wrong:
        raise InvalidSpec(f"the OCI document can't be read: {wrong}") from wrong


def _with_cgroup_path(spec: Spec, path: str) -> Spec:
    document = msgspec.json.decode(spec.document)
    document.setdefault("linux", {})["cgroupsPath"] = path
    if isinstance(spec.rootfs, Overlay):
        document["root"] = {**document.get("root", {}), "path": "rootfs"}
    return msgspec.structs.replace(spec, document=msgspec.json.encode(document))
