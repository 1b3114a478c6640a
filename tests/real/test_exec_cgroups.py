"""Each exec in a cgroup of its own, where the host has version 2: nothing that it starts escapes its end."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from real_support import cgroup_of, process_is_there, running_in

from lighterman import CommandNotFound, Container, Engine
from support import eventually

pytestmark = [pytest.mark.real, pytest.mark.needs("v2")]

# Sessions of their own, and parents that have ended before anybody can list them.
DAEMONS = "(setsid sh -c '(setsid sleep 1000 &) ; (sleep 999 &)' &) ; (setsid sleep 998 &)"


@pytest.fixture
async def box(engine: Engine) -> AsyncIterator[Container]:
    async with engine.container("busybox", ["sleep", "1000"], pids_limit=300) as box:
        yield box


def below(box: Container) -> list[str]:
    """The cgroups within the container's."""
    return [path.name for path in cgroup_of(box.pid, "").iterdir() if path.is_dir()]


async def only_init(box: Container) -> None:
    await eventually(lambda: running_in(box.id) == [box.pid])


async def test_an_exec_is_in_its_own_from_its_first_instruction(box: Container) -> None:
    said = (await box.exec(["cat", "/proc/self/cgroup"])).stdout.decode().strip()
    assert said.startswith("0::/lighterman-exec-")
    process = await box.start_exec(["sleep", "1000"])
    own = cgroup_of(process.pid, "")
    assert own.parent == cgroup_of(box.pid, "")
    assert (own / "cgroup.procs").read_text().split() == [str(process.pid)]
    # No controller is on for it, so that nothing had to be moved.
    assert (own.parent / "cgroup.subtree_control").read_text().split() == []
    await process.kill()
    await process.wait()


async def test_it_goes_with_its_exec(box: Container) -> None:
    for _ in range(3):
        assert (await box.exec(["true"])).ok
    await asyncio.gather(*(box.exec(["sh", "-c", f"exit {n}"]) for n in range(20)))
    await eventually(lambda: below(box) == [])


async def test_one_that_fails_to_start_leaves_none(box: Container) -> None:
    with pytest.raises(CommandNotFound):
        await box.exec(["no-such-program"])
    await eventually(lambda: below(box) == [])


async def test_P04_killing_ends_its_daemons_too(box: Container) -> None:
    process = await box.start_exec(["sh", "-c", f"{DAEMONS}; sleep 1000; :"])
    await eventually(lambda: len(running_in(box.id)) == 6)
    await process.kill()
    assert (await process.wait()).signal == 9
    await only_init(box)
    await eventually(lambda: below(box) == [])


async def test_P04_timeout_ends_its_daemons_too(box: Container) -> None:
    done = await box.exec(["sh", "-c", f"{DAEMONS}; sleep 1000; :"], timeout_s=2)
    assert done.exit.reason == "timeout"
    await only_init(box)


async def test_what_it_leaves_behind_by_its_own_end_lives_on(box: Container) -> None:
    done = await box.exec(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"])
    assert done.exit.ok
    (left,) = set(running_in(box.id)) - {box.pid}
    assert process_is_there(left)
    assert len(below(box)) == 1
    # It is the container's now, and its cgroup goes once it has ended.
    await box.exec(["kill", "-9", done.stdout.decode().strip()])
    await only_init(box)
    await box.exec(["true"])
    await eventually(lambda: below(box) == [])


async def test_the_containers_end_takes_all_of_them(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "read x; exit 4"], stdin=True) as box:
        processes = [await box.start_exec(["sh", "-c", f"{DAEMONS}; sleep 1000; :"]) for _ in range(3)]
        assert (await box.exec(["sh", "-c", DAEMONS])).ok
        top = cgroup_of(box.pid, "")
        box.stdin.write(b"\n")
        assert (await box.wait()).code == 4
        assert [process.exit.signal for process in processes if process.exit] == [9, 9, 9]
        await eventually(lambda: not top.exists())


async def test_pause_and_statistics_are_of_all(box: Container) -> None:
    process = await box.start_exec(["sleep", "1000"])
    assert (await box.stats()).pids == 2
    await box.pause()
    assert "frozen 1" in (cgroup_of(process.pid, "") / "cgroup.events").read_text()
    await box.resume()
    await process.kill()
    await process.wait()


async def test_P04_found_again_its_daemons_are_ended_with_it(root: Path) -> None:
    scripts = [f"{DAEMONS}; sleep 1000; :", f"{DAEMONS}; sleep 1; :"]
    owner = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("exec_owner.py")),
        str(root),
        json.dumps(scripts),
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout is not None
    ids = [(await owner.stdout.readline()).decode().strip() for _ in scripts]
    owner.kill()
    await owner.wait()
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        await eventually(lambda: len(running_in(box.id)) == 9)
        running, ended = [await box.get_exec(id) for id in ids]
        assert (await ended.wait()).code == 0
        await running.kill()
        assert (await running.wait()).signal == 9
        # The daemons of the one that had ended by itself live on.
        await eventually(lambda: len(running_in(box.id)) == 4)
        await eventually(lambda: len(below(box)) == 1)
        await box.stop(grace_s=0)
