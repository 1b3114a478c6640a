"""Ending what runs in a root's name: its keeper's jobs, runtime calls nobody waits for, private roots of the dead."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Collection

from lighterman import limits
from lighterman.errors import LightermanError, LimitExceeded, OperationTimeout
from lighterman.keeper.cgroup import is_a_container
from lighterman.keeper.client import JobState, KeeperClient
from lighterman.roots import StateRoot, abandoned
from lighterman.runtimes.oci.cgroups import Cgroup, CgroupHost, cgroup_host, group_of
from lighterman.runtimes.oci.orphans import look_for_orphans
from lighterman.threads import in_thread

__all__ = ["end_job", "end_orphans", "sweep"]

log = logging.getLogger(__name__)

_SWEEP_S = 1.0  # for what killed engines left: what does not end by then is their keepers', and delays no start
_PAUSE_S = 0.005  # between looks whether it has ended


async def end_orphans(
    root: StateRoot, keeper: KeeperClient, known: Collection[int], *, settled: bool = False
) -> set[str]:
    """Returns: the containers that they were for."""
    if not await in_thread(os.path.exists, f"{root.run}/runtime"):
        return set()
    ended = await look_for_orphans(f"{root.run}/runtime", keeper.pid, settled=settled, known=known)
    if ended:
        log.warning("ended %d runtime calls that nobody waits for any more", len(ended))
    return ended


async def sweep() -> None:
    """End and remove what private engines left that were killed."""
    for root in await in_thread(abandoned):
        try:
            if await in_thread(os.path.exists, f"{root.run}/keeper.sock"):
                await _end_jobs(root)
            await in_thread(_end_containers, root)
            await in_thread(root.remove)
            log.info("removed what a killed engine left in %s", root.state)
        except (LightermanError, OSError) as failed:
            log.warning("what a killed engine left in %s can't be removed: %s", root.state, failed)
        finally:
            root.release()


async def _end_jobs(root: StateRoot) -> None:
    keeper = await KeeperClient.start_or_connect(root.run, root.state)
    try:
        cgroups = cgroup_host()
        jobs = await keeper.list_jobs()
        await end_orphans(root, keeper, {job.pid for job in jobs if job.pid is not None})
        try:
            async with asyncio.timeout(_SWEEP_S):
                for job in jobs:
                    await end_job(keeper, job, cgroups)
        except TimeoutError as late:
            raise OperationTimeout("what runs there does not end yet: its keeper goes on with that") from late
        await keeper.shutdown(force=True)
    finally:
        await keeper.close()


def _end_containers(root: StateRoot) -> None:
    """Those of a keeper that was killed as well, which no other one knows of. Blocking. Raises: OperationTimeout."""
    runtimes = [f"{root.run}/runtime/{name}" for name in _in(f"{root.run}/runtime")]
    ids = {id for directory in (f"{root.run}/bundles", f"{root.state}/containers", *runtimes) for id in _in(directory)}
    if not ids:
        return
    cgroups = cgroup_host()
    left = [Cgroup(group_of(root.run, id), cgroups) for id in ids]
    deadline = time.monotonic() + _SWEEP_S
    while left := [group for group in left if not (group.kill(wait_s=0) and group.remove())]:
        if time.monotonic() > deadline:
            raise OperationTimeout("what runs there does not end yet: the next engine tries again")
        time.sleep(_PAUSE_S)


def _in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


async def end_job(keeper: KeeperClient, job: JobState, cgroups: CgroupHost) -> None:
    """Kill all of it, wait for its end, acknowledge that, and remove its cgroup if that is empty then.

    Raises: LimitExceeded if it does not end; then the keeper has it still. KeeperLost.
    """
    path = str(job.recipe.get("cgroup", ""))
    cgroup = Cgroup(path, cgroups) if is_a_container(path) else None
    if cgroup is not None and job.exit is None:
        await in_thread(cgroup.kill)
    if job.exit is None and job.pid is not None:
        try:
            async with asyncio.timeout(limits.KILL_WAIT_S):
                await keeper.wait_exit(job.job)
        except TimeoutError as late:
            raise LimitExceeded(
                f"job {job.job} is unkillable: pid {job.pid} has not ended {limits.KILL_WAIT_S:g} s after SIGKILL",
                limit="KILL_WAIT_S",
                operation="terminate",
            ) from late
    await keeper.acknowledge(job.job)
    if cgroup is not None:
        await in_thread(cgroup.remove)
