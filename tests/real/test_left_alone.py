"""One container that can't be taken up hinders no other, and what runs of it is left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from real_support import logged, process_is_there
from reboot_support import change_record, kill_for_good

from lighterman import Container, Engine, RuntimeFailed, RuntimeUnavailable, limits
from lighterman.lifecycle.status import Status
from lighterman.linux_host import LinuxHost
from lighterman.roots import StateRoot
from lighterman.runtimes.oci.cgroups import Cgroup
from lighterman.runtimes.oci.probe import Probed, probe_all
from lighterman.runtimes.oci.runtime import OciRuntime
from support import eventually

pytestmark = pytest.mark.real


async def running(engine: Engine, name: str, argv: tuple[str, ...] = ("sleep", "1000")) -> Container:
    box = await engine.create("busybox", argv, name=name, lease=None)
    await box.start()
    return box


def write_row(root: Path, id: str, record: bytes) -> None:
    with sqlite3.connect(root / "state.db") as store:
        store.execute("UPDATE containers SET record = ? WHERE id = ?", (record, id))
    store.close()


def row_of(root: Path, id: str) -> bytes:
    with sqlite3.connect(root / "state.db") as store:
        ((record,),) = store.execute("SELECT record FROM containers WHERE id = ?", (id,)).fetchall()
    store.close()
    assert isinstance(record, bytes)
    return record


@pytest.mark.parametrize("damaged", [b"{", b'{"id": 7}'], ids=["no JSON", "another version's"])
async def test_row_that_can_not_be_read_and_what_runs_of_it_are_left_alone(
    root: Path, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with Engine(root=root) as engine:
        box, other = await running(engine, "box"), await running(engine, "other")
        pid, other_pid = box.pid, other.pid
    row = row_of(root, box.id)
    write_row(root, box.id, damaged)
    async with Engine(root=root) as engine:
        assert [(found.name, found.pid) for found in await engine.containers()] == [("other", other_pid)]
        assert box.id in caplog.text
        await (await engine.get("other")).stop(grace_s=0)
    assert row_of(root, box.id) == damaged
    assert process_is_there(pid)
    # Who can read it finds all of it.
    write_row(root, box.id, row)
    async with Engine(root=root) as engine:
        found = await engine.get("box")
        assert (found.status, found.pid) == (Status.RUNNING, pid)
        assert (await found.exec(["echo", "fine"])).stdout == b"fine\n"


async def test_tombstone_that_can_not_be_read_hinders_nobody(root: Path) -> None:
    async with Engine(root=root) as engine:
        await running(engine, "box")
        gone = await engine.create("busybox", ["true"], name="gone", lease=None)
        await gone.remove()
    with sqlite3.connect(root / "state.db") as store:
        assert store.execute("UPDATE tombstones SET record = ?", (b"{",)).rowcount == 1
    store.close()
    async with Engine(root=root) as engine:
        assert (await engine.get("box")).status is Status.RUNNING


async def test_what_a_runtime_started_that_is_gone_is_watched_and_stopped(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ("sh", "-c", "trap 'echo bye; exit 5' TERM; echo hi; while :; do sleep 0.1; done")
    async with Engine(root=root, runtime="runc") as engine:
        box = await running(engine, "box", script)
        pid = box.pid
        half = await engine.create("busybox", ["sleep", "1000"], name="half", lease=None)
        await half.start()
    change_record(root, half.id, status=Status.CREATED, starting=1)
    left = Path(StateRoot.of(root).run) / "runtime" / "youki" / ("a" * 32)
    await asyncio.to_thread(left.mkdir, parents=True)
    monkeypatch.setattr("lighterman.linux_host.probe_all", without_runc)
    monkeypatch.setattr(LinuxHost, "_make", make_without_runc)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (box.status, box.pid) == (Status.RUNNING, pid)
        with pytest.raises((RuntimeUnavailable, RuntimeFailed)):
            await box.exec(["true"])
        exit = await box.stop()
        assert exit is not None
        assert exit.code == 5
        assert (await logged(box)).endswith(b"bye\n")
        await box.remove()
        assert (await engine.get("half")).status is Status.CREATED
        # Another one is not in its way.
        assert (await engine.run("busybox", ["true"])).ok


MAKE = LinuxHost._make


def make_without_runc(self: LinuxHost, probed: Probed, executable: str, reason: str) -> OciRuntime:
    return MAKE(self, probed, "/nowhere/runc" if probed.name == "runc" else executable, reason)


def without_runc(cache_file: str | None = None) -> object:
    return tuple(one for one in probe_all(cache_file) if one.name == "crun")


async def test_what_does_not_die_is_left_to_the_next_engine(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Engine(root=root) as engine:
        stuck, other = await running(engine, "stuck"), await running(engine, "other")
        pid, other_pid = stuck.pid, other.pid
    # Its engine was killed before its start was told: it is ended.
    change_record(root, stuck.id, status=Status.CREATED, starting=1)
    monkeypatch.setattr(limits, "KILL_WAIT_S", 0.2)
    with monkeypatch.context() as kernel:
        # As in uninterruptible sleep.
        kernel.setattr(Cgroup, "kill", lambda self, wait_s=1.0: False)
        async with Engine(root=root) as engine:
            assert [(box.name, box.pid) for box in await engine.containers()] == [("other", other_pid)]
            assert f"pid {pid} has not ended" in caplog.text
    assert process_is_there(pid)
    await kill_for_good(pid)
    async with Engine(root=root) as engine:
        assert (await engine.get("stuck")).status is Status.CREATED
        assert (await engine.get("other")).pid == other_pid


# ---- names -------------------------------------------------------------------------------------------------------

LOOP = """
import asyncio, os, signal, sys
from lighterman import Engine, LimitExceeded
from lighterman.engine.removal import Removal
from lighterman.leases import Leases

async def for_ever(self, entry):
    await asyncio.Event().wait()

async def fails(self, entry):
    raise LimitExceeded("no room for another lease", limit="leases")

async def main():
    async with Engine(root=sys.argv[1]) as engine:
        Removal.remove_files = for_ever
        if sys.argv[2] == "run":
            await engine.run("busybox", ["true"], name="job")
        else:
            made, Leases.made = Leases.made, fails
            try:
                await engine.create("busybox", ["true"], name="job", lease=None)
            except LimitExceeded:
                Leases.made = made
        box = await engine.create("busybox", ["sleep", "1000"], name="job", lease=None)
        await box.start()
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("by", ["run", "a create that fails"])
async def test_name_of_what_is_being_removed_is_another_ones(root: Path, by: str) -> None:
    program = [sys.executable, "-c", LOOP, str(root), by]
    done = await asyncio.to_thread(subprocess.run, program, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    async with Engine(root=root) as engine:
        job = await engine.get("job")
        assert job.status is Status.RUNNING
        await eventually(lambda: sorted(os.listdir(root / "containers")) == [job.id])
        assert [box.id for box in await engine.containers()] == [job.id]


async def test_two_of_one_name_are_both_there_by_their_ids(root: Path) -> None:
    async with Engine(root=root) as engine:
        first, second = await running(engine, "first"), await running(engine, "second")
    change_record(root, second.id, name="first")
    async with Engine(root=root) as engine:
        assert (await engine.get("first")).id == first.id
        assert (await engine.get(second.id)).status is Status.RUNNING
        assert len(await engine.containers()) == 2


# ---- what is being removed ---------------------------------------------------------------------------------------


async def test_deep_tree_that_is_half_removed_delays_no_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = "i=0; while [ $i -lt 1500 ]; do mkdir d && cd d || exit 1; i=$((i+1)); done"
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sh", "-c", deep], name="deep", lease=None)
        await box.start()
        assert (await box.wait()).code == 0
        unknown = await engine.create("busybox", ["sh", "-c", deep], name="unknown", lease=None)
        await unknown.start()
        assert (await unknown.wait()).code == 0
        await running(engine, "other")
    change_record(root, box.id, status=Status.REMOVING)
    with sqlite3.connect(root / "state.db") as store:
        store.execute("DELETE FROM containers WHERE id = ?", (unknown.id,))
    store.close()
    real, may_go_on = LinuxHost.remove_directory, asyncio.Event()

    async def remove_directory(path: str) -> None:
        await may_go_on.wait()
        await real(path)

    monkeypatch.setattr(LinuxHost, "remove_directory", staticmethod(remove_directory))
    async with Engine(root=root) as engine:
        assert [box.name for box in await engine.containers()] == ["other"]
        may_go_on.set()
        await eventually(lambda: len(os.listdir(root / "containers")) == 1)
