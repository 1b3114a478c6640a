"""Copying a writable layer, by a program that the keeper starts: it takes as long as the disk does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import uuid

from lighterman import limits
from lighterman.ends import to_its_end
from lighterman.errors import KeeperLost, LightermanError, OperationTimeout, RuntimeFailed, StoreError
from lighterman.keeper.client import Job, KeeperClient, Spawned
from lighterman.threads import in_thread
from lighterman.trees import remove_tree

__all__ = ["copy_tree", "is_copy", "program", "remove"]

_COPY = "copy-"  # how the keys of these jobs go on after their container's id


def program() -> str:
    """Its path."""
    return shutil.which("cp", path=os.defpath) or "/bin/cp"


def is_copy(job: str) -> bool:
    """Whether the keeper's job of that key copies something: nobody goes on with one whose engine is gone."""
    return job.partition(":")[2].startswith(_COPY)


async def copy_tree(keeper: KeeperClient, source: str, target: str, container: str) -> None:
    """With everything that is a part of an overlay's layer: owners, times, links, devices, extended attributes.

    Cancelled: it is ended before the cancellation is raised; until then nobody else may write, or remove, there.
    Raises: StoreError; then nothing is left of it.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    job = Job(
        job=f"{container}:{_COPY}{uuid.uuid4().hex[:12]}",
        argv=("cp", "--archive", "--reflink=auto", "--no-target-directory", "--", source, target),
        executable=program(),
        env={"PATH": os.defpath},
        stdio=(null, null, null),
        pid_file=f"{target}.pid",  # never there: the keeper lists, and aborts, only jobs that could leave a process
        timeout_s=limits.CHECKPOINT_S,
    )
    copying = asyncio.ensure_future(keeper.spawn(job))
    try:
        copied = await asyncio.shield(copying)
    except asyncio.CancelledError:
        await to_its_end(_end(keeper, job.job, copying, target))
        raise
    except RuntimeFailed as failed:
        raise StoreError(f"{source} can't be copied: {failed}") from failed
    finally:
        os.close(null)
    if copied.status != 0:
        await in_thread(remove, target)
        raise StoreError(f"{source} can't be copied to {target}: is the disk full?")


async def _end(keeper: KeeperClient, job: str, copying: asyncio.Future[Spawned], target: str) -> None:
    with contextlib.suppress(OperationTimeout, KeeperLost):  # asked, it does it as soon as it can
        await keeper.abort(job)
    with contextlib.suppress(LightermanError):  # it has failed by itself
        await copying
    await in_thread(remove, target)


def remove(path: str) -> None:
    """A tree that may be there. Blocking. Raises: StoreError."""
    try:
        with contextlib.suppress(FileNotFoundError):
            remove_tree(path)
    except OSError as failed:
        raise StoreError(f"{path} can't be removed: {failed.strerror}") from failed
