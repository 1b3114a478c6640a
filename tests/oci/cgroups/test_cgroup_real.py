"""Cgroups of this machine, whichever version it has."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from cgroup_support import DEADLINE_S, enter, host_or_skip, make, running

from lighterman.errors import NotFound
from lighterman.runtimes.oci.cgroups import Cgroup, CgroupHost, Hierarchy
from support import eventually_sync

pytestmark = pytest.mark.real


@pytest.fixture
def host() -> CgroupHost:
    return host_or_skip()


@pytest.fixture
def cgroup(host: CgroupHost) -> Iterator[Cgroup]:
    top = Cgroup(f"/lighterman-test-{os.getpid()}", host)
    inner = Cgroup(f"{top.path}/c1", host)
    make(inner)
    try:
        yield inner
    finally:
        assert top.kill(DEADLINE_S)
        eventually_sync(top.remove)
        assert not top.exists()


def test_pids_of_a_cgroup_and_of_those_below(cgroup: Cgroup) -> None:
    make(cgroup, "/a/b")
    assert cgroup.exists()
    assert cgroup.is_empty()
    with running("sleep", "600") as first, running("sleep", "600") as second:
        # Version 2 allows processes in the leaves alone where controllers are on.
        enter(cgroup, first.pid, "/a/b")
        enter(cgroup, second.pid, "/a/b")
        assert cgroup.pids() == {first.pid, second.pid}
        assert not cgroup.is_empty()
        first.kill()
        first.wait()
        eventually_sync(lambda: cgroup.pids() == {second.pid})


def test_is_empty_although_the_last_one_is_a_zombie(cgroup: Cgroup) -> None:
    with running("sleep", "600") as child:
        enter(cgroup, child.pid)
        child.kill()
        eventually_sync(cgroup.is_empty)
        assert cgroup.pids() == set()
        assert cgroup.remove()


def test_kill_ends_every_process_below_too(cgroup: Cgroup) -> None:
    make(cgroup, "/a/b")
    with running("sleep", "600") as first, running("sleep", "600") as bystander:
        enter(cgroup, first.pid, "/a/b")
        assert cgroup.kill(DEADLINE_S)
        assert first.wait(DEADLINE_S) == -signal.SIGKILL
        assert bystander.poll() is None
    assert cgroup.kill(0), "killing an empty one succeeds at once"


@pytest.mark.needs("v1")  # version 2 has one hierarchy
def test_kill_reaches_what_was_moved_in_one_hierarchy_alone(cgroup: Cgroup) -> None:
    with running("sleep", "600") as child:
        enter(cgroup, child.pid, only=lambda hierarchy: "pids" in hierarchy.controllers)
        assert cgroup.pids() == {child.pid}
        assert cgroup.kill(DEADLINE_S)
        assert child.wait(DEADLINE_S) == -signal.SIGKILL


def test_kill_beats_a_fork_bomb(cgroup: Cgroup) -> None:
    script = "read go; while :; do (while :; do sleep 600 & sleep 0.01; done) & sleep 0.01; done"
    with running("sh", "-c", script) as bomb:
        enter(cgroup, bomb.pid)
        assert bomb.stdin
        bomb.stdin.write(b"go\n")
        bomb.stdin.flush()
        eventually_sync(lambda: len(cgroup.pids()) > 40)
        assert cgroup.kill(DEADLINE_S)
        assert bomb.wait(DEADLINE_S) == -signal.SIGKILL
        assert cgroup.pids() == set()


def test_kill_by_listing_where_the_kernel_has_no_cgroup_kill(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighterman.runtimes.oci.cgroups.v2.kill", lambda directory: False)
    # More than one batch.
    script = "read go; i=0; while [ $i -lt 300 ]; do sleep 600 & i=$((i+1)); done; wait"
    with running("sh", "-c", script) as parent:
        enter(cgroup, parent.pid)
        assert parent.stdin
        parent.stdin.write(b"go\n")
        parent.stdin.flush()
        eventually_sync(lambda: len(cgroup.pids()) == 301, 120)
        assert cgroup.kill(DEADLINE_S)
        assert parent.wait(DEADLINE_S) == -signal.SIGKILL


def test_freeze_stops_and_thaw_continues(cgroup: Cgroup) -> None:
    with running("cat") as child:
        enter(cgroup, child.pid)
        assert child.stdin
        assert child.stdout
        assert not cgroup.is_frozen()
        cgroup.freeze()
        assert cgroup.is_frozen()
        cgroup.freeze()
        child.stdin.write(b"x\n")
        child.stdin.flush()
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda: lines.append(child.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        assert cgroup.is_frozen()
        assert lines == []
        cgroup.thaw()
        reader.join(DEADLINE_S)
        assert lines == [b"x\n"]
        assert not cgroup.is_frozen()


def test_kill_ends_what_is_frozen(cgroup: Cgroup) -> None:
    with running("sleep", "600") as child:
        enter(cgroup, child.pid)
        cgroup.freeze()
        assert cgroup.kill(DEADLINE_S)
        assert child.wait(DEADLINE_S) == -signal.SIGKILL


def test_remove_says_no_while_a_process_is_left_and_removes_what_it_can(cgroup: Cgroup) -> None:
    make(cgroup, "/a/b")
    make(cgroup, "/c")
    with running("sleep", "600") as child:
        enter(cgroup, child.pid, "/a") if cgroup.host.layout != "v2" else enter(cgroup, child.pid, "/c")
        assert not cgroup.remove()
        assert len(cgroup.remaining()) == len(cgroup.host.hierarchies)
        assert child.poll() is None
        assert cgroup.kill(DEADLINE_S)
    eventually_sync(cgroup.remove)
    assert cgroup.remaining() == []
    assert not cgroup.exists()
    assert cgroup.remove(), "removing what is gone succeeds"


def test_remove_of_a_deep_and_wide_tree_holds_few_descriptors(cgroup: Cgroup) -> None:
    make(cgroup, "/d" * 60)
    for number in range(20):
        make(cgroup, f"/wide{number}")
    before = len(os.listdir("/proc/self/fd"))
    assert cgroup.remove()
    assert len(os.listdir("/proc/self/fd")) == before


def test_statistics_count_a_process(cgroup: Cgroup) -> None:
    with running(
        "sh", "-c", "read go; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 600"
    ) as child:
        enter(cgroup, child.pid)
        assert child.stdin
        assert child.stdout
        child.stdin.write(b"go\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"done\n"
        statistics = cgroup.statistics()
    assert statistics.read_at > 1.7e9
    assert statistics.cpu_ns
    assert statistics.cpu_user_ns is not None
    assert statistics.memory_bytes is not None
    assert statistics.memory_limit_bytes is None
    assert statistics.pids
    assert statistics.pids_limit is None
    assert statistics.oom_kills == 0


def test_statistics_show_limits_that_are_set(cgroup: Cgroup) -> None:
    def limit(controller: str, v1_name: str, v2_name: str, value: int) -> None:
        hierarchy = cgroup.host.hierarchy_of(controller)
        if hierarchy is None:
            pytest.skip(f"no {controller} controller")
        name = v1_name if hierarchy.version == 1 else v2_name
        with open(f"{hierarchy.mount_point}{cgroup.path}/{name}", "w", encoding="ascii") as file:
            file.write(str(value))

    limit("memory", "memory.limit_in_bytes", "memory.max", 64 << 20)
    limit("pids", "pids.max", "pids.max", 12)
    statistics = cgroup.statistics()
    assert statistics.memory_limit_bytes == 64 << 20
    assert statistics.pids_limit == 12


def test_oom_kills_in_a_cgroup_below_are_counted(cgroup: Cgroup) -> None:
    memory = cgroup.host.hierarchy_of("memory")
    if memory is None:
        pytest.skip("this host has no memory controller to set a limit with")
    make(cgroup, "/sub")
    name = "memory.limit_in_bytes" if memory.version == 1 else "memory.max"
    with open(f"{memory.mount_point}{cgroup.path}/{name}", "w", encoding="ascii") as file:
        file.write(str(8 << 20))
    assert cgroup.oom_kills() == 0
    with running("sh", "-c", "read go; exec tail /dev/zero") as glutton:
        enter(cgroup, glutton.pid, "/sub")
        glutton.communicate(b"go\n", timeout=DEADLINE_S)
        assert glutton.returncode == -signal.SIGKILL
    assert cgroup.oom_kills() == 1
    assert cgroup.statistics().oom_kills == 1


def test_what_does_not_exist_is_empty_and_counts_nothing(host: CgroupHost) -> None:
    nothing = Cgroup(f"/lighterman-test-{os.getpid()}-none/c1", host)
    assert not nothing.exists()
    assert nothing.is_empty()
    assert nothing.pids() == set()
    assert not nothing.is_frozen()
    assert nothing.kill(0)
    assert nothing.remove()
    assert nothing.remaining() == []
    assert nothing.oom_kills() is None
    for operation in (nothing.freeze, nothing.thaw, nothing.statistics):
        with pytest.raises(NotFound, match="none/c1"):
            operation()


def test_version_2_alone_kills_and_freezes(host: CgroupHost) -> None:
    """A hybrid host's version 2 tree taken for the whole host."""
    unified: Hierarchy | None = host.unified
    if unified is None:
        pytest.skip("no cgroup2 is mounted")
    only = CgroupHost(layout="v2", hierarchies=(unified,))
    cgroup = Cgroup(f"/lighterman-test-{os.getpid()}-v2", only)
    make(cgroup)
    try:
        with running("sleep", "600") as child:
            enter(cgroup, child.pid)
            assert not cgroup.is_empty()
            cgroup.freeze()
            assert cgroup.is_frozen()
            cgroup.thaw()
            eventually_sync(lambda: not cgroup.is_frozen())
            assert cgroup.statistics().cpu_ns is not None
            cgroup.freeze()
            assert cgroup.kill(DEADLINE_S)
            assert child.wait(DEADLINE_S) == -signal.SIGKILL
            assert cgroup.is_empty()
    finally:
        cgroup.kill(DEADLINE_S)
        eventually_sync(cgroup.remove)


def test_kill_of_one_that_was_made_threaded(host: CgroupHost) -> None:
    """There the kernel refuses cgroup.kill, and lists no processes."""
    if host.unified is None:
        pytest.skip("no version 2 tree is mounted")
    only = CgroupHost(layout="v2", hierarchies=(host.unified,))
    top = Cgroup(f"/lighterman-test-{os.getpid()}", only)
    inner, beside = top.child("c1"), top.child("c2")
    at = f"{host.unified.mount_point}{inner.path}"
    try:
        os.makedirs(at)
        os.makedirs(f"{host.unified.mount_point}{beside.path}")
        with open(f"{at}/cgroup.type", "w", encoding="ascii") as file:
            file.write("threaded")
        with running("sleep", "600") as process, running("sleep", "600") as other:
            enter(top, process.pid)
            enter(top, other.pid)
            enter(inner, process.pid)
            assert inner.pids() == {process.pid}
            assert not inner.is_empty()
            assert inner.kill(DEADLINE_S)
            assert process.wait() == -9
            assert other.poll() is None
    finally:
        assert top.kill(DEADLINE_S)
        eventually_sync(top.remove)
