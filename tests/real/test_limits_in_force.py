"""Limits, read back from the cgroup and from inside, and what happens at them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from real_support import cgroup_of, host_controller, inside

from lighterman import BlkioLimit, Container, Engine, NotSupported, Resources, Ulimit

pytestmark = pytest.mark.real

MIB = 1 << 20


def read(directory: Path, *names: str) -> str:
    """The first of these files that there is: v1's name, then v2's."""
    for name in names:
        if (directory / name).exists():
            return (directory / name).read_text().strip()
    raise AssertionError(f"none of {names} in {directory}: {sorted(os.listdir(directory))}")


async def test_memory_limit_is_in_force(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], memory="64M") as box:
        assert read(cgroup_of(box.pid, "memory"), "memory.limit_in_bytes", "memory.max") == str(64 * MIB)
        assert (await box.stats()).memory_limit_bytes == 64 * MIB


async def test_memory_and_swap_limit_is_in_force_or_refused(engine: Engine) -> None:
    try:
        box = await engine.create("busybox", ["sleep", "1000"], memory="64M", memory_swap="96M")
    except NotSupported:
        # True on a kernel that does not account swap; then there must be no file for it.
        async with engine.container("busybox", ["sleep", "1000"]) as box:
            names = os.listdir(cgroup_of(box.pid, "memory"))
        assert not {"memory.memsw.limit_in_bytes", "memory.swap.max"} & set(names)
        return
    await box.start()
    directory = cgroup_of(box.pid, "memory")
    if (directory / "memory.swap.max").exists():
        assert read(directory, "memory.swap.max") == str(32 * MIB)
    else:
        assert read(directory, "memory.memsw.limit_in_bytes") == str(96 * MIB)
    await box.remove(force=True)


async def test_memory_reservation_is_in_force(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], memory_reservation="32M") as box:
        assert read(cgroup_of(box.pid, "memory"), "memory.soft_limit_in_bytes", "memory.low") == str(32 * MIB)


async def test_cpus_are_in_force(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], cpus=1.5) as box:
        directory = cgroup_of(box.pid, "cpu")
        if (directory / "cpu.max").exists():
            quota, period = map(int, read(directory, "cpu.max").split())
        else:
            quota, period = int(read(directory, "cpu.cfs_quota_us")), int(read(directory, "cpu.cfs_period_us"))
        assert quota / period == 1.5


async def test_cpus_loop_is_throttled(engine: Engine) -> None:
    done = await engine.run(
        "busybox", ["timeout", "1", "sh", "-c", "while :; do :; done"], cpus=0.1, init=True, timeout_s=60
    )
    assert done.exit.code is not None
    async with engine.container("busybox", ["sh", "-c", "while :; do :; done"], cpus=0.05) as box:
        from support import eventually

        async def throttled() -> bool:
            return ((await box.stats()).cpu_throttled_ns or 0) > 0

        await eventually(throttled)


async def test_cpu_shares_are_in_force(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], cpu_shares=512) as box:
        directory = cgroup_of(box.pid, "cpu")
        if (directory / "cpu.shares").exists():
            assert read(directory, "cpu.shares") == "512"
        else:
            assert int(read(directory, "cpu.weight")) in range(10, 100)


async def test_cpuset_is_in_force(engine: Engine) -> None:
    if host_controller("cpuset") is None:
        pytest.skip("no cpuset controller on this host")
    assert await inside(engine, "grep Cpus_allowed_list /proc/self/status", cpuset_cpus="0") == (
        "Cpus_allowed_list:\t0\n"
    )


async def test_pids_limit_is_in_force(engine: Engine) -> None:
    done = await engine.run(
        "busybox", ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo all"], pids_limit=6
    )
    assert done.exit.code != 0
    assert b"fork" in done.stderr
    assert b"all" not in done.stdout


async def test_pids_limit_unlimited_is_max(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], pids_limit=-1) as box:
        found = read(cgroup_of(box.pid, "pids"), "pids.max")
        # As many as there can be (PID_MAX_LIMIT), where a runtime takes no "max".
        assert found == "max" or int(found) >= 1 << 22


async def test_ulimits_are_in_force(engine: Engine) -> None:
    text = await inside(
        engine,
        "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hf",
        ulimits=[
            Ulimit(name="nofile", soft=100, hard=200),
            Ulimit(name="core", soft=0, hard=0),
            Ulimit(name="fsize", soft=1024 * 512, hard=2048 * 512),
        ],
    )
    assert text.split() == ["100", "200", "0", "2048"]


async def test_ulimits_hold_for_an_exec(engine: Engine) -> None:
    limit = Ulimit(name="nofile", soft=123, hard=234)
    async with engine.container("busybox", ["sleep", "1000"], ulimits=[limit]) as box:
        soft, hard = (await box.exec(["sh", "-c", "ulimit -Sn; ulimit -Hn"])).stdout.split()
        assert hard == b"234"
        # Go's runtime in runc 1.1 raises its own soft limit and can give that to an exec (opencontainers/runc#4195).
        assert soft == b"123" or ((await engine.version()).name == "runc" and soft == b"234")


def a_block_device() -> str:
    for entry in sorted(os.listdir("/sys/block")):
        path = f"/dev/{entry}"
        if os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode):
            return path
    pytest.skip("no block device on this host")


def must_have_rates(box: Container, device: str, read_bps: int) -> None:
    """That one, and 77 writes a second."""
    number = os.stat(device).st_rdev
    name = f"{os.major(number)}:{os.minor(number)}"
    directory = cgroup_of(box.pid, "blkio")
    if (directory / "io.max").exists():
        assert {name, f"rbps={read_bps}", "wiops=77"} <= set(read(directory, "io.max").split())
    else:
        assert f"{name} {read_bps}" in read(directory, "blkio.throttle.read_bps_device")
        assert f"{name} 77" in read(directory, "blkio.throttle.write_iops_device")


async def test_blkio_rates_are_in_force(engine: Engine) -> None:
    device = a_block_device()
    async with engine.container(
        "busybox",
        ["sleep", "1000"],
        device_read_bps=[BlkioLimit(path=device, rate=MIB)],
        device_write_iops=[BlkioLimit(path=device, rate=77)],
    ) as box:
        must_have_rates(box, device, MIB)


async def test_blkio_rates_that_are_changed_are_in_force(engine: Engine) -> None:
    device = a_block_device()
    async with engine.container(
        "busybox", ["sleep", "1000"], device_read_bps=[BlkioLimit(path=device, rate=MIB)], pids_limit=20
    ) as box:
        await box.update(
            Resources(
                device_read_bps=(BlkioLimit(path=device, rate=2 * MIB),),
                device_write_iops=(BlkioLimit(path=device, rate=77),),
                pids_limit=30,
            )
        )
        assert (await box.stats()).pids_limit == 30
        must_have_rates(box, device, 2 * MIB)


async def test_blkio_weight_is_in_force_or_refused(engine: Engine) -> None:
    try:
        box = await engine.create("busybox", ["sleep", "1000"], blkio_weight=300)
    except NotSupported:
        return
    await box.start()
    directory = cgroup_of(box.pid, "blkio")
    found = read(directory, "blkio.weight", "blkio.bfq.weight", "io.bfq.weight", "io.weight")
    assert found.split()[-1] != "100"
    await box.remove(force=True)


async def test_shm_size_is_in_force(engine: Engine) -> None:
    assert (await inside(engine, "df -k /dev/shm | tail -1 | awk '{print $2}'", shm_size="8M")).strip() == "8192"


# ---- out of memory -----------------------------------------------------------------------------------------------


EAT = "dd if=/dev/zero of=/dev/shm/x bs=1M count=200"


async def test_oom_of_the_init_is_the_reason(engine: Engine) -> None:
    done = await engine.run("busybox", EAT.split(), memory="16M", shm_size="512M")
    assert (done.exit.signal, done.exit.code) == (9, None)
    assert (done.exit.reason, done.exit.oom_killed) == ("oom", True)


async def test_oom_of_a_child_program_goes_on_and_it_is_told(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", f"{EAT}; exit 3"], memory="16M", shm_size="512M")
    assert (done.exit.code, done.exit.oom_killed) == (3, True)
    assert done.exit.reason is None


async def test_oom_of_an_exec_is_told_with_the_containers_end(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], memory="16M", shm_size="512M") as box:
        done = await box.exec(EAT.split())
        assert done.exit.signal == 9
        assert ((await box.stats()).oom_kills or 0) >= 1
        exit = await box.stop(grace_s=0)
        assert exit is not None
        assert exit.oom_killed


async def test_no_oom_is_not_told_as_one(engine: Engine) -> None:
    done = await engine.run("busybox", ["sleep", "1000"], memory="64M", timeout_s=0.2)
    assert (done.exit.signal, done.exit.oom_killed, done.exit.reason) == (9, False, "timeout")


async def test_oom_in_an_earlier_run_is_not_told_of_the_next(engine: Engine) -> None:
    box = await engine.create(
        "busybox", ["sh", "-c", f"[ -e /again ] || {{ touch /again; {EAT}; }}"], memory="16M", shm_size="512M"
    )
    await box.start()
    assert (await box.wait()).oom_killed
    await box.start()
    exit = await box.wait()
    assert (exit.code, exit.oom_killed) == (0, False)
    await box.remove()
