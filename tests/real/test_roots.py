"""Containers that outlive their engine, and the roots that hold them."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from real_support import logged, process_is_there

import lighterman
from lighterman import Container, Engine, NotFound, RootLocked, UsageError
from lighterman.lifecycle.status import Status
from lighterman.roots import StateRoot, default_run, default_state
from support import eventually

pytestmark = pytest.mark.real


async def started(engine: Engine, argv: list[str], **options: object) -> Container:
    box = await engine.create("busybox", argv, lease=None, **options)  # type: ignore[arg-type]
    await box.start()
    return box


# ---- living on ---------------------------------------------------------------------------------------------------


async def test_lease_none_lives_on_and_is_taken_up(root: Path, real_runtime: str) -> None:
    async with Engine(root=root, runtime=real_runtime) as engine:
        box = await started(engine, ["sleep", "1000"], name="box")
        pid, id = box.pid, box.id
    assert process_is_there(pid)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (box.id, box.pid, box.status, box.exit) == (id, pid, Status.RUNNING, None)
        assert (await box.exec(["echo", "hi"])).stdout == b"hi\n"
        await box.pause()
        await box.resume()
        assert (await box.stats()).pids == 1
        await box.kill()
        exit = await box.wait()
        assert (exit.signal, exit.generation) == (9, 1)
        await box.remove()
    async with Engine(root=root) as engine:
        assert await engine.containers() == []


@pytest.mark.parametrize("code", [0, 7, 255])
async def test_lease_none_ended_meanwhile_code_is_exact(root: Path, real_runtime: str, code: int) -> None:
    async with Engine(root=root, runtime=real_runtime) as engine:
        box = await started(engine, ["sh", "-c", f"echo out; read x; echo more; exit {code}"], name="box", stdin=True)
        pid = box.pid
        await box.stdout.readline()
        box.stdin.write(b"\n")
        box.stdin.write_eof()
        await box.stdin.wait_closed()
    await eventually(lambda: not process_is_there(pid))
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        exit = await asyncio.wait_for(box.wait(), 60)
        assert (exit.code, exit.signal, exit.unknown, exit.generation) == (code, None, None, 1)
        assert await logged(box) == b"out\nmore\n"
        assert box.status is Status.EXITED


async def test_lease_none_killed_meanwhile_signal_is_exact(root: Path, real_runtime: str) -> None:
    async with Engine(root=root, runtime=real_runtime) as engine:
        box = await started(engine, ["sleep", "1000"], name="box")
        pid = box.pid
    os.kill(pid, 9)
    await eventually(lambda: not process_is_there(pid))
    async with Engine(root=root) as engine:
        exit = await asyncio.wait_for((await engine.get("box")).wait(), 60)
        assert (exit.code, exit.signal) == (None, 9)


async def test_lease_none_many_ended_meanwhile_all_codes_exact(root: Path) -> None:
    async with Engine(root=root) as engine:
        boxes = [await started(engine, ["sh", "-c", f"sleep 0.{n}; exit {n}"], name=f"b{n}") for n in range(10, 30)]
        pids = [box.pid for box in boxes]
    await eventually(lambda: not any(map(process_is_there, pids)))
    async with Engine(root=root) as engine:
        for n in range(10, 30):
            assert (await asyncio.wait_for((await engine.get(f"b{n}")).wait(), 60)).code == n


async def test_lease_none_output_written_meanwhile_is_in_the_log(root: Path, real_runtime: str) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i; echo err $i >&2; i=$((i+1)); done; read x; echo end"
    async with Engine(root=root, runtime=real_runtime) as engine:
        await started(engine, ["sh", "-c", script], name="box", stdin=True)
    for _ in range(3):
        async with Engine(root=root) as engine:
            await engine.get("box")
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        box.stdin.write(b"\n")
        await box.wait()
        assert await logged(box, "stdout") == b"".join(b"line %d\n" % n for n in range(3000)) + b"end\n"
        assert await logged(box, "stderr") == b"".join(b"err %d\n" % n for n in range(3000))


async def test_lease_none_stdin_goes_on_in_the_next_engine(root: Path, real_runtime: str) -> None:
    async with Engine(root=root, runtime=real_runtime) as engine:
        box = await started(engine, ["sh", "-c", "while read l; do echo got $l; done; exit 4"], name="box", stdin=True)
        box.stdin.write(b"one\n")
        await box.stdin.drain()
        assert await box.stdout.readline() == b"got one\n"
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        box.stdin.write(b"two\n")
        box.stdin.write_eof()
        assert (await asyncio.wait_for(box.wait(), 60)).code == 4
        assert await logged(box) == b"got one\ngot two\n"


async def test_lease_none_terminal_goes_on_in_the_next_engine(root: Path, real_runtime: str) -> None:
    script = "echo ready; while read l; do stty size; echo got $l; done"
    async with Engine(root=root, runtime=real_runtime) as engine:
        box = await started(engine, ["sh", "-c", script], name="box", stdin=True, terminal=True)
        assert await box.stdout.readline() == b"ready\r\n"
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        await box.resize(height=11, width=22)
        box.stdin.write(b"x\n")

        async def there() -> bool:
            return b"11 22\r\ngot x\r\n" in await logged(box)

        await eventually(there)
        await box.stop(grace_s=0)


async def test_lease_none_exec_lives_on_too(root: Path, real_runtime: str) -> None:
    async with Engine(root=root, runtime=real_runtime) as engine:
        box = await started(engine, ["sleep", "1000"], name="box")
        process = await box.start_exec(["sh", "-c", "read x; echo $x; exit 6"], stdin=True)
        pid = process.pid
    assert process_is_there(pid)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        again = await box.get_exec(process.id)
        assert again.pid == pid
        again.stdin.write(b"hi\n")
        assert (await asyncio.wait_for(again.wait(), 60)).code == 6
        assert b"".join([record.data async for record in again.logs()]) == b"hi\n"


async def test_lease_none_restart_policy_goes_on_in_the_next_engine(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await started(engine, ["sleep", "1000"], name="box", restart="on-failure")
        pid = box.pid
    os.kill(pid, 9)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        await eventually(lambda: box.status is Status.RUNNING and box.pid not in (0, pid))
        assert (await box.exec(["true"])).ok
        await box.stop(grace_s=0)


async def test_lease_none_stopped_stays_stopped_and_can_be_started(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await started(engine, ["sh", "-c", "echo x >> /seen; wc -l < /seen; exec sleep 1000"], name="box")
        await box.stdout.readline()
        exit = await box.stop(grace_s=0)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (box.status, box.exit) == (Status.EXITED, exit)
        await box.start()
        assert await box.stdout.readline() == b"2\n"
        await box.stop(grace_s=0)
        assert await logged(box) == b"1\n2\n"


async def test_lease_none_paused_stays_paused(root: Path, real_runtime: str) -> None:
    async with Engine(root=root, runtime=real_runtime) as engine:
        box = await started(engine, ["sleep", "1000"], name="box")
        await box.pause()
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert str(box.status) == "paused"
        await box.resume()
        assert str(box.status) == "running"
        await box.pause()
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (await asyncio.wait_for(box.stop(grace_s=0), 60)) is not None


async def test_lease_process_does_not_live_on(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"])
        await box.start()
        pid = box.pid
    assert not process_is_there(pid)
    async with Engine(root=root) as engine:
        assert await engine.containers() == []


async def test_created_never_started_is_there_again(root: Path) -> None:
    async with Engine(root=root) as engine:
        await engine.create("busybox", ["echo", "hi"], name="box", lease=None)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert box.status is Status.CREATED
        await box.start()
        assert (await box.wait()).code == 0
        assert await logged(box) == b"hi\n"


# ---- locks -------------------------------------------------------------------------------------------------------


async def test_second_engine_in_the_process_is_refused_with_our_pid(root: Path) -> None:
    async with Engine(root=root) as engine:
        for _ in range(3):
            with pytest.raises(RootLocked) as refused:
                await Engine(root=root).start()
            assert refused.value.holder_pid == os.getpid()
        # The first one still holds it, against other processes too.
        assert await in_another_process(root) == f"RootLocked {os.getpid()}"
        assert (await engine.run("busybox", ["true"])).ok
    assert await in_another_process(root) == "ok"


async def test_second_engine_by_another_name_of_the_root_is_refused(root: Path, tmp_path: Path) -> None:
    async with Engine(root=root):
        (tmp_path / "link").symlink_to(root)
        with pytest.raises(RootLocked):
            await Engine(root=tmp_path / "link").start()


async def test_second_engine_refused_leaves_no_descriptor(root: Path) -> None:
    async with Engine(root=root):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(RootLocked):
                await Engine(root=root).start()
        # Fewer, where something of the start was still open before.
        assert len(os.listdir("/proc/self/fd")) <= before


async def in_another_process(root: Path) -> str:
    script = (
        "import asyncio, sys; from lighterman import Engine, RootLocked\n"
        "async def main():\n"
        "    try:\n"
        "        async with Engine(root=sys.argv[1]): print('ok')\n"
        "    except RootLocked as refused: print('RootLocked', refused.holder_pid)\n"
        "asyncio.run(main())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(lighterman.__file__).parent.parent)}
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script, str(root)], capture_output=True, env=environment, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.decode().strip()


# ---- private roots -----------------------------------------------------------------------------------------------


def private() -> set[str]:
    found: set[str] = set()
    for parent in (default_state(), default_run()):
        if os.path.isdir(f"{parent}/private"):
            found.update(os.listdir(f"{parent}/private"))
    return found


async def test_private_root_is_for_us_alone_and_vanishes() -> None:
    before = private()
    async with Engine() as engine:
        await engine.run("busybox", ["true"])
        (id,) = private() - before
        for parent in (default_state(), default_run()):
            for directory in (parent, f"{parent}/private", f"{parent}/private/{id}"):
                assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700, directory
    assert not private() - before


async def test_two_private_engines_do_not_disturb_each_other() -> None:
    async with Engine() as one, one.container("busybox", ["sleep", "1000"]) as box:
        async with Engine() as other:
            with pytest.raises(NotFound):
                await other.get(box.id)
            assert (await other.run("busybox", ["true"])).ok
        assert (await box.exec(["echo", "still"])).stdout == b"still\n"


async def test_lasting_root_is_for_us_alone(root: Path) -> None:
    async with Engine(root=root) as engine:
        await started(engine, ["sleep", "1000"], name="box")
        for directory in (str(root), StateRoot.of(root).run):
            assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
            for path, _, names in os.walk(directory):
                # What the runtime makes has the umask that the container needs, and lies behind closed directories;
                # as do the files that the container sees as /etc/hosts and so on.
                if {"upper", "work", "runtime"} & set(path.split("/")):
                    continue
                for name in names:
                    mode = os.lstat(f"{path}/{name}").st_mode
                    if name not in ("hosts", "hostname", "resolv.conf", "log.json", "pid"):
                        assert not stat.S_IMODE(mode) & 0o077 or stat.S_ISSOCK(mode), f"{path}/{name}"


async def test_root_at_a_file_or_at_the_top_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(lighterman.StoreError, match="file"):
            await Engine(root=wrong).start()
    with pytest.raises(UsageError):
        Engine(root="/")
