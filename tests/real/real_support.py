"""What the tests on real containers share."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import lighterman
from lighterman import Container, Engine
from lighterman.logs.reader import LogRecord
from lighterman.roots import StateRoot
from support import eventually, eventually_sync

__all__ = [
    "cgroup_of",
    "descriptors",
    "end_root",
    "host_controller",
    "inside",
    "keeper_pid",
    "logged",
    "process_is_there",
    "records",
    "running_in",
    "the_two",
    "written",
]

KEEPER = str(Path(lighterman.__file__).with_name("keeper") / "__main__.py")


async def inside(engine: Engine, script: str, **options: object) -> str:
    """What a shell script prints in a new container; it must end well."""
    done = await engine.run("busybox", ["sh", "-c", script], **options)  # type: ignore[arg-type]
    assert done.exit.code == 0, (done.exit, done.stdout, done.stderr)
    return done.stdout.decode()


async def records(container: Container) -> list[LogRecord]:
    return [record async for record in container.logs()]


async def logged(container: Container, stream: str | None = "stdout") -> bytes:
    """All that is in a container's log of one stream, all runs together; None for both."""
    return b"".join(record.data for record in await records(container) if stream in (None, record.stream))


async def written(container: Container, wanted: bytes, timeout_s: float = 30.0) -> bytes:
    """Wait until the log holds `wanted`, and give back the whole of it."""

    async def there() -> bytes | None:
        text = await logged(container, None)
        return text if wanted in text else None

    text = await eventually(there, timeout_s)
    assert text is not None
    return text


def cgroup_of(pid: int, controller: str) -> Path:
    """The directory of a process's cgroup; for cgroup v2 the controller makes no difference."""
    unified = ""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return Path(f"/sys/fs/cgroup/{controller}{path}")
        if not names:
            unified = path
    root = "/sys/fs/cgroup/unified" if os.path.isdir("/sys/fs/cgroup/unified") else "/sys/fs/cgroup"
    return Path(f"{root}{unified}")


def host_controller(controller: str) -> str | None:
    """`v1` or `v2`: where this host has a controller; None where it has none."""
    if os.path.isdir(f"/sys/fs/cgroup/{controller}"):
        return "v1"
    for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        path = Path(root, "cgroup.controllers")
        if path.exists() and re.search(rf"\b{'io' if controller == 'blkio' else controller}\b", path.read_text()):
            return "v2"
    return None


def process_is_there(pid: int) -> bool:
    """Whether a process of that number runs, zombies apart."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def running_in(container_id: str) -> list[int]:
    """The processes whose cgroup is that of a container; not the dead ones, which its init may never reap."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if container_id in (directory / "cgroup").read_text() and process_is_there(int(directory.name)):
                found.append(int(directory.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def runs(pid: int, program: bytes) -> bool:
    """Whether it is the program itself, and not what the runtime was a moment before."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(program + b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def end_root(path: Path) -> None:
    """Remove every container of a root, whoever made it, and the root's part below RUN."""

    async def end() -> None:
        async with Engine(root=path) as engine:
            for box in await engine.containers():
                await box.remove(force=True)

    if path.exists():
        asyncio.run(end())
    run = Path(StateRoot.of(path).run)
    # The keeper removes its socket when it leaves for idleness.
    eventually_sync(lambda: not (run / "keeper.sock").exists())
    shutil.rmtree(run, ignore_errors=True)


def keeper_pid(root: Path | None = None) -> int:
    """The keeper of a root, or the only one of this checkout's private roots."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        at = next((at for at, word in enumerate(words) if word.endswith(b"keeper/__main__.py")), None)
        if b"-I" in words and at is not None:
            program, run = words[at].decode(), words[at + 1].decode()
            of_private = program == KEEPER and "/private/" in run
            if of_private if root is None else run == StateRoot.of(root).run:
                found.append(int(directory.name))
    assert len(found) == 1, found
    return found[0]


async def the_two(container: Container) -> list[int]:
    """The processes of a container with an init, once its program has been forked."""
    await eventually(lambda: len(running_in(container.id)) == 2)
    return sorted(running_in(container.id))


def descriptors(pid: int | str = "self") -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
