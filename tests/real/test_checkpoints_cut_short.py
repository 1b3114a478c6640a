"""Checkpoints that something comes in between of, with a stand-in for CRIU: so on every host with runc."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from real_support import keeper_pid, process_is_there

from lighterman import (
    AlreadyExists,
    AlreadyStopped,
    Container,
    Engine,
    Exec,
    HealthCheck,
    InvalidState,
    NotFound,
    NotSupported,
)
from lighterman.entry import Entry
from lighterman.errors import RuntimeFailed, StoreError
from lighterman.lifecycle.status import Status
from lighterman.logs.container import ContainerLog
from lighterman.logs.sink import OutputSink
from lighterman.runtimes.oci import copying
from lighterman.runtimes.oci.cgroups import MountOptions
from support import eventually

pytestmark = pytest.mark.real

HERE = Path(__file__).parent
SLOW_CP = """#!/bin/sh
echo $$ > {here}/copying
while [ -e {here}/hold-copy ]; do sleep 0.02; done
exec {cp} "$@"
"""


class StandIn:
    """The directory of the programs that stand in for others."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def program(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)
        (self.directory / name).chmod(0o755)

    def hold(self, what: str) -> None:
        (self.directory / f"hold-{what}").touch()

    def let_go(self, what: str) -> None:
        (self.directory / f"hold-{what}").unlink()

    async def begun(self, what: str) -> None:
        # The first engine of these programs tries all of the runtimes before.
        await eventually((self.directory / f"{what}-begun").exists, 120.0)

    def copier(self) -> int | None:
        """The pid of a copy that has begun."""
        try:
            return int((self.directory / "copying").read_text())
        except (FileNotFoundError, ValueError):
            return None

    async def copying(self) -> int:
        pid = await eventually(self.copier)
        assert pid is not None
        return pid


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    real = shutil.which("runc")
    if real is None:
        pytest.skip("runc is not installed")
    directory = tmp_path / "bin"
    directory.mkdir()
    made = StandIn(directory)
    (directory / "real").symlink_to(real)
    shutil.copy(HERE / "runc_without_criu.sh", directory / "runc")
    for name in ("criu", "iptables-restore"):
        made.program(name, "#!/bin/sh\nexit 0\n")
    made.program("cp", SLOW_CP.format(here=directory, cp=copying.program()))
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return made


@pytest.fixture
def slow_copy(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setattr(copying, "program", lambda: str(stand_in.directory / "cp"))
    return stand_in


@pytest.fixture
async def runc(stand_in: StandIn, root: Path) -> AsyncIterator[Engine]:
    async with Engine(root=root, runtime="runc") as engine:
        yield engine


async def killed_over(root: Path, what: str, reached: Callable[[], Awaitable[object]]) -> None:
    """Run the program until it has `reached` that, and kill it."""
    saver = await asyncio.create_subprocess_exec(sys.executable, str(HERE / "saver.py"), str(root), what)
    try:
        await reached()
    finally:
        saver.kill()
        await saver.wait()


async def sleeping(engine: Engine, **options: object) -> Container:
    box = await engine.create("busybox", ["sleep", "1000"], name="box", **options)  # type: ignore[arg-type]
    await box.start()
    return box


def saved_of(root: Path, box: Container) -> list[str]:
    return sorted(os.listdir(root / "containers" / box.id / "checkpoints"))


# ---- made, or not there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["leave", "end"])
async def test_engine_killed_over_it_leaves_the_container_as_it_was(stand_in: StandIn, root: Path, what: str) -> None:
    stand_in.hold("dump")
    await killed_over(root, what, lambda: stand_in.begun("dump"))
    # It has all that CRIU writes, and none of the container's files.
    stand_in.let_go("dump")
    async with Engine(root=root, runtime="runc") as engine:
        box = await engine.get("box")
        assert box.status is Status.RUNNING
        assert list(await box.checkpoints()) == []
        assert saved_of(root, box) == []
        with pytest.raises(NotFound, match="no checkpoint"):
            await engine.create(checkpoint="box/one")
        # It goes on, and so does its policy.
        # What it answers is not asked: its end by itself and its container's are a race.
        with contextlib.suppress(AlreadyStopped):
            await box.start_exec(["sh", "-c", "echo > /end"])

        async def restarted() -> bool:
            return box.generation > 1

        await eventually(restarted)
        await box.remove(force=True)


async def test_engine_killed_after_it_was_whole_ends_what_was_to_end(
    slow_copy: StandIn, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(root=root, runtime="runc") as engine:
        box = await sleeping(engine, lease=None, restart="always")
        await box.checkpoint("one", leave_running=True)
    # As it stands in the store when the engine dies between the renaming and the kill.
    async with Engine(root=root, runtime="runc") as engine:
        from lighterman.record import Saving

        entry = engine.inside.books.find("box")
        entry.record.saving = Saving(name="one")
        entry.record.manually_stopped = True
        await engine.inside.books.save(entry)
    async with Engine(root=root, runtime="runc") as engine:
        box = await engine.get("box")
        exit = await asyncio.wait_for(box.wait(), 60)
        assert (exit.signal, exit.reason) == (9, "checkpoint")
        assert box.status is Status.EXITED
        assert list(await box.checkpoints()) == ["one"]
        await box.remove()


async def test_failed_one_leaves_nothing(slow_copy: StandIn, runc: Engine, root: Path) -> None:
    box = await sleeping(runc)
    slow_copy.program("cp", "#!/bin/sh\nexit 1\n")
    for leave_running in (True, False):
        with pytest.raises(Exception, match="can't be copied"):
            await box.checkpoint("one", leave_running=leave_running)
        assert saved_of(root, box) == []
        assert box.status is Status.RUNNING
        assert runc.inside.books.find("box").record.saving is None
    await box.remove(force=True)


async def test_name_that_is_taken_is_refused_before_anything_is_written_down(
    stand_in: StandIn, runc: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await sleeping(runc)
    await box.checkpoint("one", leave_running=True)
    written: list[object] = []
    save = runc.inside.books.save

    async def saved(entry: Entry) -> None:
        written.append(entry.record.saving)
        await save(entry)

    monkeypatch.setattr(runc.inside.books, "save", saved)
    with pytest.raises(AlreadyExists):
        await box.checkpoint("one")
    assert written == []
    assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"
    await box.remove(force=True)


# ---- what goes on meanwhile ------------------------------------------------------------------------------------------


async def test_exec_meanwhile_is_told_why_not_and_probes_wait(stand_in: StandIn, runc: Engine) -> None:
    check = HealthCheck(Exec(["true"]), interval_s=0.02, start_interval_s=0.02, retries=1, timeout_s=20)
    box = await sleeping(runc, health=check)
    await box.wait(until="healthy", timeout_s=60)
    stand_in.hold("dump")
    saving = asyncio.create_task(box.checkpoint("one", leave_running=True))
    await stand_in.begun("dump")
    with pytest.raises(InvalidState, match="saved as checkpoint 'one'"):
        await box.exec(["true"])
    # Many intervals long.
    for _ in range(10):
        await box.stats()
        await asyncio.sleep(0.02)
    stand_in.let_go("dump")
    await saving
    assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"
    kinds = [event.reason async for event in runc.events(after=0, kinds=["health"], follow=False)]
    assert kinds == ["healthy"]
    await box.remove(force=True)


async def test_removed_while_its_files_are_copied(slow_copy: StandIn, runc: Engine, root: Path) -> None:
    box = await sleeping(runc)
    slow_copy.hold("copy")
    saving = asyncio.create_task(box.checkpoint("one", leave_running=True))
    copier = await slow_copy.copying()
    await asyncio.wait_for(box.remove(force=True), 60)
    assert not process_is_there(copier)
    with pytest.raises(AlreadyStopped):
        await saving
    assert os.listdir(root / "containers") == []


async def test_cancelled_copy_of_one_writes_no_more(slow_copy: StandIn, runc: Engine, root: Path) -> None:
    box = await sleeping(runc)
    await box.checkpoint("one")
    (slow_copy.directory / "copying").unlink()
    slow_copy.hold("copy")
    creating = asyncio.create_task(runc.create(checkpoint="box/one"))
    copier = await slow_copy.copying()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert not process_is_there(copier)

    async def gone() -> bool:
        return os.listdir(root / "containers") == [box.id]

    await eventually(gone)
    await box.remove()


async def test_engine_killed_over_a_copy(slow_copy: StandIn, root: Path) -> None:
    async with Engine(root=root, runtime="runc") as engine:
        box = await sleeping(engine, lease=None)
        await box.checkpoint("one")
    code = (
        "import runpy, sys; from lighterman.runtimes.oci import copying; "
        f"copying.program = lambda: {str(slow_copy.directory / 'cp')!r}; "
        f"sys.argv[0] = {str(HERE / 'saver.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    (slow_copy.directory / "copying").unlink()
    slow_copy.hold("copy")
    saver = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(root), "copy")
    copier = await slow_copy.copying()
    saver.kill()
    await saver.wait()
    async with Engine(root=root, runtime="runc") as engine:
        assert not process_is_there(copier)
        await eventually(lambda: os.listdir(root / "containers") == [box.id])
        await (await engine.get("box")).remove()


# ---- going on from one -----------------------------------------------------------------------------------------------


async def own_and_saved(engine: Engine) -> Container:
    """A container that has ended: `/which` is `saved` in its checkpoint, and `own` now."""
    box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
    await box.start()
    await box.exec(["sh", "-c", "echo saved > /which"])
    await box.checkpoint("one", leave_running=True)
    await box.exec(["sh", "-c", "echo own > /which"])
    await box.stop(grace_s=0)
    return box


def aside(root: Path, box: Container) -> list[str]:
    return [name for name in os.listdir(root / "containers" / box.id) if name.startswith("upper.")]


async def which(box: Container) -> bytes:
    return (await box.exec(["cat", "/which"])).stdout


async def test_failing_restore_leaves_its_files(stand_in: StandIn, runc: Engine, root: Path) -> None:
    box = await own_and_saved(runc)
    (stand_in.directory / "fail-restore").touch()
    for _ in range(2):
        with pytest.raises(RuntimeFailed):
            await box.start(checkpoint="one")
    await box.start()
    assert await which(box) == b"own\n"
    await box.stop(grace_s=0)
    assert aside(root, box) == []
    (stand_in.directory / "fail-restore").unlink()
    await box.start(checkpoint="one")
    assert await which(box) == b"saved\n"
    assert aside(root, box) == []
    await box.remove(force=True)


async def test_engine_killed_over_a_restore_leaves_its_files(stand_in: StandIn, root: Path) -> None:
    async with Engine(root=root, runtime="runc") as engine:
        box = await own_and_saved(engine)
    stand_in.hold("restore")
    await killed_over(root, "start", lambda: stand_in.begun("restore"))
    assert (root / "containers" / box.id / "upper/which").read_text() == "saved\n"
    stand_in.let_go("restore")
    async with Engine(root=root, runtime="runc") as engine:
        box = await engine.get("box")
        assert box.status is Status.EXITED
        await box.start()
        assert await which(box) == b"own\n"
        assert aside(root, box) == []
        await box.remove(force=True)


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_start_that_comes_to_nothing_after_the_restore_leaves_its_files(
    stand_in: StandIn, runc: Engine, root: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    box = await own_and_saved(runc)
    reached = asyncio.Event()

    async def open_run(self: ContainerLog, generation: int, *, takeover: bool = False) -> OutputSink:
        reached.set()
        if how == "fails":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        never: asyncio.Future[OutputSink] = asyncio.get_running_loop().create_future()
        return await never

    with monkeypatch.context() as patched:
        patched.setattr(ContainerLog, "open_run", open_run)
        starting = asyncio.create_task(box.start(checkpoint="one"))
        await reached.wait()
        if how == "is cancelled":
            starting.cancel()
        with pytest.raises((OSError, asyncio.CancelledError)):
            await starting
    await box.start()
    assert await which(box) == b"own\n"
    assert aside(root, box) == []
    await box.remove(force=True)


AT_ITS_STREAMS = """
from lighterman.logs.container import ContainerLog
async def open_run(self, generation, *, takeover=False):
    reached()
    await asyncio.Event().wait()
ContainerLog.open_run = open_run
"""
OVER_ITS_OWN_FILES = """
from lighterman.runtimes.oci import layer_swap
remove = layer_swap.remove
def held(path):
    if path.endswith(".gone") and os.path.lexists(path):
        reached()
        threading.Event().wait()
    remove(path)
layer_swap.remove = held
"""


@pytest.mark.parametrize(
    ("held", "runs_on"),
    [(AT_ITS_STREAMS, False), (OVER_ITS_OWN_FILES, True)],
    ids=["at-its-streams", "over-its-own-files"],
)
async def test_engine_killed_after_a_restore_leaves_one_or_the_other(
    stand_in: StandIn, root: Path, held: str, runs_on: bool
) -> None:
    async with Engine(root=root, runtime="runc") as engine:
        box = await own_and_saved(engine)
    mark = stand_in.directory / "held-begun"
    code = (
        "import asyncio, os, pathlib, runpy, sys, threading\n"
        f"reached = pathlib.Path({str(mark)!r}).touch\n{held}\n"
        f"sys.argv[0] = {str(HERE / 'saver.py')!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    saver = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(root), "start")
    try:
        await stand_in.begun("held")
    finally:
        saver.kill()
        await saver.wait()
    async with Engine(root=root, runtime="runc") as engine:
        box = await engine.get("box")
        assert (box.status is Status.RUNNING) is runs_on
        if not runs_on:
            await box.start()
        assert await which(box) == (b"saved\n" if runs_on else b"own\n")
        assert aside(root, box) == []
        await box.remove(force=True)


async def test_checkpoint_of_one_that_was_adopted_has_its_files(stand_in: StandIn, root: Path) -> None:
    async with Engine(root=root, runtime="runc") as engine:
        box = await sleeping(engine, lease=None)
        await box.exec(["sh", "-c", "echo saved > /which"])
    keeper = keeper_pid(root)
    os.kill(keeper, signal.SIGKILL)
    await eventually(lambda: not process_is_there(keeper))
    async with Engine(root=root, runtime="runc") as engine:
        box = await engine.get("box")
        await box.checkpoint("one", leave_running=True)
        await box.exec(["sh", "-c", "echo own > /which"])
        await box.stop(grace_s=0)
        await box.start(checkpoint="one")
        assert await which(box) == b"saved\n"
        await box.remove(force=True)


async def test_checkpoint_without_the_containers_files_is_none(stand_in: StandIn, runc: Engine, root: Path) -> None:
    box = await own_and_saved(runc)
    shutil.rmtree(root / "containers" / box.id / "checkpoints/one/upper")
    with pytest.raises(NotFound, match="lacks the container's files"):
        await box.start(checkpoint="one")
    await box.start()
    assert await which(box) == b"own\n"
    await box.remove(force=True)


# ---- where it is not possible ----------------------------------------------------------------------------------------


async def test_copy_is_refused_with_the_reason_before_anything_is_copied(stand_in: StandIn, root: Path) -> None:
    async with Engine(root=root, runtime="runc") as engine:
        box = await own_and_saved(engine)
    stand_in.program("criu", "#!/bin/sh\necho 'Error: the kernel is too new' >&2\nexit 1\n")
    async with Engine(root=root, runtime="runc") as engine:
        with pytest.raises(NotSupported, match="the kernel is too new"):
            await engine.create(checkpoint="box/one")
        await eventually(lambda: os.listdir(root / "containers") == [box.id])
        await (await engine.get("box")).remove()


async def test_what_can_not_be_written_down_of_the_host_is_an_error_and_it_goes_on(
    stand_in: StandIn, runc: Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await sleeping(runc)

    def full(self: MountOptions) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(MountOptions, "begin", full)
    with pytest.raises(StoreError, match="mount options"):
        await box.checkpoint("one", leave_running=True)
    assert runc.inside.books.find("box").record.saving is None
    assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"
    await box.remove(force=True)


@pytest.mark.needs("criu")
@pytest.mark.parametrize("what", ["leave", "end"])
async def test_engine_killed_while_criu_is_at_work(root: Path, what: str) -> None:
    async def at_work() -> None:
        await eventually(lambda: any(root.glob("containers/*/checkpoints/.part-one/work/*")), 120.0)

    await killed_over(root, what, at_work)
    async with Engine(root=root, runtime="runc") as engine:
        box = await engine.get("box")
        assert box.status is Status.RUNNING
        assert list(await box.checkpoints()) == []
        assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"
        await box.checkpoint("two", leave_running=True)
        with contextlib.suppress(AlreadyStopped):  # as above
            await box.start_exec(["sh", "-c", "echo > /end"])

        async def restarted() -> bool:
            return box.generation > 1

        await eventually(restarted)
        await box.remove(force=True)
