"""What no signal ends, for real: who writes to a frozen file system sleeps uninterruptibly until that is thawed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from real_support import process_is_there

from lighterman import Engine, LightermanError, Unkillable, limits
from support import eventually

pytestmark = pytest.mark.real

LIMIT_S = 60.0
TOOLS = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
WRITES = "while :; do echo x >> /d/f; sleep 0.02; done"


def tool(*words: str) -> None:
    """Run one. Raises: OSError with what it said."""
    done = subprocess.run(words, env={"PATH": TOOLS}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{words[0]}: {done.stderr.strip()}")


class Disk:
    """A file system in a file, of its own, so that nobody else stands still with it."""

    def __init__(self, directory: Path) -> None:
        self.image, self.path = directory / "image", directory / "disk"

    def mount(self) -> None:
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(16 << 20)
        tool("mkfs.ext4", "-q", "-F", str(self.image))
        tool("mount", "-o", "loop", str(self.image), str(self.path))

    def freeze(self) -> None:
        tool("fsfreeze", "--freeze", str(self.path))

    def thaw(self) -> None:
        tool("fsfreeze", "--unfreeze", str(self.path))

    def unmount(self) -> None:
        with contextlib.suppress(OSError):
            self.thaw()
        if self.path.is_mount():
            tool("umount", str(self.path))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    missing = [name for name in ("mkfs.ext4", "mount", "umount", "fsfreeze") if shutil.which(name, path=TOOLS) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed, and no file system to freeze without")
    made = Disk(tmp_path)
    try:
        try:
            made.mount()
            made.freeze()
            made.thaw()
        except OSError as failed:
            pytest.skip(f"no file system can be frozen here: {failed}")
        yield made
    finally:
        made.unmount()


def sleeps(pid: int) -> bool:
    """Whether a process is in an uninterruptible sleep."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


async def test_P06_every_verb_ends_and_says_what_hangs(
    disk: Disk, real_runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KILL_WAIT_S", 1.0)
    async with Engine(runtime=real_runtime) as engine, engine.container("busybox", ["sleep", "1000"]) as other:
        box = await engine.create("busybox", ["sh", "-c", WRITES], mounts=[f"{disk.path}:/d"])
        await box.start()
        disk.freeze()
        try:
            await eventually(lambda: sleeps(box.pid), LIMIT_S)
            verbs: dict[str, Callable[[], Awaitable[object]]] = {
                "stop": lambda: box.stop(grace_s=0.1),
                "kill": box.kill,
                "pause": box.pause,
                "stats": box.stats,
                "top": box.top,
                "exec": lambda: box.exec(["true"], timeout_s=1),
                "remove": lambda: box.remove(force=True),
                "two removes": lambda: asyncio.gather(
                    box.remove(force=True), box.remove(force=True), return_exceptions=True
                ),
            }
            for name, verb in verbs.items():
                asked = time.monotonic()
                under_way = asyncio.ensure_future(verb())
                # Nobody else is held up.
                assert (await asyncio.wait_for(other.exec(["true"]), LIMIT_S)).ok
                await asyncio.wait((under_way,), timeout=LIMIT_S)
                assert under_way.done(), name
                failed = under_way.exception()
                assert failed is None or isinstance(failed, LightermanError), (name, failed)
                said = under_way.result() if name == "two removes" else [failed]
                if name in ("stop", "kill", "remove", "two removes"):
                    assert isinstance(said, list)
                    for one in said:
                        assert isinstance(one, Unkillable), (name, one)
                        assert (one.pid, one.container) == (box.pid, box.id)
                        assert 0.5 <= one.since_s <= time.monotonic() - asked + LIMIT_S
                        assert one.where is not None
                        assert one.where.startswith(f"pid {box.pid} in ")
            assert box.status == "running"
        finally:
            disk.thaw()
        exit = await box.wait(timeout_s=LIMIT_S)
        assert (exit.signal, exit.reason) == (9, "stop")
        await box.remove()


OWNER = """
import asyncio, sys
from lighterman import Engine
async def main():
    engine = Engine()
    await engine.start()
    box = await engine.create("busybox", ["sh", "-c", sys.argv[2]], mounts=[f"{sys.argv[1]}:/d"])
    await box.start()
    print(box.id, box.pid, engine._root.state, engine._root.run, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await engine.close()
    async with Engine() as another:
        print((await another.run("busybox", ["true"])).exit.code, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""


def what_is_left(id: str, pid: int, *directories: str) -> list[str]:
    groups = [where for where, _, _ in os.walk("/sys/fs/cgroup") if where.endswith(f"/{id}")]
    return groups + [path for path in (*directories, f"/proc/{pid}") if os.path.exists(path)]


@pytest.mark.parametrize("program", ["lives", "ends"])
async def test_private_root_is_left_to_its_keeper_and_goes_whole_in_the_end(disk: Disk, program: str) -> None:
    limits_there = {"LIGHTERMAN_KILL_WAIT_S": "0.5", "LIGHTERMAN_CANCEL_S": "1"}
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(disk.path), WRITES,
        env={**os.environ, **limits_there}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdin is not None
    try:
        id, number, *directories = (await owner.stdout.readline()).decode().split()
        pid = int(number)
        disk.freeze()
        try:
            await eventually(lambda: sleeps(pid), LIMIT_S)
            owner.stdin.write(b"close\n")
            assert await asyncio.wait_for(owner.stdout.readline(), LIMIT_S) == b"0\n"
            if program == "ends":
                owner.stdin.write(b"end\n")
                await owner.wait()
            # An engine that finds it there is not held up, and takes nothing away.
            async with Engine() as engine:
                assert (await engine.run("busybox", ["true"])).exit.ok
            assert process_is_there(pid)
            assert {f"/proc/{pid}", *directories} <= set(what_is_left(id, pid, *directories))
        finally:
            disk.thaw()
        await eventually(lambda: not what_is_left(id, pid, *directories), LIMIT_S)
    finally:
        if owner.returncode is None:
            owner.kill()
            await owner.wait()
