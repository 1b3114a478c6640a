"""A cgroup for each exec, on a tree of plain files that looks like version 2."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from lighterman.runtimes.oci.cgroups import Cgroup, CgroupHost, Hierarchy
from lighterman.runtimes.oci.exec_cgroups import ExecCgroups, OwnCgroup, can_exec_into


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The directory of the container's cgroup."""
    path = tmp_path / "lighterman/c1"
    path.mkdir(parents=True)
    return path


def container(tmp_path: Path, *, layout: str = "v2") -> Cgroup:
    hierarchy = Hierarchy(mount_point=str(tmp_path), version=2, controllers=frozenset())
    return Cgroup("/lighterman/c1", CgroupHost(layout=layout, hierarchies=(hierarchy,)))  # type: ignore[arg-type]


def names(top: Path) -> set[str]:
    return {path.name for path in top.iterdir()}


async def made(execs: ExecCgroups) -> OwnCgroup:
    own = await execs.make()
    assert own is not None
    return own


async def test_each_exec_has_another_one_and_it_goes_with_it(tmp_path: Path, top: Path) -> None:
    execs = ExecCgroups(container(tmp_path), possible=True)
    first, second = await made(execs), await made(execs)
    assert names(top) == {first.name, second.name}
    execs.leave(first)
    assert names(top) == {second.name}
    execs.leave(second)
    assert names(top) == set()


@pytest.mark.parametrize("layout", ["v1", "hybrid"])
async def test_there_is_none_with_version_1(tmp_path: Path, top: Path, layout: str) -> None:
    assert await ExecCgroups(container(tmp_path, layout=layout), possible=True).make() is None
    assert names(top) == set()


async def test_there_is_none_for_a_runtime_that_can_not(tmp_path: Path, top: Path) -> None:
    assert await ExecCgroups(container(tmp_path), possible=False).make() is None
    assert names(top) == set()


async def test_there_is_none_where_the_container_has_gone(tmp_path: Path, top: Path) -> None:
    await asyncio.to_thread(top.rmdir)
    assert await ExecCgroups(container(tmp_path), possible=True).make() is None


async def test_there_is_none_in_a_threaded_cgroup(tmp_path: Path, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighterman.runtimes.oci.cgroups.v2.takes_processes", lambda parent, name: False)
    assert await ExecCgroups(container(tmp_path), possible=True).make() is None
    assert names(top) == set()


async def test_one_in_which_something_lives_on_goes_with_a_later_exec(tmp_path: Path, top: Path) -> None:
    execs = ExecCgroups(container(tmp_path), possible=True)
    lives_on = await made(execs)
    (top / lives_on.name / "a process").touch()  # rmdir refuses, as it does for a cgroup with processes
    execs.leave(lives_on)
    assert names(top) == {lives_on.name}
    other = await made(execs)
    execs.leave(other)
    assert names(top) == {lives_on.name}
    (top / lives_on.name / "a process").unlink()
    execs.leave(await made(execs))
    assert names(top) == set()


async def test_what_an_earlier_engine_could_not_remove_is_removed(tmp_path: Path, top: Path) -> None:
    before = ExecCgroups(container(tmp_path), possible=True)
    running, left = await made(before), await made(before)
    (top / "the workload's own").mkdir()
    now = ExecCgroups(container(tmp_path), possible=True)
    await now.take_up({running.name, None})
    now.leave(await made(now))
    assert names(top) == {running.name, "the workload's own"}
    ended = now.leaving(running.name)
    assert ended is not None
    ended()
    assert names(top) == {"the workload's own"}
    assert left.remove()  # again is fine
    assert now.leaving(None) is None


async def test_that_of_a_process_is_found_without_its_name(tmp_path: Path, top: Path) -> None:
    """Its keeper knew the name, and is lost."""
    execs = ExecCgroups(container(tmp_path), possible=True)
    first, second = await made(execs), await made(execs)
    (top / "the workload's own").mkdir()
    for name, pids in ((first.name, "10\n"), (second.name, "11\n12\n"), ("the workload's own", "13\n")):
        (top / name / "cgroup.procs").write_text(pids)
    found = execs.of_process(12)
    assert found is not None
    assert found.name == second.name
    assert execs.of_process(13) is None
    assert ExecCgroups(container(tmp_path), possible=False).of_process(12) is None


async def test_cancelled_while_it_is_made_there_is_none(
    tmp_path: Path, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, go = threading.Event(), threading.Event()
    make_child = Cgroup.make_child

    def slowly(self: Cgroup, name: str) -> Cgroup | None:
        making.set()
        assert go.wait(60)
        return make_child(self, name)

    monkeypatch.setattr(Cgroup, "make_child", slowly)
    task = asyncio.create_task(ExecCgroups(container(tmp_path), possible=True).make())
    await asyncio.to_thread(making.wait, 60)
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(top) == set()


@pytest.mark.parametrize(
    ("runtime", "version", "can"),
    [
        ("crun", "1.8.1", True),
        ("crun", "1.14", True),
        ("crun", "0.17", False),
        ("runc", "1.1.5+ds1", True),
        ("runc", "1.0.0~rc93+ds1", False),
        ("youki", "9.9.9", False),
        ("crun", "unknown", False),
    ],
)
def test_builds_that_have_the_option(runtime: str, version: str, can: bool) -> None:
    assert can_exec_into(runtime, version) is can
