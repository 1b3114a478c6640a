"""Hearing of OOM kills: of plain files that look like version 2, and of this host's own cgroups."""

from __future__ import annotations

import errno
import os
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cgroup_support import enter, host_or_skip, make, plain_v2, running

from lighterman.runtimes.oci.cgroups import Cgroup, CgroupHost, Hierarchy, OomEar, OomEars
from support import eventually

EVENTS = "low 0\nhigh 0\nmax 0\noom 0\noom_kill {}\n"


@pytest.fixture
async def ears(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OomEars]:
    made = OomEars(plain_v2(tmp_path, memory__events=EVENTS.format(0)))
    yield made
    made.close()


def write(tmp_path: Path, kills: int) -> None:
    """In one piece, as the kernel does."""
    fd = os.open(tmp_path / "lighterman/c1/memory.events", os.O_WRONLY)
    os.write(fd, EVENTS.format(kills).encode())
    os.close(fd)


def listen(ears: OomEars, tmp_path: Path, told: list[int], *, ending: bool = False, before: int = 0) -> OomEar | None:
    host = CgroupHost(layout="v2", hierarchies=(ears._memory,) if ears._memory else ())
    return ears.listen(
        Cgroup("/lighterman/c1", host),
        limited=True,
        told=before,
        is_ending=lambda: ending,
        tell=told.append,
    )


async def test_a_growing_count_is_told_once(ears: OomEars, tmp_path: Path) -> None:
    told: list[int] = []
    ear = listen(ears, tmp_path, told)
    assert ear is not None
    write(tmp_path, 1)
    await eventually(lambda: told == [1])
    write(tmp_path, 1)  # of another counter
    write(tmp_path, 3)
    await eventually(lambda: told == [1, 3])
    ear.close()
    ear.close()


async def test_version_1_without_a_descriptor_left_keeps_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lighterman/c1").mkdir(parents=True)
    memory = Hierarchy(mount_point=str(tmp_path), version=1, controllers=frozenset({"memory"}))
    host = CgroupHost(layout="v1", hierarchies=(memory,))

    def none_left(*_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "eventfd", none_left)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        OomEars(host).listen(
            Cgroup("/lighterman/c1", host), limited=True, told=0, is_ending=lambda: False, tell=lambda _: None
        )
    assert os.listdir("/proc/self/fd") == before


async def test_what_was_told_is_not_told_again(ears: OomEars, tmp_path: Path) -> None:
    write(tmp_path, 2)
    told: list[int] = []
    ear = listen(ears, tmp_path, told, before=2)
    assert ear is not None
    ear.look()
    write(tmp_path, 4)
    await eventually(lambda: told == [4])
    ear.close()


async def test_what_happened_before_is_found_by_a_look(ears: OomEars, tmp_path: Path) -> None:
    write(tmp_path, 2)
    told: list[int] = []
    ear = listen(ears, tmp_path, told)
    assert ear is not None
    ear.look()
    await eventually(lambda: told == [2])
    ear.close()


async def test_one_that_ends_anyway_is_not_told(ears: OomEars, tmp_path: Path) -> None:
    told: list[int] = []
    ending, living = listen(ears, tmp_path, told, ending=True), None
    assert ending is not None
    write(tmp_path, 1)
    ending.close()
    living = listen(ears, tmp_path, told)
    assert living is not None
    write(tmp_path, 2)
    await eventually(lambda: told)
    assert told == [2]
    living.close()


async def test_without_the_controller_there_is_no_ear(ears: OomEars, tmp_path: Path) -> None:
    (tmp_path / "lighterman/c1/memory.events").unlink()
    assert listen(ears, tmp_path, []) is None


# ---- this host ---------------------------------------------------------------------------------------------------

EATER = "x = []\ninput()\nwhile True: x.append(bytearray(1 << 20))"


@pytest.fixture
def limited() -> Iterator[Cgroup]:
    """A cgroup with a memory limit of 16 MiB."""
    host = host_or_skip()
    memory = host.hierarchy_of("memory")
    if memory is None:
        pytest.skip("this host has no memory controller to set a limit with")
    cgroup = Cgroup(f"/lighterman-test-{uuid.uuid4().hex[:8]}/c1", host)
    make(cgroup)
    directory = Path(f"{memory.mount_point}{cgroup.path}")
    (directory / ("memory.max" if memory.version == 2 else "memory.limit_in_bytes")).write_text(str(16 << 20))
    for name in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
        if (directory / name).exists():
            (directory / name).write_text("0" if memory.version == 2 else str(16 << 20))
    yield cgroup
    assert cgroup.kill()
    assert cgroup.remove()
    assert Cgroup(cgroup.path.rpartition("/")[0], host).remove()


async def test_the_kernels_own_kills_are_heard(limited: Cgroup) -> None:
    ears, told = OomEars(limited.host), list[int]()
    ear = ears.listen(limited, limited=True, told=0, is_ending=lambda: False, tell=told.append)
    assert ear is not None
    for number in (1, 2):
        with running(sys.executable, "-c", EATER) as eater:
            enter(limited, eater.pid)
            assert eater.stdin is not None
            eater.stdin.write(b"\n")
            eater.stdin.flush()
            await eventually(lambda: told and told[-1] == number)  # noqa: B023
            eater.wait()
    assert told == [1, 2]
    ear.close()
    ears.close()
