"""Numbers: ten thousand short processes, ten thousand exits at once, pages of a long list, memory."""

from __future__ import annotations

import asyncio
import os

from keeper_support import EXIT_RUNTIME, Keepers, children, exit_code

from lighterman.keeper.client import KeeperClient
from support import eventually

AT_ONCE = 64


async def run_one(keepers: Keepers, keeper: KeeperClient, number: int) -> None:
    name = f"j{number}"
    pid_file = str(keepers.root / str(number % AT_ONCE))
    argv = (*EXIT_RUNTIME, pid_file, str(number % 251))
    spawned = await keeper.spawn(keepers.job(name, "", argv=argv, pid_file=pid_file))
    if spawned.pidfd is not None:
        os.close(spawned.pidfd)
    assert spawned.pid is not None
    assert exit_code((await keeper.wait_exit(name)).status) == number % 251
    await keeper.acknowledge(name)


async def test_ten_thousand_short_processes_leave_nothing(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    before = await keeper.stats()

    async def lane(first: int) -> None:
        for number in range(first, 10_000, AT_ONCE):
            await run_one(keepers, keeper, number)

    mine = len(os.listdir("/proc/self/fd"))
    await asyncio.gather(*(lane(first) for first in range(AT_ONCE)))
    after = await keeper.stats()
    assert (after.jobs, after.descriptors) == (0, before.descriptors)
    assert len(os.listdir("/proc/self/fd")) == mine
    await eventually(lambda: children(keeper.pid) == [])
    assert after.private_bytes - before.private_bytes < 2 * 1024 * 1024


# Leaves ten thousand processes that have ended already, the one of the pid file in the middle.
CROWD_RUNTIME = (
    "perl",
    "-e",
    "for $n (1..10000) { defined($pid = fork) or die; if (!$pid) { exit($n == 5000 ? 9 : 1) }"
    " if ($n == 5000) { open F, '>', $ARGV[0] or die; print F $pid; close F } }",
)


async def test_ten_thousand_exits_at_once(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    gate_r, gate_w = os.pipe()
    stdio = (gate_r, keepers.null, keepers.null)
    await keepers.spawn(keeper, keepers.job("other", "read line; exit 4", stdio=stdio))
    pid_file = str(keepers.root / "crowd.pid")
    crowd = keepers.job("crowd", "", argv=(*CROWD_RUNTIME, pid_file), pid_file=pid_file)
    spawned = await keepers.spawn(keeper, crowd)
    os.close(gate_w)
    os.close(gate_r)
    assert exit_code(spawned.status) == 0
    assert exit_code((await keeper.wait_exit("crowd")).status) == 9
    assert exit_code((await keeper.wait_exit("other")).status) == 4
    await eventually(lambda: children(keeper.pid) == [])


async def test_a_thousand_jobs_end_at_once(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    gate_r, gate_w = os.pipe()
    jobs = 1000
    room = asyncio.Semaphore(16)

    async def start(number: int) -> None:
        name = f"j{number}"
        # Each reads until the gate's last writer goes.
        job = keepers.job(
            name,
            "read line; exit 5",
            stdio=(gate_r, keepers.null, keepers.null),
            hold={"stdin": keepers.null, "stdout": keepers.null, "stderr": keepers.null},
            recipe={"cgroups": [f"/sys/fs/cgroup/{hierarchy}/lighterman/{name}" for hierarchy in ("a", "b", "c")]},
            meta=b"m" * 200,
        )
        async with room:
            spawned = await keeper.spawn(job)
        assert spawned.pidfd is not None
        os.close(spawned.pidfd)

    await asyncio.gather(*(start(number) for number in range(jobs)))
    stats = await keeper.stats()
    assert stats.jobs == jobs
    assert stats.rss_bytes <= 14 * 1024 * 1024
    assert stats.private_bytes <= 6 * 1024 * 1024
    assert [job.job for job in await keeper.list_jobs()] != []
    assert len(await keeper.list_jobs()) == jobs
    os.close(gate_w)
    os.close(gate_r)
    exits = await asyncio.gather(*(keeper.wait_exit(f"j{number}") for number in range(jobs)))
    assert {exit_code(exit.status) for exit in exits} == {5}
    for number in range(jobs):
        await keeper.acknowledge(f"j{number}")
    assert await keeper.list_jobs() == []
    assert children(keeper.pid) == []
