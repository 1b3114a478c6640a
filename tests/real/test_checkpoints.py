"""Checkpoints: what was running goes on where it was, the same container, no byte of output lost or doubled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from real_support import cgroup_of, logged, written

from lighterman import AlreadyExists, Container, Engine, InvalidSpec, InvalidState, NotFound, NotSupported
from lighterman.lifecycle.status import Status
from lighterman.runtimes.oci import checkpointing
from lighterman.runtimes.oci.checkpointing import why_no_checkpoints
from support import eventually

pytestmark = pytest.mark.real

needs_criu = pytest.mark.needs("criu")

# Counts on both streams and in a file; the code at the end tells where it had begun.
COUNT = (
    "i=0; while [ $i -lt 60 ]; do echo $i; echo err $i >&2; i=$((i+1)); echo $i > /count; sleep 0.1; done; "
    'echo "$$ $(hostname)"; exit 7'
)


@pytest.fixture
async def runc() -> AsyncIterator[Engine]:
    async with Engine(runtime="runc") as engine:
        yield engine


def numbers(upto: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(upto))


async def counting(engine: Engine, **options: object) -> Container:
    box = await engine.create("busybox", ["sh", "-c", COUNT], name="counter", **options)  # type: ignore[arg-type]
    await box.start()
    await written(box, b"err 5\n")
    return box


# ---- where it works ----------------------------------------------------------------------------------------------


@needs_criu
async def test_checkpoint_ends_it_and_it_goes_on_from_there(runc: Engine) -> None:
    box = await counting(runc, hostname="same", restart="always")
    id = box.id
    await box.checkpoint("one")
    assert box.status is Status.EXITED
    assert box.exit is not None
    assert (box.exit.signal, box.exit.reason) == (9, "checkpoint")
    before = await logged(box)
    cursor = [record async for record in box.logs()][-1].cursor
    assert before == numbers(before.count(b"\n"))
    assert list(await box.checkpoints()) == ["one"]

    await box.set_restart_policy("no")
    await box.start(checkpoint="one")
    assert box.id == id
    exit = await asyncio.wait_for(box.wait(), 300)
    assert (exit.code, exit.signal, exit.generation) == (7, None, 2)
    assert await logged(box) == numbers(60) + b"1 same\n"
    assert await logged(box, "stderr") == b"".join(b"err %d\n" % number for number in range(60))
    later = b"".join([one.data async for one in box.logs(after=cursor, streams="stdout")])
    assert before + later == numbers(60) + b"1 same\n"
    kinds = [event.kind async for event in runc.events(after=0, container=id, follow=False)]
    # The first run's end and that it was saved are told at the same time.
    assert sorted(kinds[2:4]) == ["checkpoint", "exit"]
    assert kinds[:2] + kinds[4:] == ["create", "start", "start", "exit"]
    await box.remove()


@needs_criu
async def test_checkpoint_leaves_it_running_and_files_come_back(runc: Engine) -> None:
    box = await counting(runc)
    # What is saved is not older; afterwards it counts on, faster than a slow host looks.
    at = (await logged(box)).count(b"\n")
    await box.checkpoint("early", leave_running=True)
    assert box.status is Status.RUNNING
    assert (await asyncio.wait_for(box.wait(), 300)).code == 7
    assert await logged(box) == numbers(60) + f"1 {box.id[:12]}\n".encode()
    before = len(await logged(box))
    # As often as wanted; each time with the count that its file had then.
    for _ in range(2):
        await box.start(checkpoint="early")
        found = await box.exec(["cat", "/count"])
        assert int(found.stdout) >= at - 1
        assert (await asyncio.wait_for(box.wait(), 300)).code == 7
        said = (await logged(box))[before:]
        before += len(said)
        first = int(said.split()[0])
        assert first >= at - 1
        assert said.split()[:-2] == [b"%d" % number for number in range(first, 60)]
    await box.remove()


@needs_criu
async def test_stdin_is_connected_anew(runc: Engine) -> None:
    box = await runc.create("busybox", ["sh", "-c", "while read x; do echo got $x; done; exit 3"], stdin=True)
    await box.start()
    box.stdin.write(b"one\n")
    await written(box, b"got one\n")
    await box.checkpoint("one")
    await box.start(checkpoint="one")
    box.stdin.write(b"two\n")
    box.stdin.write_eof()
    assert (await asyncio.wait_for(box.wait(), 300)).code == 3
    assert await logged(box) == b"got one\ngot two\n"
    await box.remove()


@needs_criu
async def test_another_container_goes_on_from_a_copy(root: Path) -> None:
    async with Engine(root=root, runtime="runc") as engine:
        box = await counting(engine, hostname="same", memory="64MiB")
        await box.checkpoint("one", leave_running=True)
        copies = [
            await engine.create(name=f"copy{number}", checkpoint="counter/one", lease=lease)
            for number, lease in enumerate(("process", None))
        ]
        assert [list(await copy.checkpoints()) for copy in copies] == [["one"], ["one"]]
        await copies[0].start()
        await written(copies[0], b"err 30\n")
        await copies[0].pause()
        pids = [process.pid for process in await copies[0].top()]
        assert copies[0].pid in pids
        assert {cgroup_of(pid, "memory").name for pid in pids} == {copies[0].id}
        assert int((cgroup_of(pids[0], "memory") / "memory.max").read_text()) == 64 << 20
        await copies[0].resume()
        assert (await copies[0].exec(["cat", "/proc/1/cgroup"])).stdout == b"0::/\n"
        assert (await asyncio.wait_for(copies[0].wait(), 300)).code == 7
        await box.wait()
        await box.remove()
    async with Engine(root=root, runtime="runc") as engine:
        copy = await engine.get("copy1")
        await copy.start()
        assert (await asyncio.wait_for(copy.wait(), 300)).code == 7
        said = await logged(copy)
        first = int(said.split()[0])
        assert first > 3
        assert said == b"".join(b"%d\n" % number for number in range(first, 60)) + b"1 same\n"
        # The next run is a fresh one, unless asked for otherwise.
        await copy.start()

        async def from_the_beginning() -> bool:
            return (await logged(copy)).startswith(said + b"0\n")

        await eventually(from_the_beginning)
        await copy.remove(force=True)


@needs_criu
async def test_copy_of_half_a_checkpoint_is_refused_and_leaves_nothing(root: Path) -> None:
    async with Engine(root=root, runtime="runc") as engine:
        box = await counting(engine)
        await box.checkpoint("one")
        (root / "containers" / box.id / "checkpoints/one/images/inventory.img").unlink()
        with pytest.raises(NotFound, match="whole"):
            await engine.create(checkpoint="counter/one")
        assert os.listdir(root / "containers") == [box.id]
        assert [one.name for one in await engine.containers()] == ["counter"]
        await box.remove()


@needs_criu
async def test_a_later_engine_starts_from_it(root: Path) -> None:
    async with Engine(root=root, runtime="runc") as engine:
        box = await counting(engine, lease=None)
        await box.checkpoint("one")
    async with Engine(root=root, runtime="runc") as engine:
        box = await engine.get("counter")
        assert box.exit is not None
        assert box.exit.reason == "checkpoint"
        await box.start(checkpoint="one")
        assert (await asyncio.wait_for(box.wait(), 300)).code == 7
        assert await logged(box) == numbers(60) + f"1 {box.id[:12]}\n".encode()
        await box.remove()


@needs_criu
async def test_one_that_an_earlier_engine_has_started_is_saved(root: Path) -> None:
    async with Engine(root=root, runtime="runc") as engine:
        await counting(engine, lease=None)
    async with Engine(root=root, runtime="runc") as engine:
        box = await engine.get("counter")
        await box.checkpoint("one")
        await box.start(checkpoint="one")
        assert (await asyncio.wait_for(box.wait(), 300)).code == 7
        assert await logged(box) == numbers(60) + f"1 {box.id[:12]}\n".encode()
        await box.remove()


@needs_criu
async def test_paused_one_stays_paused(runc: Engine) -> None:
    box = await counting(runc)
    await box.pause()
    await box.checkpoint("one", leave_running=True)
    assert box.status is Status.PAUSED
    assert (await box.stats()).pids is not None
    await box.resume()
    assert (await asyncio.wait_for(box.wait(), 300)).code == 7
    await box.remove()


@needs_criu
async def test_what_can_not_be_saved_is_an_error_and_it_goes_on(runc: Engine) -> None:
    async with runc.container("busybox", ["sleep", "1000"]) as box:
        process = await box.start_exec(["sleep", "1000"])
        with pytest.raises(InvalidState, match="exec"):
            await box.checkpoint("one")
        await process.kill()
        await process.wait()
        assert list(await box.checkpoints()) == []
        assert box.status is Status.RUNNING
        await box.checkpoint("one", leave_running=True)
        with pytest.raises(AlreadyExists):
            await box.checkpoint("one", leave_running=True)
        assert list(await box.checkpoints()) == ["one"]
        assert box.status is Status.RUNNING
        assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"


def cut_short(box: Container) -> None:
    (image,) = Path("/var/lib/lighterman").rglob(f"{box.id}/checkpoints/one/images/inventory.img")
    image.unlink()


@needs_criu
async def test_half_a_checkpoint_is_said_to_be_one(runc: Engine) -> None:
    box = await counting(runc)
    await box.checkpoint("one")
    await asyncio.to_thread(cut_short, box)
    with pytest.raises(NotFound, match="whole"):
        await box.start(checkpoint="one")
    assert box.status is not Status.RUNNING
    await box.delete_checkpoint("one")
    assert list(await box.checkpoints()) == []
    await box.remove()


# ---- where it does not, and what is wrong anywhere ---------------------------------------------------------------


async def test_crun_says_why_not(tmp_path: Path) -> None:
    async with Engine(runtime="crun") as engine, engine.container("busybox", ["sleep", "1000"]) as box:
        with pytest.raises(NotSupported, match="runtime='runc'"):
            await box.checkpoint("one")
        assert list(await box.checkpoints()) == []
        assert box.status is Status.RUNNING
        assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"


async def test_runc_says_what_the_preflight_said(runc: Engine) -> None:
    why = await asyncio.to_thread(why_no_checkpoints, "runc")
    if why is None:
        pytest.skip("checkpoints are possible here")
    async with runc.container("busybox", ["sleep", "1000"]) as box:
        with pytest.raises(NotSupported) as refused:
            await box.checkpoint("one")
        assert why in str(refused.value)
        assert list(await box.checkpoints()) == []
        assert box.status is Status.RUNNING


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "/etc/x", "a/b", "a\0b", "-x", ".hidden", "n" * 129, "ü", 5])
async def test_names_that_are_none(runc: Engine, name: str) -> None:
    box = await runc.create("busybox", ["true"])
    for verb in (box.checkpoint(name), box.delete_checkpoint(name), box.start(checkpoint=name)):
        with pytest.raises(InvalidSpec, match="checkpoint name"):
            await verb
    await box.remove()


async def test_checkpoints_that_are_not_there(runc: Engine) -> None:
    box = await runc.create("busybox", ["true"])
    assert list(await box.checkpoints()) == []
    with pytest.raises(NotFound, match="none"):
        await box.start(checkpoint="none")
    with pytest.raises(NotFound, match="none"):
        await box.delete_checkpoint("none")
    with pytest.raises(InvalidState):
        await box.checkpoint("one")
    assert box.status is Status.CREATED
    await box.remove()


@pytest.mark.parametrize("place", ["", "/", "one", "box/", "box/../up", "box/a/b", "/one", "box/-x", 5])
async def test_places_that_are_none(runc: Engine, place: str) -> None:
    box = await runc.create("busybox", ["true"], name="box")
    with pytest.raises((InvalidSpec, NotFound), match=r"checkpoint|container"):
        await runc.create(checkpoint=place)
    with pytest.raises(NotFound, match="no checkpoint"):
        await runc.create(checkpoint="box/none")
    with pytest.raises(NotFound, match="other"):
        await runc.create(checkpoint="other/one")
    assert [one.name for one in await runc.containers()] == ["box"]
    await box.remove()


async def test_copy_is_asked_for_nothing_else(runc: Engine) -> None:
    for image, argv, more in (("busybox", [], {}), (None, ["true"], {}), (None, [], {"env": {"a": "b"}})):
        with pytest.raises(InvalidSpec, match="as the one that was saved"):
            await runc.create(image, argv, checkpoint="box/one", **more)  # type: ignore[arg-type]


def program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_preflight_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing, "_SBIN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "defpath", str(tmp_path))
    assert "criu is not installed" in (why_no_checkpoints("runc") or "")
    program(tmp_path, "criu", "echo 'Error (criu/cr-check.c:1): the kernel is too\tnew' >&2; exit 1")
    assert "iptables" in (why_no_checkpoints("runc") or "")
    program(tmp_path, "iptables-restore", "exit 0")
    assert (why_no_checkpoints("runc") or "").endswith("Error (criu/cr-check.c:1): the kernel is too new")
    program(tmp_path, "criu", "exit 3")
    assert "exit status 3" in (why_no_checkpoints("runc") or "")
    program(tmp_path, "criu", "echo Looks good.; exit 0")
    assert why_no_checkpoints("runc") is None
    assert "runc" in (why_no_checkpoints("crun") or "")
