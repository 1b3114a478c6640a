"""`lighterman doctor --root`: what a killed engine's store says against what is, and mending it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_support import keeper_pid, process_is_there

from builds import Builds
from lighterman.comparison import compare
from lighterman.engine import Engine
from lighterman.keeper.client import KeeperClient
from lighterman.roots import StateRoot
from lighterman.runtimes.oci.cgroups import Cgroup, cgroup_host, group_of
from support import eventually_sync

pytestmark = pytest.mark.real

UNKNOWN = "0" * 32

PROGRAM = """
import asyncio, os, sys
import lighterman

async def main():
    engine = lighterman.Engine(root=sys.argv[1])
    await engine.start()
    async def make(name, *argv, **options):
        return await engine.create("busybox", argv or ["sleep", "1000"], name=name, **{"lease": None, **options})
%s
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def doctor(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lighterman.cli", "doctor", "--root", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def dies(root: Path, *lines: str, words: tuple[str, ...] = ()) -> list[str]:
    """An engine that does so much, and is killed. Returns: what it has printed."""
    program = PROGRAM % "\n".join(f"    {line}" for line in lines)
    command = [sys.executable, "-c", program, str(root), *words]
    done = subprocess.run(command, timeout=60, check=False, stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    return done.stdout.split()


def seen(root: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Its exit code, and what it says to programs."""
    done = doctor(root, "--json", *words)
    assert done.returncode in (0, 1), done.stderr
    said = json.loads(done.stdout)
    assert not [finding for finding in said["findings"] if finding["status"] == "missing"]
    return done.returncode, said


def differs(root: Path) -> dict[str, str]:
    """What is said of it, by what it is about, each once."""
    code, said = seen(root)
    found = {one["about"]: one["text"] for one in said["differences"]}
    assert len(found) == len(said["differences"]), said["differences"]
    assert code == (1 if found else 0)
    assert said["mended"] == []
    return found


def mended(root: Path) -> set[str]:
    """What is mended, all of it; and nothing is found after that."""
    code, said = seen(root, "--repair")
    assert (code, said["differences"]) == (0, []), said
    assert "the store of" in doctor(root).stdout
    return {one["about"] for one in said["mended"]}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    eventually_sync(lambda: not process_is_there(pid))


def tree(*paths: str | Path) -> set[str]:
    return {str(found) for path in paths for found in Path(path).rglob("*")}


@pytest.fixture
def kept_cgroup() -> Iterator[Callable[[str], list[Path]]]:
    """Makes the cgroup of an id, in every hierarchy, as a runtime does."""
    made: list[Path] = []

    def make(id: str) -> list[Path]:
        new = [Path(f"{hierarchy.mount_point}/lighterman/{id}") for hierarchy in cgroup_host().hierarchies]
        for path in new:
            path.mkdir(parents=True, exist_ok=True)
        made.extend(new)
        return new

    yield make
    for path in made:
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()


# ---- looking --------------------------------------------------------------------------------------------------------


async def test_looking_changes_nothing_and_starts_no_keeper(root: Path) -> None:
    dies(root, "await (await make('a')).start()")
    run = StateRoot.of(root).run
    kill(keeper_pid(root))
    before = tree(root, run)
    assert differs(root) == {}  # it runs, as the store says; the next engine watches it by its pidfd
    assert tree(root, run) == before
    with pytest.raises(AssertionError):
        keeper_pid(root)
    assert await KeeperClient.observe(run) is None
    async with Engine(root=root) as engine:
        assert (await engine.get("a")).status == "running"


async def test_container_that_was_adopted_is_as_the_store_says(root: Path) -> None:
    dies(root, "await (await make('a')).start()")
    kill(keeper_pid(root))
    async with Engine(root=root) as engine:
        assert (await engine.get("a")).status == "running"
    assert differs(root) == {}
    assert doctor(root, "--repair").returncode == 0


async def test_keeper_of_another_build_stays_as_it_is(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], lease=None)
        await box.start()
    held = StateRoot.of(root)
    keeper = await KeeperClient.observe(held.run)
    assert keeper is not None
    build = keeper.build
    await keeper.close()
    with monkeypatch.context() as patch:
        Builds(tmp_path / "builds", patch).use()
        held.acquire()
        try:
            assert await compare(held) == []
        finally:
            held.release()
    keeper = await KeeperClient.observe(held.run)
    assert keeper is not None
    assert keeper.build == build
    await keeper.close()


# ---- one difference after another -----------------------------------------------------------------------------------


async def test_files_bundles_and_states_of_nobody(root: Path) -> None:
    dies(root, "await (await make('stays')).start()", "await make('short')")
    run = StateRoot.of(root).run
    os.makedirs(root / "containers" / UNKNOWN / "logs" / "1")
    os.makedirs(f"{run}/bundles/{UNKNOWN}")
    os.makedirs(f"{run}/runtime/crun/{UNKNOWN}")
    found = differs(root)
    assert found.keys() == {"files", "bundle", "runtime"}
    assert found["files"] == f"files of it are left in {root}/containers"
    assert mended(root) == {"files", "bundle", "runtime"}
    async with Engine(root=root) as engine:
        assert (await engine.get("stays")).status == "running"


def test_end_that_nobody_saw(root: Path) -> None:
    """Its keeper was lost, and then the process: only the kernel knows."""
    (pid,) = dies(root, "a = await make('a')", "await a.start()", "print(a.pid, flush=True)")
    kill(keeper_pid(root))
    kill(int(pid))
    wanted = f"a is running in the store; process {pid} has ended, and no keeper knows of it"
    # What was killed takes a moment to end.
    eventually_sync(lambda: differs(root).get("status") == wanted)
    assert "status" in mended(root)


def test_end_that_its_keeper_saw(root: Path) -> None:
    (pid,) = dies(root, "a = await make('a')", "await a.start()", "print(a.pid, flush=True)")
    kill(int(pid))
    eventually_sync(lambda: "status" in differs(root))
    assert differs(root)["status"] == "a is running in the store; its end is not in the store yet"
    assert "status" in mended(root)


def test_number_that_is_another_process_by_now(root: Path) -> None:
    """A pid alone is not enough: the store's may be anybody's after a while."""
    (pid,) = dies(root, "a = await make('a')", "await a.start()", "print(a.pid, flush=True)")
    kill(keeper_pid(root))
    kill(int(pid))
    other = subprocess.Popen(["sleep", "1000"])
    try:
        connection = sqlite3.connect(root / "state.db")
        ((encoded,),) = connection.execute("SELECT record FROM containers").fetchall()
        record = json.loads(encoded)
        record["pid"] = other.pid
        with connection:
            connection.execute("UPDATE containers SET record = ?", (json.dumps(record).encode(),))
        connection.close()
        eventually_sync(lambda: f"process {other.pid} has ended" in differs(root).get("status", ""))
        assert "status" in mended(root)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_exec_whose_end_is_not_told(root: Path) -> None:
    lines = ("a = await make('a')", "await a.start()", "p = await a.start_exec(['sleep', '1000'])", "print(p.pid)")
    (pid,) = dies(root, *lines, "sys.stdout.flush()")
    assert differs(root) == {}
    kill(int(pid))
    eventually_sync(lambda: "exec" in differs(root))
    assert "has no end of exec" in differs(root)["exec"]
    assert mended(root) == {"exec"}


async def test_pause_that_somebody_ended(root: Path) -> None:
    lines = ("a = await make('a')", "await a.start()", "await a.pause()", "print(a.id, flush=True)")
    (id,) = dies(root, *lines, "await engine.close()")
    assert differs(root) == {}
    Cgroup(group_of(StateRoot.of(root).run, id), cgroup_host()).thaw()
    assert differs(root) == {"status": "a is paused in the store; its processes are not frozen"}
    assert mended(root) == {"status"}
    async with Engine(root=root) as engine:
        assert (await engine.get("a")).status == "running"


def test_leases_of_engines_and_processes_that_have_ended(root: Path) -> None:
    owner = subprocess.Popen(["sleep", "1000"])
    try:
        lines = ("await make('ours', lease='process')", "await make('its', lease=int(sys.argv[2]))")
        dies(root, *lines, words=(str(owner.pid),))
        code, said = seen(root)
        texts = {one["text"] for one in said["differences"]}
        assert (code, texts) == (1, {"ours belongs to an engine that has ended"})
    finally:
        owner.kill()
        owner.wait()
    _, said = seen(root)
    assert f"its belongs to process {owner.pid}, which has ended" in {one["text"] for one in said["differences"]}
    assert mended(root) == {"lease"}
    connection = sqlite3.connect(root / "state.db")
    assert connection.execute("SELECT count(*) FROM containers").fetchone() == (0,)
    connection.close()


def test_lease_that_no_keeper_watches(root: Path) -> None:
    dies(root, "await (await make('a', ttl_s=1000)).start()")
    assert differs(root) == {}
    kill(keeper_pid(root))
    assert differs(root) == {"lease": "a has a lease that no keeper watches"}
    # The keeper of the engine that has mended it stays for that alone.
    assert mended(root) == {"lease"}
    assert keeper_pid(root)


def test_time_that_is_over(root: Path) -> None:
    dies(root, "await (await make('a', ttl_s=2)).start()")
    kill(keeper_pid(root))
    eventually_sync(lambda: "its time has been over" in differs(root).get("lease", ""))
    assert "lease" in mended(root)


def test_cgroups_that_the_store_does_not_know(root: Path, kept_cgroup: Callable[[str], list[Path]]) -> None:
    lines = ("a = await make('a')", "await a.remove()", "b = await make('b')", "print(a.id, b.id, flush=True)")
    gone, created = dies(root, *lines)
    paths = kept_cgroup(gone)
    others = kept_cgroup(UNKNOWN)  # of a container of another root: that one's are beside ours
    process = subprocess.Popen(["sleep", "1000"])
    try:
        (paths[0] / "cgroup.procs").write_text(str(process.pid))
        assert differs(root) == {"cgroup": "its cgroup is left; the store does not know it"}
        assert mended(root) == {"cgroup"}
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    assert not any(path.exists() for path in paths)
    assert all(path.exists() for path in others)
    kept_cgroup(created)
    assert differs(root) == {"cgroup": "b is created; its cgroup is left"}
    assert mended(root) == {"cgroup"}


# ---- what can't be mended -------------------------------------------------------------------------------------------


def test_row_that_can_t_be_read_hides_no_other(root: Path) -> None:
    (pid,) = dies(root, "a = await make('a')", "await a.start()", "print(a.pid, flush=True)")
    kill(keeper_pid(root))
    kill(int(pid))
    connection = sqlite3.connect(root / "state.db")
    with connection:
        connection.execute("INSERT INTO containers VALUES (?, ?)", (UNKNOWN, b'{"id":1}'))
    connection.close()
    shutil.rmtree(root / "containers" / UNKNOWN, ignore_errors=True)
    found = differs(root)
    assert "a is running in the store" in found["status"]
    assert "row can't be read (Expected `str`, got `int`" in found["row"]
    code, said = seen(root, "--repair")
    assert code == 1
    assert "row" in {one["about"] for one in said["differences"]}
    done = doctor(root, "--repair")
    assert done.returncode == 1
    assert "left      000000000000: its row can't be read" in done.stdout
    assert "internal error" not in done.stderr
    # What it says to do.
    command = found["row"].partition("sqlite3 ")[2]
    statement = command.partition('"')[2].rpartition('"')[0]
    connection = sqlite3.connect(root / "state.db")
    with connection:
        connection.execute(statement)
    connection.close()
    assert mended(root) <= {"status", "bundle", "runtime"}


def test_what_is_left_after_the_repair_is_said(root: Path) -> None:
    dies(root, "await make('a')")
    stuck = root / "containers" / UNKNOWN / "stuck"
    os.makedirs(stuck)
    os.makedirs(root / "containers" / ("1" * 32))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(stuck)], check=True)
    try:
        done = doctor(root, "--repair")
    finally:
        subprocess.run(["umount", str(stuck)], check=True)
    lines = [line for line in done.stdout.splitlines() if "files of it are left" in line]
    assert [line.split()[:2] for line in lines] == [["mended", f"{'1' * 12}:"], ["left", f"{'0' * 12}:"]]
    assert done.returncode == 1
    assert "the store of" not in done.stdout
    assert mended(root) == {"files"}


async def test_root_in_use_is_left_alone(root: Path) -> None:
    async with Engine(root=root):
        done = doctor(root, "--repair")
    assert done.returncode != 0
    assert "held by another engine" in done.stderr


async def test_store_that_is_none_is_one_line(root: Path) -> None:
    async with Engine(root=root):
        pass
    (root / "state.db").write_bytes(b"no database, and long enough to be looked at " * 100)
    done = doctor(root)
    (root / "state.db").unlink()
    assert done.returncode not in (0, 1)
    assert "not a database" in done.stderr
    assert len(done.stderr.splitlines()) == 1
