"""What a root's store says, against what its keeper and the kernel say: for `lighterman doctor`. Changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import msgspec

from lighterman.entry import PROBE
from lighterman.errors import KeeperLost, LightermanError
from lighterman.keeper import scope
from lighterman.keeper.client import JobState, KeeperClient
from lighterman.lifecycle.status import Status
from lighterman.linux_host import LinuxHost
from lighterman.record import Record
from lighterman.recovery import ENDS_WITH_ENGINE
from lighterman.roots import StateRoot
from lighterman.runtimes.oci.adoption import find_evidence
from lighterman.runtimes.oci.calls import JobMeta, decode_meta
from lighterman.runtimes.oci.cgroups import PARENT, Cgroup, CgroupHost, cgroup_host, group_of
from lighterman.runtimes.oci.probe import KNOWN as RUNTIMES
from lighterman.runtimes.oci.processes import PidRef, family_of, read_start_time
from lighterman.store.outside import Outside, look_into
from lighterman.threads import in_thread

__all__ = ["Difference", "compare", "remove_cgroups"]

_RUNS = (Status.RUNNING, Status.PAUSED)
_RECORD = msgspec.json.Decoder(Record)  # at import, see `recovery`


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the sides say differently.

    Attributes:
        container: its id. about: `row`, `status`, `keeper`, `exec`, `lease`, `files`, `bundle`, `runtime` or `cgroup`.
    """

    container: str
    about: str
    text: str


class _Kept(msgspec.Struct, kw_only=True):
    """What the keeper has. Attributes: jobs: by container. unleased: containers of whose lease it does not know."""

    jobs: dict[str, list[tuple[JobState, JobMeta]]] = {}
    unleased: set[str] = set()


async def compare(root: StateRoot) -> list[Difference]:
    """Every difference; none is a good answer. The caller holds the root's lock, so that nothing moves meanwhile.

    Raises: StoreError.
    """
    store = await in_thread(look_into, f"{root.state}/state.db")
    records, unreadable = _decoded(store, f"{root.state}/state.db")
    kept = await _kept(root, records)
    return [*unreadable, *await in_thread(lambda: list(_Comparison(root, store, records, kept).differences()))]


def remove_cgroups(root: StateRoot, differences: Sequence[Difference]) -> None:
    """End and take away those that were found left over: no engine knows of them. Blocking."""
    host = cgroup_host()
    for id in {difference.container for difference in differences if difference.about == "cgroup"}:
        cgroup = Cgroup(group_of(root.run, id), host)
        cgroup.kill()
        cgroup.remove()


def _decoded(store: Outside, path: str) -> tuple[list[Record], list[Difference]]:
    records, unreadable = [], []
    for id, encoded in store.records:
        try:
            records.append(_RECORD.decode(encoded))
        except msgspec.MsgspecError as wrong:
            text = (
                f"its row can't be read ({wrong}): put an earlier {path} back, or give the container up: "
                f"sqlite3 {path} \"DELETE FROM containers WHERE id = '{id}'\""
            )
            unreadable.append(Difference(container=id, about="row", text=text))
    return records, unreadable


async def _kept(root: StateRoot, records: Sequence[Record]) -> _Kept:
    """By looking on: no keeper is started, none is made another build, and no engine is sent away."""
    kept = _Kept(unleased={record.id for record in records if _has_lease_of_its_own(record)})
    keeper = await KeeperClient.observe(root.run)
    if keeper is None:
        return kept
    try:
        for job in await keeper.list_jobs():
            meta = decode_meta(job.meta)
            if meta is not None:
                kept.jobs.setdefault(meta.id, []).append((job, meta))
        for record in records:
            if record.id in kept.unleased and await _holds(keeper, record):
                kept.unleased.discard(record.id)
    except KeeperLost:
        return await _kept(root, records)  # it left for idleness
    finally:
        await keeper.close()
    return kept


def _has_lease_of_its_own(record: Record) -> bool:
    return record.lease in ("owner", "connection") or record.ttl_s is not None


async def _holds(keeper: KeeperClient, record: Record) -> bool:
    try:
        lease = await keeper.lease_of(f"container:{record.id}")
    except KeeperLost:
        raise
    except LightermanError:
        return True  # an earlier build tells that to its engine only
    if lease.connection is not None:
        os.close(lease.connection)
    return lease.holds or lease.over


class _Comparison:
    """Blocking: it reads /proc, the cgroups and the root's directories."""

    def __init__(self, root: StateRoot, store: Outside, records: Sequence[Record], kept: _Kept) -> None:
        self._root = root
        self._store = store
        self._records = {record.id: record for record in records}
        self._ids = {id for id, _ in store.records}
        self._kept = kept
        self._cgroups: CgroupHost = cgroup_host()

    def differences(self) -> Iterator[Difference]:
        for record in self._records.values():
            process = self._process_of(record)
            for about, text in self._of_record(record, process):
                yield Difference(container=record.id, about=about, text=f"{record.name} {text}")
        for id in sorted(self._kept.jobs.keys() - self._ids):
            jobs = [job for job, _ in self._kept.jobs[id]]
            pids = ", ".join(str(job.pid) for job in jobs if job.pid is not None and job.exit is None)
            running = f", and process {pids} of it runs" if pids else ""
            yield Difference(container=id, about="keeper", text=f"the keeper has it, the store does not{running}")
        yield from self._of_directories()
        yield from self._of_cgroups()

    # ---- one container ----

    def _of_record(self, record: Record, process: PidRef | None) -> Iterator[tuple[str, str]]:
        if record.status is Status.REMOVING:
            yield "status", "is half removed"
            return
        if record.lease in ENDS_WITH_ENGINE:
            yield "lease", "belongs to an engine that has ended"
        elif record.lease == "owner" and read_start_time(record.owner) != record.owner_started:
            yield "lease", f"belongs to process {record.owner}, which has ended"
        if record.starting and record.status is not Status.RESTARTING:
            yield "status", "was being started when its engine ended"
        elif record.status not in _RUNS:
            yield from self._of_stopped(record, process)
        elif process is None:
            yield "status", f"is {record.status} in the store; {self._why_none(record)}"
        else:
            yield from self._of_running(record, process)

    def _of_running(self, record: Record, process: PidRef) -> Iterator[tuple[str, str]]:
        if process.pid != record.pid:
            yield "status", f"is process {record.pid} in the store; it is process {process.pid}"
        frozen = Cgroup(group_of(self._root.run, record.id), self._cgroups).is_frozen()
        if frozen is not (record.status is Status.PAUSED):
            yield "status", f"is {record.status} in the store; its processes are {'' if frozen else 'not '}frozen"
        for job, meta in self._jobs_of(record, "exec"):
            if job.exit is not None and not meta.name.startswith(PROBE):
                yield "exec", f"has no end of exec {meta.name} in the store yet"
        if record.until is not None and (over_s := time.clock_gettime(time.CLOCK_BOOTTIME) - record.until) > 0:
            yield "lease", f"runs, and its time has been over for {over_s:.0f} s"
        elif record.id in self._kept.unleased:
            yield "lease", "has a lease that no keeper watches"

    def _of_stopped(self, record: Record, process: PidRef | None) -> Iterator[tuple[str, str]]:
        if process is not None:
            yield "status", f"is {record.status} in the store; process {process.pid} of it runs"
        elif self._jobs_of(record, "init"):
            yield "keeper", f"is {record.status} in the store; the keeper still has an end of it to tell"
        for job, meta in self._jobs_of(record, "exec"):
            more = (
                f"process {job.pid} of it, exec {meta.name}, runs" if job.exit is None else f"exec {meta.name} is kept"
            )
            yield "exec", f"is {record.status} in the store; {more}"

    def _why_none(self, record: Record) -> str:
        if self._store.boot_id not in (None, LinuxHost.boot_id()):
            return "the host was started again since"
        jobs = self._jobs_of(record, "init")
        if any(job.exit is None and job.pid is not None for job, _ in jobs):
            return f"process {record.pid} is the keeper's, and the kernel does not know it"
        if jobs:
            return "its end is not in the store yet"
        return f"process {record.pid} has ended, and no keeper knows of it"

    def _process_of(self, record: Record) -> PidRef | None:
        """Its first process, if that lives, by the kernel: its number and when it was started."""
        for job, _ in reversed(self._jobs_of(record, "init")):
            if job.exit is None and job.pid is not None and job.start_time is not None:
                found = PidRef(job.pid, job.start_time)
                if _lives(found):
                    return found
        # Its keeper was lost: the runtime has written down which one it was.
        for name in (record.runtime,) if record.runtime else RUNTIMES:
            state = f"{self._root.run}/runtime/{name}/{record.id}"
            evidence = find_evidence(state, f"{self._root.state}/exits", record.id)
            if evidence is not None and _lives(found := PidRef(evidence.pid, evidence.start_time)):
                return found
        return None

    def _jobs_of(self, record: Record, kind: str) -> list[tuple[JobState, JobMeta]]:
        return [(job, meta) for job, meta in self._kept.jobs.get(record.id, ()) if meta.kind == kind]

    # ---- what is left of others ----

    def _of_directories(self) -> Iterator[Difference]:
        for id in _listed(f"{self._root.state}/containers"):
            if id not in self._ids:
                text = f"files of it are left in {self._root.state}/containers"
                yield Difference(container=id, about="files", text=text)
        for id in _listed(f"{self._root.run}/bundles"):
            if not self._may_run(id):
                text = f"a bundle of it is left in {self._root.run}/bundles"
                yield Difference(container=id, about="bundle", text=text)
        for name, directory in self._runtime_states().items():
            for id in _listed(directory):
                if not self._may_run(id):
                    text = f"a state of {name} is left in {directory}"
                    yield Difference(container=id, about="runtime", text=text)

    def _of_cgroups(self) -> Iterator[Difference]:
        # At the top are those of all roots: there the store, and what else lies about, must have known it once.
        places = (f"{self._root.state}/containers", f"{self._root.run}/bundles", *self._runtime_states().values())
        known = {*self._store.known, *self._kept.jobs, *(id for place in places for id in _listed(place))}
        own = Cgroup(f"{scope.path_of(self._root.run)}{PARENT}", self._cgroups).children()
        shared = Cgroup(PARENT, self._cgroups).children()
        for id in sorted({*own, *(known & set(shared))}):
            record = self._records.get(id)
            if record is None and id not in self._ids:
                yield Difference(container=id, about="cgroup", text="its cgroup is left; the store does not know it")
            elif record is not None and record.status not in (*_RUNS, Status.REMOVING) and not record.starting:
                text = f"{record.name} is {record.status}; its cgroup is left"
                yield Difference(container=id, about="cgroup", text=text)

    def _runtime_states(self) -> dict[str, str]:
        return {name: f"{self._root.run}/runtime/{name}" for name in RUNTIMES}

    def _may_run(self, id: str) -> bool:
        record = self._records.get(id)
        return id in self._ids and (record is None or record.status in (*_RUNS, Status.RESTARTING))


def _lives(process: PidRef) -> bool:
    return family_of(process.pid) is not None and read_start_time(process.pid) == process.start_time


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
