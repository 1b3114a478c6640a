"""Further processes in a running container."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from real_support import process_is_there, running_in

from lighterman import (
    CommandNotExecutable,
    CommandNotFound,
    Container,
    Engine,
    InvalidSpec,
    InvalidState,
    LightermanError,
    NotFound,
)
from lighterman.lifecycle.status import Status
from support import eventually

pytestmark = pytest.mark.real


@pytest.fixture
async def box(engine: Engine) -> AsyncIterator[Container]:
    async with engine.container(
        "busybox", ["sleep", "1000"], env={"FROM": "init", "BOTH": "init"}, workdir="/usr", hostname="boxhost"
    ) as box:
        yield box


@pytest.mark.parametrize("code", [0, 1, 125, 126, 127, 255])
async def test_exec_program_exits_code_is_exact(box: Container, code: int) -> None:
    done = await box.exec(["sh", "-c", f"echo o; echo e >&2; exit {code}"])
    assert (done.exit.code, done.stdout, done.stderr) == (code, b"o\n", b"e\n")
    assert box.status is Status.RUNNING


async def test_exec_killed_process_signal_is_told(box: Container) -> None:
    done = await box.exec(["sh", "-c", "kill -9 $$"])
    assert (done.exit.code, done.exit.signal, done.exit.shell_code) == (None, 9, 137)


async def test_exec_stdin_is_read_to_its_end(box: Container) -> None:
    data = bytes(range(256)) * 2000
    done = await box.exec(["sh", "-c", "md5sum; echo after"], stdin=data)
    import hashlib

    assert done.stdout == hashlib.md5(data).hexdigest().encode() + b"  -\nafter\n"


async def test_exec_without_stdin_reads_end_of_file(box: Container) -> None:
    assert (await box.exec(["cat"])).exit.code == 0


async def test_exec_stdin_longer_than_the_program_reads_is_no_error(box: Container) -> None:
    done = await box.exec(["head", "-c", "3"], stdin=b"x" * 3_000_000)
    assert (done.exit.code, done.stdout) == (0, b"xxx")


async def test_exec_inherits_environment_directory_and_host_name(box: Container) -> None:
    done = await box.exec(["sh", "-c", "echo $FROM $BOTH $MINE $(pwd) $(hostname)"], env={"BOTH": "exec", "MINE": "1"})
    assert done.stdout == b"init exec 1 /usr boxhost\n"


async def test_exec_own_directory_and_user_are_taken(box: Container) -> None:
    done = await box.exec(["sh", "-c", "pwd; id -u; id -g"], workdir="/tmp", user="nobody")
    assert done.stdout == b"/tmp\n65534\n65534\n"


async def test_exec_user_without_rights_has_no_capabilities(box: Container) -> None:
    done = await box.exec(["sh", "-c", "grep -E 'Cap(Eff|Prm|Amb)' /proc/self/status"], user="65534")
    assert {line.split()[1] for line in done.stdout.decode().splitlines()} == {"0" * 16}


async def test_exec_unknown_user_is_not_found(box: Container) -> None:
    with pytest.raises(NotFound, match="nosuch"):
        await box.exec(["true"], user="nosuch")


async def test_exec_commands_that_can_not_run_are_told_apart(box: Container) -> None:
    with pytest.raises(CommandNotFound) as missing:
        await box.exec(["no-such-program"])
    assert (missing.value.operation, missing.value.container) == ("exec", box.id)
    with pytest.raises(CommandNotExecutable):
        await box.exec(["/etc/passwd"])
    with pytest.raises(InvalidSpec):
        await box.exec([])
    with pytest.raises(InvalidSpec):
        await box.exec("ls")
    # The container has not noticed.
    assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"


async def test_exec_missing_directory_is_an_error_and_leaves_nothing(box: Container) -> None:
    before = running_in(box.id)
    with pytest.raises(LightermanError):
        await box.exec(["true"], workdir="/no/such/directory")
    assert running_in(box.id) == before


async def test_exec_timeout_kills_it_and_not_the_container(box: Container) -> None:
    done = await box.exec(["sh", "-c", "echo begun; sleep 1000"], timeout_s=0.5)
    assert (done.exit.signal, done.exit.reason, done.stdout) == (15, "timeout", b"begun\n")
    assert box.status is Status.RUNNING


async def test_exec_timeout_its_whole_tree_is_gone(box: Container) -> None:
    done = await box.exec(["sh", "-c", "sleep 999 & sleep 998 & wait"], timeout_s=0.5)
    assert done.exit.reason == "timeout"
    await eventually(lambda: running_in(box.id) == [box.pid])


async def test_exec_cancelled_its_process_is_gone(box: Container) -> None:
    running = asyncio.create_task(box.exec(["sleep", "997"]))
    await eventually(lambda: len(running_in(box.id)) > 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: running_in(box.id) == [box.pid])


async def test_exec_container_ends_meanwhile_exec_ends_too(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        process = await box.start_exec(["sleep", "1000"])
        await box.kill()
        assert (await box.wait()).signal == 9
        exit = await process.wait()
        assert exit.signal == 9
        with pytest.raises(InvalidState):
            await box.exec(["true"])


async def test_exec_in_a_paused_container_is_refused_or_waits(box: Container) -> None:
    await box.pause()
    try:
        with pytest.raises(LightermanError):
            await asyncio.wait_for(box.exec(["true"], timeout_s=5), 60)
    finally:
        await box.resume()
    assert (await box.exec(["echo", "again"])).stdout == b"again\n"


async def test_start_exec_streams_and_signals(box: Container) -> None:
    process = await box.start_exec(
        ["sh", "-c", "trap 'echo got; exit 7' USR1; echo ready; while read l; do echo $l; done; sleep 1000 & wait"],
        stdin=True,
    )
    assert await process.stdout.readline() == b"ready\n"
    assert process_is_there(process.pid)
    process.stdin.write(b"one\n")
    await process.stdin.drain()
    assert await process.stdout.readline() == b"one\n"
    process.stdin.write_eof()
    await process.kill("USR1")
    exit = await process.wait()
    assert (exit.code, await process.stdout.read()) == (7, b"got\n")
    assert process.exit == exit
    # It is no error to kill what has ended.
    await process.kill()


async def test_start_exec_wait_does_not_need_the_end_of_output(box: Container) -> None:
    process = await box.start_exec(["sh", "-c", "sleep 1000 & echo $!; exit 3"])
    assert (await process.wait()).code == 3
    child = int(await process.stdout.readline())
    assert child > 1


async def test_exec_grandchild_keeps_the_pipe_exec_ends_all_the_same(box: Container) -> None:
    done = await asyncio.wait_for(box.exec(["sh", "-c", "echo one; sleep 1000 & exit 2"]), 60)
    assert (done.exit.code, done.stdout) == (2, b"one\n")


async def test_exec_many_at_once_each_gets_its_own_answer(box: Container) -> None:
    done = await asyncio.gather(*(box.exec(["sh", "-c", f"echo {n}; exit {n}"]) for n in range(20)))
    assert [(one.exit.code, one.stdout) for one in done] == [(n, b"%d\n" % n) for n in range(20)]
    assert (await box.exec(["ls", "/proc/self/fd"])).stdout.split() == [b"0", b"1", b"2", b"3"]


async def test_exec_more_than_max_output_is_cut_and_says_so(box: Container) -> None:
    done = await box.exec(["head", "-c", "200000", "/dev/zero"], max_output=10)
    assert (len(done.stdout), done.stdout_truncated, done.exit.code) == (10, True, 0)


async def test_start_exec_says_what_it_is_and_its_log_is_asked_as_a_containers(box: Container) -> None:
    began = time.time()
    argv = ("sh", "-c", "echo one; echo two; echo three >&2; read x; exit 4")
    process = await box.start_exec(argv, stdin=True)
    assert (process.argv, process.status, process.exit) == (argv, "running", None)
    assert process.started_at is not None
    assert began - 60 < process.started_at <= time.time()
    process.stdin.write(b"\n")
    assert (await process.wait()).last_words == b"three\n"
    assert process.status == "exited"
    said = [record.data async for record in process.logs(lines=True, streams="stdout", tail=1)]
    assert said == [b"two\n"]
    assert [record.data async for record in process.logs(since=time.time() + 1000)] == []
    with pytest.raises(InvalidSpec):
        process.logs(tail=-1)


async def test_exec_that_fails_has_its_last_words(box: Container) -> None:
    done = await box.exec(["sh", "-c", "echo why >&2; exit 3"])
    assert done.exit.last_words == b"why\n"
    assert (await box.exec(["sh", "-c", "echo said >&2"])).exit.last_words == b""
