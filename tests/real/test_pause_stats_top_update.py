"""What can be asked of a running container."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from real_support import cgroup_of, process_is_there

from lighterman import (
    Engine,
    InvalidSpec,
    InvalidState,
    LightermanError,
    NotSupported,
    ProcessSummary,
    Resources,
    RuntimeFailed,
    StoreError,
)
from lighterman.entry import Entry
from lighterman.lifecycle.status import Status
from lighterman.runtimes.oci.system import OciSystem
from support import eventually

pytestmark = pytest.mark.real

COUNT = "i=0; while :; do i=$((i+1)); echo $i; done"


async def test_pause_nothing_runs_and_resume_goes_on(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", COUNT]) as box:
        await box.stdout.readline()
        await box.pause()
        assert str(box.status) == "paused"
        frozen = (await box.stats()).cpu_ns
        assert frozen is not None
        # Much that could have run meanwhile has not.
        for _ in range(20):
            assert [one.pid for one in await box.top()] == [box.pid]
        assert (await box.stats()).cpu_ns == frozen
        await box.resume()
        assert str(box.status) == "running"

        async def runs() -> bool:
            return ((await box.stats()).cpu_ns or 0) > frozen

        await eventually(runs)


async def test_pause_twice_and_resume_twice_are_invalid(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        with pytest.raises(InvalidState):
            await box.resume()
        await box.pause()
        with pytest.raises(InvalidState):
            await box.pause()
        await box.resume()
        with pytest.raises(InvalidState):
            await box.resume()
        assert box.status is Status.RUNNING


async def test_stats_count_what_was_used(engine: Engine) -> None:
    script = "head -c 20000000 /dev/zero > /dev/shm/x; for i in $(seq 20000); do :; done; sleep 1000 & echo ready; wait"
    async with engine.container("busybox", ["sh", "-c", script], memory="128M", pids_limit=50) as box:
        await box.stdout.readline()
        now = await box.stats()
        assert (now.cpu_ns or 0) > 1_000_000
        assert (now.memory_bytes or 0) > 20_000_000
        assert (now.memory_peak_bytes or 0) >= 20_000_000
        assert (now.memory_limit_bytes, now.pids_limit, now.oom_kills) == (128 << 20, 50, 0)
        assert now.pids == 2
        assert abs(now.read_at - time.time()) < 60


@pytest.mark.needs("v2")
async def test_stats_tell_of_pressure_and_of_what_was_written(engine: Engine, tmp_path: Path) -> None:
    script = (
        "dd if=/dev/zero of=/data/x bs=4096 count=500 conv=fsync 2>/dev/null; echo ready; "
        "for i in 1 2 3 4; do (while :; do :; done) & done; wait"
    )
    # A private engine's own layers are never synced.
    options = {"memory": "64M", "cpus": 0.5, "mounts": [f"{tmp_path}:/data"]}
    async with engine.container("busybox", ["sh", "-c", script], **options) as box:  # type: ignore[arg-type]
        await box.stdout.readline()

        async def waited() -> bool:
            now = await box.stats()
            return now.cpu_pressure is not None and now.cpu_pressure.some_total_ns > 0

        # Four that count, with half a CPU between them.
        await eventually(waited)
        now = await box.stats()
        assert (now.write_bytes or 0) >= 2_000_000
        assert now.memory_limit_events is not None
        assert (now.oom_events, now.oom_kills) == (0, 0)
        for pressure in (now.cpu_pressure, now.memory_pressure, now.io_pressure):
            assert pressure is not None
            assert 0 <= pressure.some_avg10 <= 100
            assert (pressure.full_total_ns or 0) <= pressure.some_total_ns


async def test_top_lists_all_processes_execs_too(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "sleep 1234 & echo ready; wait"]) as box:
        await box.stdout.readline()
        process = await box.start_exec(["sleep", "4321"])
        expected = {("sh", "-c", "sleep 1234 & echo ready; wait"), ("sleep", "1234"), ("sleep", "4321")}

        async def listed() -> dict[tuple[str, ...], ProcessSummary]:
            # A fork, and a runtime's own process, become the program a moment later.
            found = {one.command: one for one in await box.top()}
            return found if set(found) == expected else {}

        found = await eventually(listed)
        assert found["sleep", "4321"].pid == process.pid
        init = found["sh", "-c", "sleep 1234 & echo ready; wait"]
        assert (init.pid, init.image_name) == (box.pid, "sh")
        assert init.resident_bytes > 0
        assert process_is_there(init.pid)


async def test_update_memory_is_in_force_at_once(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], memory="64M") as box:
        await box.update(Resources(memory_bytes=96 << 20))
        assert (await box.stats()).memory_limit_bytes == 96 << 20
        await box.update(Resources(memory_bytes=48 << 20))
        assert (await box.stats()).memory_limit_bytes == 48 << 20


async def test_update_one_limit_leaves_the_others(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], memory="64M", pids_limit=20, cpu_shares=300) as box:
        await box.update(Resources(cpus=0.5))
        now = await box.stats()
        assert (now.memory_limit_bytes, now.pids_limit) == (64 << 20, 20)
        directory = cgroup_of(box.pid, "cpu")
        if "cpu.max" in os.listdir(directory):
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota, period = (directory / "cpu.cfs_quota_us").read_text(), (directory / "cpu.cfs_period_us").read_text()
            assert (directory / "cpu.shares").read_text() == "300\n"
        assert int(quota) / int(period) == 0.5


async def test_update_pids_limit_is_in_force(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        await box.update(Resources(pids_limit=33))
        assert (await box.stats()).pids_limit == 33


async def test_update_what_can_not_be_is_an_error_and_changes_nothing(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], memory="64M") as box:
        for wrong in (Resources(memory_bytes=1), Resources(cpus=1e9), Resources(cpuset_cpus="4095")):
            with pytest.raises(LightermanError):
                await box.update(wrong)
        assert (await box.stats()).memory_limit_bytes == 64 << 20
        assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"


async def test_update_of_a_paused_container_works(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        await box.pause()
        await box.update(Resources(memory_bytes=96 << 20))
        assert (await box.stats()).memory_limit_bytes == 96 << 20
        assert box.status is Status.PAUSED


async def test_update_holds_for_the_next_run(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], memory="64M")
    await box.start()
    await box.update(Resources(memory_bytes=96 << 20))
    await box.restart(grace_s=0)
    # Docker's `update` is kept over a restart.
    assert (await box.stats()).memory_limit_bytes == 96 << 20
    await box.remove(force=True)


MIB = 1 << 20


async def test_update_that_does_not_fit_what_stays_changes_nothing(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], memory="64M", memory_reservation="32M")
    await box.start()
    with pytest.raises(InvalidSpec, match="reservation"):
        await box.update(Resources(memory_bytes=16 * MIB))
    assert (await box.stats()).memory_limit_bytes == 64 * MIB
    await box.restart(grace_s=0)
    assert (await box.stats()).memory_limit_bytes == 64 * MIB
    await box.remove(force=True)


async def test_update_zero_leaves_a_limit_as_it_is(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], memory="64M", pids_limit=20)
    await box.start()
    await box.update(Resources(memory_bytes=0, pids_limit=0, cpuset_cpus=""))
    for _ in range(2):
        now = await box.stats()
        assert (now.memory_limit_bytes, now.pids_limit) == (64 * MIB, 20)
        await box.restart(grace_s=0)
    await box.remove(force=True)


def swap_limit(pid: int) -> int:
    """Of memory and swap together, as docker counts."""
    directory = cgroup_of(pid, "memory")
    if (directory / "memory.swap.max").exists():
        return sum(int((directory / name).read_text()) for name in ("memory.max", "memory.swap.max"))
    return int((directory / "memory.memsw.limit_in_bytes").read_text())


async def test_update_memory_keeps_its_sum_with_swap(engine: Engine) -> None:
    try:
        box = await engine.create("busybox", ["sleep", "1000"], memory="64M", memory_swap="128M")
    except NotSupported:
        pytest.skip("this kernel does not count swap")
    await box.start()
    with pytest.raises(InvalidSpec, match="swap"):
        await box.update(Resources(memory_bytes=256 * MIB))
    assert ((await box.stats()).memory_limit_bytes, swap_limit(box.pid)) == (64 * MIB, 128 * MIB)
    await box.update(Resources(memory_bytes=32 * MIB))
    assert ((await box.stats()).memory_limit_bytes, swap_limit(box.pid)) == (32 * MIB, 128 * MIB)
    await box.restart(grace_s=0)
    assert ((await box.stats()).memory_limit_bytes, swap_limit(box.pid)) == (32 * MIB, 128 * MIB)
    await box.update(Resources(memory_bytes=256 * MIB, memory_swap_bytes=512 * MIB))
    assert ((await box.stats()).memory_limit_bytes, swap_limit(box.pid)) == (256 * MIB, 512 * MIB)
    await box.remove(force=True)


async def test_update_that_can_not_be_written_down_is_not_in_force(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], memory="64M")
    await box.start()

    async def full(entry: Entry) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(engine.inside.books, "save", full)
        with pytest.raises(StoreError):
            await box.update(Resources(memory_bytes=96 * MIB))
    assert (await box.stats()).memory_limit_bytes == 64 * MIB
    assert box.spec.resources.memory_bytes == 64 * MIB
    await box.restart(grace_s=0)
    assert (await box.stats()).memory_limit_bytes == 64 * MIB
    await box.remove(force=True)


async def test_update_that_its_runtime_refuses_is_undone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], memory="64M")
    await box.start()
    command, told = OciSystem.command, []

    async def half(self: OciSystem, operation: str, *words: str, **more: Any) -> None:
        await command(self, operation, *words, **more)
        told.append(operation)
        if len(told) == 1:
            raise RuntimeFailed("the second limit was refused", runtime="any", operation=operation)

    monkeypatch.setattr(OciSystem, "command", half)
    with pytest.raises(RuntimeFailed, match="second"):
        await box.update(Resources(memory_bytes=96 * MIB, pids_limit=30))
    assert told == ["update", "update"]
    for _ in range(2):
        now = await box.stats()
        assert (now.memory_limit_bytes, now.pids_limit) == (64 * MIB, None)
        await box.restart(grace_s=0)
    await box.remove(force=True)
