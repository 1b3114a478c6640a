"""A program with small limits (set in its environment) that meets what does not end, and prints what verbs said.

Arguments: `frozen` (an exec that can't die) or `unkillable` (a container of which SIGKILL is lost).
"""

from __future__ import annotations

import asyncio
import sys
import time
from unittest import mock

from lighterman import Engine, LightermanError
from lighterman.runtimes.oci import system
from lighterman.runtimes.oci.process import OciProcess
from lighterman.runtimes.oci.system import OciSystem


async def frozen(engine: Engine) -> None:
    async with (
        engine.container("busybox", ["sleep", "1000"]) as box,
        engine.container("busybox", ["sleep", "1000"]) as other,
    ):
        exec = asyncio.create_task(box.exec(["sleep", "1000"], timeout_s=1))
        while not [one for one in await box.execs() if one.pid]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await box.pause()
        try:
            await exec
        except LightermanError as failed:
            print(type(failed).__name__, failed, flush=True)
        print("other", (await other.exec(["echo", "fine"])).stdout.decode(), end="", flush=True)
        await box.resume()


async def unkillable(engine: Engine) -> None:
    """What an uninterruptible sleep looks like: SIGKILL is sent, and changes nothing."""

    async def kill_cgroup(_self: OciSystem) -> None:
        return

    async def kill(_self: OciProcess, _signal: int) -> None:
        return

    async with engine.container("busybox", ["sleep", "1000"]) as other:
        box = await engine.create("busybox", ["sleep", "1000"], name="stuck")
        await box.start()
        patches = (
            mock.patch.object(OciSystem, "_kill_cgroup", kill_cgroup),
            mock.patch.object(OciProcess, "kill", kill),
            mock.patch.object(system, "uninterruptible", lambda pid: "nfs_wait_on_request" if pid == box.pid else None),
        )
        for patch in patches:
            patch.start()
        for verb in (box.stop(grace_s=0), box.remove(force=True)):
            begun = time.monotonic()
            stuck = asyncio.create_task(verb)
            # Nobody else waits for it.
            assert (await other.exec(["true"])).ok
            try:
                await stuck
            except LightermanError as failed:
                print(type(failed).__name__, failed.container == box.id, box.pid, failed, flush=True)
            print("took", time.monotonic() - begun, flush=True)
        mock.patch.stopall()


async def main() -> None:
    async with Engine() as engine:
        await {"frozen": frozen, "unkillable": unkillable}[sys.argv[1]](engine)


asyncio.run(main())
