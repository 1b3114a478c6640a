"""A disk that becomes read-only under an engine, as after an error: what begins is refused, what ends has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_support import end_root, keeper_pid, running_in, written
from test_doctor_root import kill

from lighterman import Container, Engine, Resources, StoreError, limits
from lighterman.disks import is_read_only
from lighterman.roots import StateRoot
from support import eventually

pytestmark = pytest.mark.real

RULE = r"its file system is read-only: `dmesg` says since when, mend it and mount it read-write again"


class Disk:
    """An ext4 in a file, which can be made to fail.

    `takes_overwrites`: with some kernels (Debian 12's 6.1 of late) a failed ext4 refuses what needs its journal, and
    takes what needs no more than the blocks that a file has already.
    """

    def __init__(self, image: Path, path: Path) -> None:
        self.path = path
        self.root = path / "root"
        self.takes_overwrites = False
        self._image = image
        with image.open("wb") as file:
            file.truncate(300 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        self.mount()

    def mount(self) -> None:
        self.path.mkdir(exist_ok=True)
        options = "loop,errors=remount-ro"
        subprocess.run(["mount", "-t", "ext4", "-o", options, str(self._image), str(self.path)], check=True)

    def break_it(self) -> None:
        """What was not on the disk yet is lost, as with the power: so all of it is, before."""
        there = self.path / "there"
        there.write_bytes(bytes(4096))
        subprocess.run(["sync", "-f", str(self.path)], check=True)
        rows = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
        device = next(row[0] for row in rows if row[1] == str(self.path))
        Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("a test")
        assert is_read_only(str(self.root / "not" / "there"))
        try:
            with there.open("r+b") as file:
                file.write(bytes(range(256)))
                os.fsync(file)
        except OSError:
            return
        self.takes_overwrites = True

    def mend(self) -> None:
        """As at the next boot: nothing has it open."""
        if (Path(StateRoot.of(self.root).run) / "keeper.sock").exists():
            kill(keeper_pid(self.root))
        for name in os.listdir(self.root / "containers"):
            for pid in running_in(name):
                with contextlib.suppress(ProcessLookupError):  # with its init
                    kill(pid)
        subprocess.run(["umount", str(self.path)], check=True)
        subprocess.run(["e2fsck", "-fy", str(self._image)], check=False, capture_output=True)
        self.mount()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        made = Disk(tmp_path / "image", tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as failed:
        pytest.skip(f"no ext4 in a file can be mounted here: {failed}")
    yield made
    if is_read_only(str(made.path)):
        made.mend()
    end_root(made.root)
    subprocess.run(["umount", str(made.path)], check=True)


async def two(engine: Engine) -> tuple[Container, Container]:
    """One that runs, with an exec, and one that has never run."""
    script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"
    box = await engine.create("busybox", ["sh", "-c", script], name="box", lease=None)
    await box.start()
    await written(box, b"up")
    return box, await engine.create("busybox", ["true"], name="other", lease=None)


async def is_refused(disk: Disk, verb: Coroutine[Any, Any, object]) -> bool:
    try:
        await asyncio.wait_for(verb, 20)
    except StoreError as failed:
        said = str(failed)
    else:
        return False
    assert re.search(RULE, said), said
    assert said.startswith(f"{disk.root}/")
    assert "\n" not in said
    return True


async def test_P06_read_only_disk_refuses_what_begins_and_what_ends_has_ended(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STORE_RETRY_S", 0.05)
    monkeypatch.setattr(limits, "CANCEL_S", 1.0)
    async with Engine(root=disk.root) as engine:
        box, other = await two(engine)
        disk.break_it()
        verbs: dict[str, Coroutine[Any, Any, object]] = {
            "create": engine.create("busybox", ["true"], name="new", lease=None),
            "start": other.start(),
            "run": engine.run("busybox", ["true"]),
            "exec": box.exec(["true"]),
            "exec for a time": box.exec(["true"], timeout_s=1000),
            "start an exec": box.start_exec(["sleep", "1000"]),
            "update": box.update(Resources(memory_bytes=64 << 20)),
            "set the policy": box.set_restart_policy("on-failure:3"),
        }
        done = {name for name, verb in verbs.items() if not await is_refused(disk, verb)}
        # Those are no more than a line in the store, and as good as any other before a loss of power.
        assert done <= ({"create", "update", "set the policy"} if disk.takes_overwrites else set())
        new = {"new": "created"} if "create" in done else {}
        assert await box.execs() == []
        assert {one.name: one.status for one in await engine.containers()} == {
            "box": "running",
            "other": "created",
            **new,
        }
        exit = await asyncio.wait_for(box.stop(), 20)
        assert exit is not None
        assert exit.code == 9
        assert (await asyncio.wait_for(box.wait(), 20)).code == 9
        assert box.status == "exited"
    with pytest.raises(StoreError, match=f"state root can't be used: {disk.root}: {RULE}"):
        await Engine(root=disk.root).start()
    disk.mend()
    async with Engine(root=disk.root) as engine:
        found = {one.name: one.status for one in await engine.containers()}
        assert found | new == {"box": "exited", "other": "created", **new}
        kinds = [(event.kind, event.name) async for event in engine.events(after=0, follow=False)]
        assert [one for one in kinds if one[0] != "update" and one[1] != "new"] == [
            ("create", "box"),
            ("start", "box"),
            ("create", "other"),
            ("exit", "box"),
        ]
        await (await engine.get("other")).start()


async def test_P06_read_only_disk_holds_no_stop_up_where_another_end_waits_for_it(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STORE_RETRY_S", 0.05)
    monkeypatch.setattr(limits, "CANCEL_S", 1.0)
    async with Engine(root=disk.root) as engine:
        box, _ = await two(engine)
        process = await box.start_exec(["sleep", "1000"])

        async def told() -> bool:
            return "start-process" in [event.kind async for event in engine.events(after=0, follow=False)]

        await eventually(told)
        disk.break_it()
        await process.kill()
        assert (await asyncio.wait_for(process.wait(), 20)).signal == 9
        exit = await asyncio.wait_for(box.stop(), 20)
        assert exit is not None
        assert exit.code == 9
