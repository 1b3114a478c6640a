"""What a root's store says, against what its keeper and the kernel say: for `lighterman doctor`. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from lighterman.errors import KeeperLost
from lighterman.keeper.client import JobState, KeeperClient
from lighterman.lifecycle.status import Status
from lighterman.record import Record
from lighterman.roots import StateRoot
from lighterman.runtimes.oci.calls import decode_meta
from lighterman.runtimes.oci.cgroups import Cgroup, cgroup_host, group_of
from lighterman.store.sqlite import read_records
from lighterman.threads import in_thread

__all__ = ["Difference", "compare"]

_RUNS = (Status.RUNNING, Status.PAUSED)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the two sides say differently. The next engine of the root mends it."""

    container: str
    text: str


async def compare(root: StateRoot) -> list[Difference]:
    """Every difference; none is a good answer. The caller holds the root's lock, so that nothing moves meanwhile.

    Raises: StoreError.
    """
    records = [
        msgspec.json.decode(encoded, type=Record) for encoded in await in_thread(read_records, f"{root.state}/state.db")
    ]
    jobs = await _jobs(root)
    found = [*_of_records(records, jobs), *_of_jobs(records, jobs)]
    found += await in_thread(lambda: list(_of_directories(root, records)))
    return found


async def _jobs(root: StateRoot) -> dict[str, list[JobState]]:
    if not await in_thread(os.path.exists, f"{root.run}/keeper.sock"):
        return {}
    try:
        keeper = await KeeperClient.start_or_connect(root.run, root.state)
    except KeeperLost:
        return {}
    jobs: dict[str, list[JobState]] = {}
    try:
        for job in await keeper.list_jobs():
            meta = decode_meta(job.meta)
            if meta is not None and meta.kind == "init":
                jobs.setdefault(meta.id, []).append(job)
    finally:
        await keeper.close()
    return jobs


def _of_records(records: Iterable[Record], jobs: dict[str, list[JobState]]) -> Iterable[Difference]:
    for record in records:
        alive = [job for job in jobs.get(record.id, ()) if job.exit is None]
        if record.status is Status.REMOVING:
            yield Difference(container=record.id, text=f"{record.name} is half removed")
        elif record.starting:
            yield Difference(container=record.id, text=f"{record.name} was being started when its engine ended")
        elif record.status in _RUNS and not alive:
            told = "its end is not in the store yet" if jobs.get(record.id) else "no keeper knows of it"
            yield Difference(container=record.id, text=f"{record.name} is {record.status} in the store; {told}")
        elif record.status not in _RUNS and alive:
            yield Difference(
                container=record.id,
                text=f"{record.name} is {record.status} in the store; process {alive[0].pid} of it runs",
            )


def _of_jobs(records: Iterable[Record], jobs: dict[str, list[JobState]]) -> Iterable[Difference]:
    for id in jobs.keys() - {record.id for record in records}:
        yield Difference(container=id, text="the keeper has it, the store does not")


def _of_directories(root: StateRoot, records: Iterable[Record]) -> Iterable[Difference]:
    known = {record.id: record for record in records}
    for directory, what in ((f"{root.state}/containers", "files"), (f"{root.run}/bundles", "a bundle")):
        if not os.path.isdir(directory):
            continue
        for id in os.listdir(directory):
            record = known.get(id)
            if record is None or (what == "a bundle" and record.status not in (*_RUNS, Status.RESTARTING)):
                yield Difference(container=id, text=f"{what} of it are left in {directory}")
    host = cgroup_host()
    for record in known.values():
        if record.status not in _RUNS and Cgroup(group_of(root.run, record.id), host).exists():
            yield Difference(container=record.id, text=f"{record.name} is {record.status}; its cgroup is left")
