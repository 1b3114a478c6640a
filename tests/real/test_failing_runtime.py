"""A runtime that fails, hangs or dies at every step: a typed error, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from real_support import descriptors, process_is_there, running_in, the_two

from lighterman import (
    CommandNotFound,
    Engine,
    LightermanError,
    OperationTimeout,
    Resources,
    RuntimeFailed,
    limits,
)
from lighterman.lifecycle.status import Status
from lighterman.roots import default_run
from support import eventually, leaked_since, snapshot

pytestmark = pytest.mark.real

FAILS = ("fail-before", "fail-after", "killed-before", "killed-after")
HANGS = ("hang-before", "hang-after")
PIDS = ("garbage-pid", "huge-pid", "empty-pid", "no-pid", "foreign-pid")


class Broken:
    """The wrapper's directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name

    def breaks(self, operation: str, how: str) -> None:
        (self.directory / "fault").write_text(f"{operation} {how}\n")
        (self.directory / "met").unlink(missing_ok=True)

    def works(self) -> None:
        (self.directory / "fault").unlink(missing_ok=True)

    @property
    def was_met(self) -> bool:
        return (self.directory / "met").exists()


@pytest.fixture
def broken(real_runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    directory = tmp_path / "runtime"
    directory.mkdir()
    real = shutil.which(real_runtime)
    assert real is not None
    (directory / "real").symlink_to(real)
    shutil.copy(Path(__file__).with_name("broken_runtime.sh"), directory / real_runtime)
    (directory / real_runtime).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return Broken(directory, real_runtime)


@pytest.fixture
async def engine(broken: Broken) -> AsyncIterator[Engine]:
    async with Engine(runtime=broken.name) as engine:
        assert (await engine.version()).path == f"{broken.directory}/{broken.name}"
        await engine.run("busybox", ["true"])
        yield engine
        broken.works()


def check(failed: LightermanError, how: str, operation: str, name: str) -> None:
    """The error says all that is known."""
    assert failed.operation == operation
    assert failed.container
    assert failed.container in str(failed)
    if how in HANGS:
        assert type(failed) is OperationTimeout
        return
    assert type(failed) is RuntimeFailed
    assert (failed.runtime, failed.exit_status) == (
        name,
        {"fail-before": 3, "fail-after": 4, "killed-before": -9, "killed-after": -9}.get(how, 0),
    )
    if how.startswith("fail"):
        assert failed.last_words == "broken on request"
        assert "broken on request" in str(failed)


# ---- run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("how", [*FAILS, *HANGS, *PIDS])
async def test_run_goes_wrong_error_is_typed_and_nothing_is_left(
    engine: Engine, broken: Broken, how: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, mine = snapshot(), descriptors()
    broken.breaks("run", how)
    if how in HANGS:
        monkeypatch.setattr(limits, "RUNTIME_CALL_S", 1.0)
    with pytest.raises(LightermanError) as failed:
        await engine.run("busybox", ["sleep", "1000"], terminal=terminal, stdin=b"x")
    assert broken.was_met
    check(failed.value, how, "run", broken.name)
    assert await engine.containers() == []
    left = await asyncio.to_thread(leaked_since, before)
    assert not left
    await eventually(lambda: descriptors() <= mine)
    broken.works()
    monkeypatch.undo()
    assert (await engine.run("busybox", ["echo", "fine"])).stdout == b"fine\n"


async def test_run_killed_after_it_forked_the_child_makes_nothing_any_more(engine: Engine, broken: Broken) -> None:
    before = snapshot()
    os.mkfifo(broken.directory / "go")
    broken.breaks("run", "killed-forked")
    with pytest.raises(RuntimeFailed):
        await engine.run("busybox", ["sleep", "1000"])
    child = int((broken.directory / "forked").read_text())
    await eventually(lambda: not Path(f"/proc/{child}").exists())
    left = await asyncio.to_thread(leaked_since, before)
    assert not left


@pytest.mark.parametrize("how", [*FAILS, "hang-after", "no-pid"])
async def test_start_goes_wrong_container_can_be_started_again(
    engine: Engine, broken: Broken, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await engine.create("busybox", ["sleep", "1000"])
    broken.breaks("run", how)
    with monkeypatch.context() as patch:
        if how in HANGS:
            patch.setattr(limits, "RUNTIME_CALL_S", 1.0)
        with pytest.raises(LightermanError) as failed:
            await box.start()
    check(failed.value, how, "run", broken.name)
    assert box.status in (Status.CREATED, Status.EXITED)
    assert box.exit is not None
    assert box.exit.not_started
    assert (box.exit.code, box.exit.shell_code) == (None, 125)
    broken.works()
    await box.start()
    assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"
    await box.remove(force=True)


async def test_run_short_program_runtime_hangs_after_it(
    engine: Engine, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken.breaks("run", "hang-after")
    monkeypatch.setattr(limits, "RUNTIME_CALL_S", 1.0)
    with pytest.raises(OperationTimeout):
        await engine.run("busybox", ["true"])


async def test_run_hangs_others_are_not_held_up(
    engine: Engine, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        with monkeypatch.context() as patch:
            patch.setattr(limits, "RUNTIME_CALL_S", 5.0)
            broken.breaks("run", "hang-before")
            hanging = [asyncio.create_task(engine.run("busybox", ["true"])) for _ in range(3)]
            await eventually(lambda: (broken.directory / "met").exists())
            assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"
            exit = await box.stop(grace_s=0)
            assert exit is not None
            assert not any(task.done() for task in hanging)
            ends = await asyncio.gather(*hanging, return_exceptions=True)
    assert {type(end) for end in ends} == {OperationTimeout}


@pytest.mark.parametrize("how", HANGS)
async def test_run_cancelled_while_the_runtime_hangs_is_undone_at_once(
    engine: Engine, broken: Broken, how: str
) -> None:
    before = snapshot()
    broken.breaks("run", how)
    running = asyncio.create_task(engine.run("busybox", ["sleep", "1000"]))
    await eventually(lambda: broken.was_met)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        # Long before limits.RUNTIME_CALL_S.
        await asyncio.wait_for(running, limits.RUNTIME_CALL_S / 2)
    left = await asyncio.to_thread(leaked_since, before)
    assert not left


async def test_engine_closed_while_the_runtime_hangs_nothing_is_left(broken: Broken) -> None:
    before = snapshot()
    async with Engine(runtime=broken.name) as engine:
        broken.breaks("run", "hang-after")
        running = asyncio.create_task(engine.run("busybox", ["sleep", "1000"]))
        await eventually(lambda: broken.was_met)
    with pytest.raises((LightermanError, asyncio.CancelledError)):
        await asyncio.wait_for(running, 60)
    left = await asyncio.to_thread(leaked_since, before)
    assert not left


async def test_restart_goes_wrong_it_is_tried_again(engine: Engine, broken: Broken) -> None:
    async with engine.container("busybox", ["sh", "-c", "read x; exit 1"], stdin=True, restart="on-failure") as box:
        broken.breaks("run", "fail-before")
        first = box.pid
        box.stdin.write_eof()
        await eventually(lambda: broken.was_met)
        assert str(box.status) == "restarting"
        broken.works()
        await eventually(lambda: box.status is Status.RUNNING and box.pid not in (0, first))
        await box.stop(grace_s=0)


# ---- exec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("how", [*FAILS, *HANGS, *PIDS])
async def test_exec_goes_wrong_error_is_typed_and_its_process_is_gone(
    engine: Engine, broken: Broken, how: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine.container("busybox", ["sleep", "1000"], init=True) as box:
        alone, mine = await the_two(box), descriptors()
        broken.breaks("exec", how)
        with monkeypatch.context() as patch:
            if how in HANGS:
                patch.setattr(limits, "RUNTIME_CALL_S", 1.0)
            with pytest.raises(LightermanError) as failed:
                await box.start_exec(["sleep", "1000"], terminal=terminal, stdin=True)
        assert broken.was_met
        check(failed.value, how, "exec", broken.name)
        assert failed.value.container == box.id
        await eventually(lambda: sorted(running_in(box.id)) == alone)
        await eventually(lambda: descriptors() <= mine)
        broken.works()
        assert str(box.status) == "running"
        assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"


async def test_exec_hangs_container_can_be_stopped(engine: Engine, broken: Broken) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        broken.breaks("exec", "hang-before")
        hanging = asyncio.create_task(box.exec(["true"]))
        await eventually(lambda: broken.was_met)
        exit = await asyncio.wait_for(box.stop(grace_s=0.1), limits.RUNTIME_CALL_S / 2)
        assert exit is not None
        assert exit.reason == "stop"
        hanging.cancel()
        with pytest.raises((LightermanError, asyncio.CancelledError)):
            await asyncio.wait_for(hanging, limits.RUNTIME_CALL_S / 2)


async def test_exec_cancelled_while_the_runtime_hangs_is_undone_when_that_is_ended(
    engine: Engine, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine.container("busybox", ["sleep", "1000"], init=True) as box:
        alone = await the_two(box)
        broken.breaks("exec", "hang-after")
        with monkeypatch.context() as patch:
            patch.setattr(limits, "RUNTIME_CALL_S", 3.0)
            hanging = asyncio.create_task(box.exec(["sleep", "1000"]))
            await eventually(lambda: broken.was_met and len(running_in(box.id)) > len(alone))
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(hanging, limits.RUNTIME_CALL_S / 2)
        # The cancellation is told at once; what was asked of the runtime goes on until its time is over.
        await eventually(lambda: sorted(running_in(box.id)) == alone)


# ---- update, delete ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [*FAILS, *HANGS])
async def test_update_goes_wrong_error_is_typed_and_container_goes_on(
    engine: Engine, broken: Broken, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        broken.breaks("update", how)
        with monkeypatch.context() as patch:
            if how in HANGS:
                patch.setattr(limits, "RUNTIME_CALL_S", 1.0)
            with pytest.raises(LightermanError) as failed:
                await box.update(Resources(memory_bytes=96 << 20))
        assert broken.was_met
        check(failed.value, how, "update", broken.name)
        broken.works()
        await box.update(Resources(memory_bytes=80 << 20))
        assert (await box.stats()).memory_limit_bytes == 80 << 20


def state_directory(runtime: str, id: str) -> Path:
    (found,) = Path(default_run(), "private").glob(f"*/runtime/{runtime}/{id}")
    return found


@pytest.mark.parametrize("how", [*FAILS, *HANGS])
async def test_delete_goes_wrong_the_removal_ends_and_nothing_is_left(
    broken: Broken, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot()
    async with Engine(runtime=broken.name) as engine:
        box = await engine.create("busybox", ["sleep", "1000"])
        await box.start()
        monkeypatch.setattr(limits, "RUNTIME_CALL_S", 1.0)
        broken.breaks("delete", how)
        # What is not known is left to the runtime's own command.
        state = state_directory(broken.name, box.id)
        (state / "strange").write_text("")
        exit = await asyncio.wait_for(box.stop(grace_s=0), 60)
        assert exit is not None
        assert exit.signal == 9
        await asyncio.wait_for(box.remove(), 60)
        await eventually(lambda: broken.was_met)
        assert not running_in(box.id)
    left = await asyncio.to_thread(leaked_since, before)
    assert not left


# ---- what is no failure of the runtime ---------------------------------------------------------------------------


async def test_run_command_not_found_is_still_told_apart(engine: Engine) -> None:
    with pytest.raises(CommandNotFound):
        await engine.run("busybox", ["no-such-program"])


async def test_runtime_vanishes_while_the_engine_runs(engine: Engine, broken: Broken) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        (broken.directory / broken.name).unlink()
        with pytest.raises(RuntimeFailed, match=f"{broken.name} run .*No such file") as failed:
            await engine.run("busybox", ["true"])
        assert (failed.value.operation, failed.value.runtime) == ("run", broken.name)
        with pytest.raises(RuntimeFailed):
            await box.exec(["true"])
        pid = box.pid
        exit = await box.stop(grace_s=0)
        assert exit is not None
        assert not process_is_there(pid)


def test_no_runtime_at_all_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import asyncio; from lighterman import Engine, RuntimeUnavailable\n"
        "async def main():\n"
        "    try:\n"
        "        async with Engine(): pass\n"
        "    except RuntimeUnavailable as refused: print(refused)\n"
        "asyncio.run(main())"
    )
    import lighterman

    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(Path(lighterman.__file__).parent.parent)}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.decode().splitlines()
    assert "apt-get install" in line
