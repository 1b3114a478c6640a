"""A process lease: when the owner is gone its jobs go, whoever is connected or is not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper_support import Keepers, alive, exit_code, kill, state

from lighterman.errors import InvalidSpec, InvalidState, KeeperLost
from lighterman.keeper import cgroup
from lighterman.keeper.client import KeeperClient
from lighterman.keeper.slots import read_exit_slots
from support import eventually

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: control groups")


class Owner:
    """A process that does nothing but exist."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["/bin/sleep", "1000"])
        self.pidfd = os.pidfd_open(self.process.pid)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.end()
        os.close(self.pidfd)


async def is_refused(keepers: Keepers, keeper: KeeperClient, lease: str) -> bool:
    """Whether a lease takes no job any more."""
    try:
        await keepers.spawn(keeper, keepers.job(f"j{uuid.uuid4().hex}", "exit 0", lease=lease))
    except InvalidState:
        return True
    return False


@pytest.fixture
def owner() -> Iterator[Owner]:
    one = Owner()
    yield one
    one.close()


async def test_the_jobs_of_a_dead_owner_are_killed_and_say_why(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    await keeper.lease("mine", owner.pidfd)
    mine = await keepers.spawn(keeper, keepers.job("mine", "exec sleep 1000", lease="mine"))
    other = await keepers.spawn(keeper, keepers.job("other", "exec sleep 1000"))
    owner.end()
    exit = await keeper.wait_exit("mine")
    assert (exit_code(exit.status), exit.lease_ended) == (-signal.SIGKILL, True)
    assert mine.pid is not None
    assert not alive(mine.pid)
    assert other.pid is not None
    assert alive(other.pid)
    # The exit is a fact that the engine still has to take.
    assert {job.job for job in await keeper.list_jobs()} == {"mine", "other"}
    with pytest.raises(InvalidState):
        await keeper.spawn(keepers.job("late", "exit 0", lease="mine"))


async def test_an_exit_of_its_own_is_not_the_leases(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    await keeper.lease("mine", owner.pidfd)
    await keepers.spawn(keeper, keepers.job("a", "exit 3", lease="mine"))
    exit = await keeper.wait_exit("a")
    owner.end()
    await keeper.ping()
    assert (exit_code(exit.status), exit.lease_ended) == (3, False)


async def test_a_private_root_vanishes_with_its_owner(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    before = keepers.directory()
    tree = keepers.root / "state" / "deep" / "deeper"
    tree.mkdir(parents=True)
    (tree / "file").write_text("x")
    elsewhere = keepers.root / "elsewhere"
    elsewhere.mkdir()
    (tree / "link").symlink_to(elsewhere)
    await keeper.lease("root", owner.pidfd, remove=[str(keepers.root / "state"), str(before)])
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="root"))
    await keeper.close()
    owner.end()
    await eventually(lambda: not alive(keeper.pid))
    assert spawned.pid is not None
    assert not alive(spawned.pid)
    await eventually(lambda: not (keepers.root / "state").exists() and not before.exists())
    assert elsewhere.exists()


async def test_a_released_lease_ends_nothing(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    descriptors = (await keeper.stats()).descriptors
    await keeper.lease("mine", owner.pidfd)
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine"))
    await keeper.release_lease("mine")
    await keeper.release_lease("mine")
    owner.end()
    await keeper.ping()
    assert spawned.pid is not None
    assert alive(spawned.pid)
    assert (await keeper.stats()).descriptors == descriptors


async def test_a_lease_goes_over_to_another_owner(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    newer = Owner()
    await keeper.lease("mine", owner.pidfd)
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine"))
    await keeper.lease("mine", newer.pidfd)
    owner.end()
    await keeper.ping()
    assert spawned.pid is not None
    assert alive(spawned.pid)
    newer.close()
    assert (await keeper.wait_exit("a")).lease_ended


async def test_the_end_of_an_owner_is_not_taken_for_that_of_the_next_one(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    living = Owner()
    await keeper.lease("x", owner.pidfd)
    # All of it in one turn of its loop; the descriptor of "y" gets the number of that of "x".
    os.kill(keeper.pid, signal.SIGSTOP)
    await eventually(lambda: state(keeper.pid) == "T")
    asked = [asyncio.ensure_future(keeper.release_lease("x")), asyncio.ensure_future(keeper.lease("y", living.pidfd))]
    await asyncio.wait(asked, timeout=0)
    owner.end()
    os.kill(keeper.pid, signal.SIGCONT)
    await asyncio.gather(*asked)
    assert not await is_refused(keepers, keeper, "y")
    living.close()


async def test_an_owner_that_is_dead_already(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    owner.end()
    await keeper.lease("mine", owner.pidfd)
    await eventually(lambda: is_refused(keepers, keeper, "mine"))


async def test_a_runtime_call_under_way_is_ended(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    await keeper.lease("mine", owner.pidfd)
    slow = keepers.job("a", "", argv=("sh", "-c", "sleep 1000"), executable="/bin/sh", lease="mine")
    spawning = asyncio.create_task(keeper.spawn(slow))
    await eventually(keeper.list_jobs)
    owner.end()
    assert (await spawning).pid is None


async def test_what_a_killed_runtime_call_has_forked_ends_with_its_lease(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    await keeper.lease("mine", owner.pidfd, remove=[str(keepers.directory())])
    # As crun: the child in a session of its own is the one that makes the container.
    write = 'open F, ">", $ARGV[0] or die; print F "$$\\n"; close F;'
    script = f"defined($pid = fork) or die; if (!$pid) {{ setsid; {write} }} sleep 1000"
    id = f"test-{uuid.uuid4().hex}"
    forked = keepers.root / "forked"
    argv = ("perl", "-MPOSIX=setsid", "-e", script, str(forked), "run", id)
    job = keepers.job("a", "", argv=argv, lease="mine", recipe={"cgroup": f"/lighterman/{id}"})
    spawning = asyncio.create_task(keeper.spawn(job))
    await eventually(lambda: forked.exists() and forked.read_text().endswith("\n"))
    child = int(forked.read_text())
    assert alive(child)
    await keeper.close()
    with pytest.raises(KeeperLost):
        await spawning
    owner.end()
    await eventually(lambda: not alive(keeper.pid))
    was_left = alive(child)
    kill(child)
    assert not was_left


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def test_a_lease_ends_with_its_time_also_with_nobody_there(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    await keeper.lease("mine", None, until=boottime() + 0.3)
    mine = await keepers.spawn(keeper, keepers.job("mine", "exec sleep 1000", lease="mine"))
    other = await keepers.spawn(keeper, keepers.job("other", "exec sleep 1000"))
    await keeper.close()
    await eventually(lambda: mine.pid is not None and not alive(mine.pid))
    keeper = await keepers.connect()
    assert (await keeper.wait_exit("mine")).lease_ended
    assert other.pid is not None
    assert alive(other.pid)
    with pytest.raises(InvalidState):
        await keeper.renew_lease("mine", boottime() + 10)


async def test_the_slot_of_an_exit_says_that_its_lease_had_ended(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    await keeper.lease("mine", owner.pidfd)
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine"))
    await keepers.spawn(keeper, keepers.job("b", "exit 3", lease="mine"))
    await keeper.wait_exit("b")
    owner.end()
    await keeper.wait_exit("a")
    slots = [slot for file in (keepers.directory() / "exits").iterdir() for slot in read_exit_slots(str(file))]
    assert {slot.job: slot.lease_ended for slot in slots} == {"a": True, "b": False}


async def test_a_renewed_lease_ends_later(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    begun = boottime()
    await keeper.lease("mine", None, until=begun + 0.5)
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine"))
    await keeper.renew_lease("mine", begun + 2)
    assert (await keeper.wait_exit("a")).lease_ended
    assert boottime() >= begun + 2


async def test_the_first_of_owner_and_time_ends_it(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    await keeper.lease("late", owner.pidfd, until=boottime() + 1000)
    await keeper.lease("soon", owner.pidfd, until=boottime() + 1000)
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="late"))
    await keepers.spawn(keeper, keepers.job("b", "exec sleep 1000", lease="soon"))
    # Not before: on a slow machine its time would be over before anything is bound to it.
    await keeper.renew_lease("soon", boottime() + 0.1)
    assert (await keeper.wait_exit("b")).lease_ended
    owner.end()
    assert (await keeper.wait_exit("a")).lease_ended


async def test_another_owner_of_the_name_does_not_save_what_has_ended(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    newer = Owner()
    await keeper.lease("mine", owner.pidfd)
    spawned = [await keepers.spawn(keeper, keepers.job(f"j{n}", "exec sleep 1000", lease="mine")) for n in range(20)]
    owner.end()
    await eventually(lambda: is_refused(keepers, keeper, "mine"))
    await keeper.lease("mine", newer.pidfd)
    for n in range(20):
        assert (await keeper.wait_exit(f"j{n}")).lease_ended
    assert not any(alive(one.pid) for one in spawned if one.pid is not None)
    newer.close()


async def test_wrong_leases(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    for name, remove in (("", []), ("a/b", []), ("a", ["relative"]), ("a", ["/"]), ("a", ["/tmp/../etc"])):
        with pytest.raises(InvalidSpec):
            await keeper.lease(name, owner.pidfd, remove=remove)
    for group in ("/", "/lighterman", "/lighterman/../etc", "lighterman/a"):
        with pytest.raises(InvalidSpec):
            await keeper.lease("a", owner.pidfd, groups=[group])
    for until in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidSpec):
            await keeper.lease("a", None, until=until)
    with pytest.raises(InvalidSpec):
        await keeper.lease("a", None)
    with pytest.raises(InvalidState):
        await keeper.renew_lease("unknown", boottime() + 1)
    with pytest.raises(InvalidState):
        await keeper.spawn(keepers.job("a", "exit 0", lease="unknown"))


@needs_root
async def test_all_of_the_control_group_is_killed_and_removed(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    path = f"/lighterman/test-{uuid.uuid4().hex}"
    groups = [Path(f"{mount}{path}") for mount in cgroup.mounts() if "cpuset" not in mount]
    script = ["sleep 1000 & setsid sleep 1000 &"]
    for group in groups:
        group.joinpath("below").mkdir(parents=True)
        script.insert(0, f"echo $$ > {group}/below/cgroup.procs;")
    await keeper.lease("mine", owner.pidfd)
    job = keepers.job("a", " ".join([*script, "exec sleep 1000"]), lease="mine", recipe={"cgroup": path})
    spawned = await keepers.spawn(keeper, job)
    await eventually(lambda: len(groups[0].joinpath("below/cgroup.procs").read_text().split()) == 3)
    members = [int(word) for word in groups[0].joinpath("below/cgroup.procs").read_text().split()]
    assert spawned.pid in members
    # An engine that is there tidies itself.
    await keeper.close()
    owner.end()
    await eventually(lambda: not any(alive(pid) for pid in members))
    await eventually(lambda: not any(group.exists() for group in groups))
    keeper = await keepers.connect()
    assert (await keeper.wait_exit("a")).lease_ended
    for group in groups:
        if not any(entry.is_dir() for entry in group.parent.iterdir()):
            group.parent.rmdir()


def in_one_tree(path: str) -> Path:
    """Of version 1 that of the pids, which has no settings to be made before anybody can be in it."""
    mounts = [mount for mount in cgroup.mounts() if mount.endswith(("pids", "unified"))] or cgroup.mounts()
    return Path(f"{mounts[0]}{path}")


@needs_root
async def test_a_group_used_again_while_an_engine_is_there_is_left_alone(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    path = f"/lighterman/test-{uuid.uuid4().hex}"
    group = in_one_tree(path)
    await keeper.lease("mine", owner.pidfd, groups=[path])
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", lease="mine", recipe={"cgroup": path}))
    owner.end()
    # Told, and not acknowledged: the next run may begin all the same.
    assert (await keeper.wait_exit("a")).lease_ended
    group.mkdir(parents=True)
    member = Owner()
    group.joinpath("cgroup.procs").write_text(str(member.process.pid))
    # A lease that ends later is through: by then this one was looked at again.
    later = Owner()
    await keeper.lease("later", later.pidfd)
    await keepers.spawn(keeper, keepers.job("b", "exec sleep 1000", lease="later"))
    later.close()
    assert (await keeper.wait_exit("b")).lease_ended
    assert member.process.poll() is None
    member.close()
    group.rmdir()


@needs_root
async def test_groups_of_containers_whose_keeper_was_lost(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    path = f"/lighterman/test-{uuid.uuid4().hex}"
    groups = [Path(f"{mount}{path}") for mount in cgroup.mounts() if "cpuset" not in mount]
    for group in groups:
        group.mkdir(parents=True)
    member = Owner()
    for group in groups:
        group.joinpath("cgroup.procs").write_text(str(member.process.pid))
    await keeper.lease("mine", owner.pidfd, groups=[path])
    await keeper.close()
    owner.end()
    assert await asyncio.to_thread(member.process.wait) == -signal.SIGKILL
    member.close()
    await eventually(lambda: not any(group.exists() for group in groups))


@needs_root
async def test_groups_of_other_leases_end_with_a_private_root(keepers: Keepers, owner: Owner) -> None:
    keeper = await keepers.connect()
    path = f"/lighterman/test-{uuid.uuid4().hex}"
    group = in_one_tree(path)
    group.mkdir(parents=True)
    member, other = Owner(), Owner()
    group.joinpath("cgroup.procs").write_text(str(member.process.pid))
    await keeper.lease("root", owner.pidfd, remove=[str(keepers.directory())])
    # As a lost keeper's successor is told of a container of another process.
    await keeper.lease("other", other.pidfd, groups=[path])
    await keeper.close()
    owner.end()
    await eventually(lambda: not group.exists())
    assert await asyncio.to_thread(member.process.wait) == -signal.SIGKILL
    member.close()
    other.close()


@pytest.mark.parametrize("path", ["/", "/lighterman", "/lighterman/", "/lighterman/../a", "/other/a", "", "relative"])
def test_groups_that_are_no_containers_are_left_alone(path: str) -> None:
    assert not cgroup.is_a_container(path)
