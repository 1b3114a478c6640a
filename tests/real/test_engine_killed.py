"""kill -9 of the engine and of the keeper: what is known stays exact, what is not is never made up."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from real_support import keeper_pid, logged, process_is_there, running_in

import lighterman
from lighterman import Container, Engine, LightermanError
from lighterman.keeper.client import KeeperClient
from lighterman.keeper.slots import read_exit_slots
from lighterman.lifecycle.status import Status
from lighterman.runtimes.oci import processes
from support import eventually, leaked_since, snapshot

pytestmark = pytest.mark.real

LINES = 400
BOXES = 6

# Each writes numbered lines on both streams and ends with a code of its own; started by an engine that will be killed.
OWNER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from lighterman import Engine
async def main():
    root, runtime, boxes, lines = sys.argv[2] or None, sys.argv[3] or None, int(sys.argv[4]), int(sys.argv[5])
    async with Engine(root=root, runtime=runtime) as engine:
        script = (
            "i=0; while [ $i -lt %d ]; do echo out $i; echo err $i >&2; i=$((i+1)); "
            "[ $((i %% 20)) = 0 ] && sleep 0.02; done; exit %d"
        )
        for number in range(boxes):
            argv = ["sh", "-c", script % (lines, number + 1)] if lines else ["sleep", "1000"]
            box = await engine.create("busybox", argv, name=f"box{number}", lease=None if root else "process")
            await box.start()
            print(box.pid, box.id, flush=True)
        print("started", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


class Owner:
    """A process with an engine."""

    def __init__(self, root: Path | None, *, runtime: str = "", boxes: int = BOXES, lines: int = LINES) -> None:
        source = str(Path(lighterman.__file__).parent.parent)
        arguments = [source, str(root or ""), runtime, str(boxes), str(lines)]
        self.process = subprocess.Popen([sys.executable, "-c", OWNER, *arguments], stdout=subprocess.PIPE, text=True)
        self.pids: list[int] = []
        self.ids: list[str] = []

    def wait_started(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "started\n":
                return
            pid, id = line.split()
            self.pids.append(int(pid))
            self.ids.append(id)
        raise AssertionError(f"the engine ended with {self.process.wait()}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


async def all_is_there(box: Container, number: int, lines: int = LINES) -> None:
    exit = await asyncio.wait_for(box.wait(), 90)
    assert (exit.code, exit.signal, exit.unknown) == (number + 1, None, None), box
    for stream, word in (("stdout", "out"), ("stderr", "err")):
        assert await logged(box, stream) == b"".join(b"%s %d\n" % (word.encode(), n) for n in range(lines)), box


async def test_engine_killed_while_containers_write_every_line_is_there_once(root: Path, real_runtime: str) -> None:
    owner = await asyncio.to_thread(Owner, root, runtime=real_runtime)
    await asyncio.to_thread(owner.wait_started)
    owner.kill()
    async with Engine(root=root) as engine:
        found = {box.name: box for box in await engine.containers()}
        assert set(found) == {f"box{number}" for number in range(BOXES)}
        for number in range(BOXES):
            await all_is_there(found[f"box{number}"], number)


@pytest.mark.parametrize("seed", range(3))
async def test_engines_killed_again_and_again_every_line_is_there_once(root: Path, seed: int) -> None:
    chance = random.Random(seed)
    owner = await asyncio.to_thread(Owner, root)
    await asyncio.to_thread(owner.wait_started)
    for _ in range(4):
        await asyncio.sleep(chance.random() * 0.1)
        owner.kill()
        await asyncio.sleep(chance.random() * 0.05)
        # It only takes over what there is.
        owner = await asyncio.to_thread(Owner, root, boxes=0)
        if chance.random() < 0.7:
            await asyncio.to_thread(owner.wait_started)
    owner.kill()
    async with Engine(root=root) as engine:
        found = {box.name: box for box in await engine.containers()}
        for number in range(BOXES):
            await all_is_there(found[f"box{number}"], number)


@pytest.mark.parametrize("seed", range(4))
async def test_engine_killed_while_it_starts_containers_none_is_lost_or_half(root: Path, seed: int) -> None:
    chance = random.Random(seed)
    owner = await asyncio.to_thread(Owner, root, boxes=30, lines=0)
    await eventually(lambda: (root / "state.db").exists())
    await asyncio.sleep(0.05 + chance.random() * 0.4)
    owner.kill()
    async with Engine(root=root) as engine:
        for box in await engine.containers():
            if box.status is Status.RUNNING:
                assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"
            else:
                assert box.status in (Status.CREATED, Status.EXITED), box
                assert not running_in(box.id)
                await box.start()
            await box.remove(force=True)
        assert await engine.containers() == []


async def test_engine_killed_containers_end_meanwhile_codes_are_exact(root: Path, real_runtime: str) -> None:
    owner = await asyncio.to_thread(Owner, root, runtime=real_runtime, lines=1)
    await asyncio.to_thread(owner.wait_started)
    owner.kill()
    await eventually(lambda: not any(map(process_is_there, owner.pids)))
    async with Engine(root=root) as engine:
        for number in range(BOXES):
            await all_is_there(await engine.get(f"box{number}"), number, 1)


async def test_private_engine_killed_the_next_one_sweeps_what_it_left() -> None:
    before = snapshot()
    owner = await asyncio.to_thread(Owner, None, boxes=3, lines=0)
    await asyncio.to_thread(owner.wait_started)
    owner.kill()
    async with Engine() as engine:
        await eventually(lambda: not any(map(process_is_there, owner.pids)))
        assert not any(running_in(id) for id in owner.ids)
        assert (await engine.run("busybox", ["true"])).ok
    left = await asyncio.to_thread(leaked_since, before)
    assert not left


async def test_private_engine_killed_its_containers_do_not_outlive_it() -> None:
    before = snapshot()
    owner = await asyncio.to_thread(Owner, None, boxes=3, lines=0)
    await asyncio.to_thread(owner.wait_started)
    owner.kill()
    # By the keeper alone: no further engine is there to do it.
    await eventually(lambda: not any(map(process_is_there, owner.pids)))
    left = await asyncio.to_thread(leaked_since, before)
    assert not left


# ---- the keeper --------------------------------------------------------------------------------------------------


async def test_keeper_killed_end_is_seen_and_never_made_up(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "read x; exit 7"], stdin=True) as box:
        os.kill(keeper_pid(), signal.SIGKILL)
        box.stdin.write(b"\n")
        exit = await asyncio.wait_for(box.wait(), 60)
        assert exit.code == 7 or exit.unknown, exit
        assert box.status is Status.EXITED


@pytest.mark.parametrize("delay_s", [number / 500 for number in range(0, 24, 2)])
async def test_keeper_killed_during_a_start_the_start_ends_and_nothing_is_left(engine: Engine, delay_s: float) -> None:
    before, keeper = snapshot(), keeper_pid()
    running = asyncio.create_task(engine.run("busybox", ["sh", "-c", "exit 7"]))
    await asyncio.wait((running,), timeout=delay_s)
    os.kill(keeper, signal.SIGKILL)
    try:
        done = await asyncio.wait_for(running, 60)
    except LightermanError:
        assert await engine.containers() == []
    else:
        assert done.exit.code == 7 or done.exit.unknown, done

    async def only_another_keeper() -> bool:
        left = await asyncio.to_thread(leaked_since, before, 0)
        return all("keeper/__main__.py" in one for one in left)

    await eventually(only_another_keeper)


async def test_P01_keeper_killed_between_writing_an_exit_down_and_telling_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.15 the kernel tells nobody but a parent: what the keeper has written down is all there is."""
    monkeypatch.setattr(processes, "pidfd_exit_status", lambda _: None)
    told = KeeperClient._note_exits
    # What comes unasked is lost with the connection; what is asked for is answered.
    monkeypatch.setattr(KeeperClient, "_note_exits", lambda _self, _exits: None)
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], lease=None)
        await box.start()
        process = await box.start_exec(["sh", "-c", "read x; exit 5"], stdin=True)
        other = await engine.create("busybox", ["sh", "-c", "read x; exit 7"], lease=None, stdin=True)
        await other.start()
        other.stdin.write(b"\n")
        process.stdin.write(b"\n")

        def written_down() -> int:
            files = (root / "exits").iterdir()
            return sum(slot.pid in (other.pid, process.pid) for file in files for slot in read_exit_slots(str(file)))

        await eventually(lambda: written_down() == 2)
        os.kill(keeper_pid(root), signal.SIGKILL)
        assert (await asyncio.wait_for(other.wait(), 60)).code == 7
        assert (await asyncio.wait_for(process.wait(), 60)).code == 5
        monkeypatch.setattr(KeeperClient, "_note_exits", told)


async def test_keeper_killed_a_signal_is_seen_and_never_made_up(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        os.kill(keeper_pid(), signal.SIGKILL)
        exit = await asyncio.wait_for(box.stop(grace_s=0), 60)
        assert exit is not None
        assert exit.signal == 9 or exit.unknown, exit
        assert exit.code is None


async def test_keeper_killed_the_engine_works_on(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        os.kill(keeper_pid(), signal.SIGKILL)

        async def works() -> bool:
            try:
                return (await engine.run("busybox", ["echo", "fine"])).stdout == b"fine\n"
            except lighterman.KeeperLost:
                return False

        await eventually(works)
        assert process_is_there(box.pid)
        assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"


async def test_engine_and_keeper_killed_container_is_adopted_and_code_not_made_up(root: Path) -> None:
    owner = await asyncio.to_thread(Owner, root, boxes=3, lines=0)
    await asyncio.to_thread(owner.wait_started)
    os.kill(keeper_pid(root), signal.SIGKILL)
    owner.kill()
    os.kill(owner.pids[0], signal.SIGKILL)
    await eventually(lambda: not process_is_there(owner.pids[0]))
    async with Engine(root=root) as engine:
        gone = await asyncio.wait_for((await engine.get("box0")).wait(), 60)
        assert gone.unknown or gone.signal == 9, gone
        assert gone.code is None
        alive = await engine.get("box1")
        assert alive.status is Status.RUNNING
        assert process_is_there(owner.pids[1])
        exit = await asyncio.wait_for(alive.stop(grace_s=0), 60)
        assert exit is not None
        assert exit.unknown or exit.signal == 9, exit
        assert not process_is_there(owner.pids[1])
    # The keeper of that engine never knew the last one: it is found once more all the same.
    async with Engine(root=root) as engine:
        last = await engine.get("box2")
        assert (last.status, last.pid) == (Status.RUNNING, owner.pids[2])
        await last.remove(force=True)
        assert not process_is_there(owner.pids[2])
