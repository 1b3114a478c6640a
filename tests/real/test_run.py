"""`Engine.run`: a command, its output, its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from real_support import inside

from lighterman import CommandNotExecutable, CommandNotFound, Engine, Mount

pytestmark = pytest.mark.real


@pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 127, 128, 137, 255])
async def test_run_program_exits_code_is_exact(engine: Engine, code: int) -> None:
    done = await engine.run("busybox", ["sh", "-c", f"exit {code}"])
    assert (done.exit.code, done.exit.signal, done.exit.reason) == (code, None, None)
    assert done.exit.shell_code == code


@pytest.mark.parametrize("signal", [9, 15, 6])
async def test_run_program_killed_by_signal_no_code_is_set(engine: Engine, signal: int) -> None:
    # The init of a pid namespace does not get a signal from inside that it does not handle: its init is catatonit.
    container = await engine.create("busybox", ["sleep", "1000"])
    await container.start()
    await container.exec(["true"])
    await container.kill(9)
    exit = await container.wait()
    assert (exit.code, exit.signal, exit.shell_code) == (None, 9, 137)
    await container.remove()
    # A child that a signal ended is told by the shell as docker tells it.
    assert (await engine.run("busybox", ["sh", "-c", f"sh -c 'kill -{signal} $$'; exit $?"])).exit.code == 128 + signal


async def test_run_both_streams_are_kept_apart(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", "echo out; echo err >&2; echo out2"])
    assert (done.stdout, done.stderr) == (b"out\nout2\n", b"err\n")
    assert not done.truncated


async def test_run_binary_output_comes_byte_for_byte(engine: Engine) -> None:
    every = bytes(range(256)) * 64
    done = await engine.run("busybox", ["cat"], stdin=every)
    assert done.stdout == every


async def test_run_more_than_max_output_is_cut_and_says_so(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", "head -c 3000000 /dev/zero; echo end >&2"], max_output=1000)
    assert (len(done.stdout), done.stdout_truncated, done.stderr, done.stderr_truncated) == (
        1000,
        True,
        b"end\n",
        False,
    )
    assert done.exit.code == 0


async def test_run_exactly_max_output_is_not_cut(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", "head -c 1000 /dev/zero"], max_output=1000)
    assert (len(done.stdout), done.stdout_truncated) == (1000, False)


async def test_run_much_output_after_the_exit_is_all_there(engine: Engine) -> None:
    # As much as a pipe holds is written at the very end, and the program is gone before anybody can read it.
    done = await engine.run("busybox", ["sh", "-c", "head -c 65536 /dev/zero | tr '\\0' x; exit 4"])
    assert (done.exit.code, done.stdout) == (4, b"x" * 65536)


async def test_run_grandchild_keeps_the_pipe_run_ends_all_the_same(engine: Engine) -> None:
    done = await asyncio.wait_for(engine.run("busybox", ["sh", "-c", "echo one; sleep 1000 & exit 2"]), 60)
    assert (done.exit.code, done.stdout) == (2, b"one\n")


async def test_run_timeout_kills_and_says_so(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", "echo begun; sleep 1000"], timeout_s=0.5)
    assert (done.exit.signal, done.exit.reason, done.stdout) == (9, "timeout", b"begun\n")


async def test_run_timeout_whole_tree_is_killed(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", "sleep 1000 & sleep 1000 & trap '' TERM; wait"], timeout_s=0.3)
    assert done.exit.reason == "timeout"


async def test_run_fast_program_with_timeout_has_no_reason(engine: Engine) -> None:
    assert (await engine.run("busybox", ["true"], timeout_s=60)).exit.reason is None


async def test_run_times_are_in_order(engine: Engine) -> None:
    done = await engine.run("busybox", ["sleep", "0.2"])
    exit, times = done.exit, done.timings
    assert exit.started_at is not None
    assert exit.finished_at is not None
    assert exit.started_at < exit.finished_at
    assert exit.duration_s is not None
    # The runtime returns some time after the program has begun.
    assert 0 < exit.duration_s < 30
    assert times.total is not None
    assert times.total >= sum(part or 0 for part in (times.prepare, times.runtime, times.program, times.drain)) - 0.001


async def test_run_nothing_of_it_is_listed_afterwards(engine: Engine) -> None:
    await engine.run("busybox", ["true"], name="box")
    # The name is free at once.
    done = await engine.run("busybox", ["echo", "again"], name="box")
    assert done.stdout == b"again\n"
    assert await engine.containers() == []


async def test_run_unknown_command_is_not_found(engine: Engine) -> None:
    with pytest.raises(CommandNotFound) as failed:
        await engine.run("busybox", ["no-such-program"])
    assert failed.value.operation == "run"
    assert failed.value.exit_status
    assert await engine.containers() == []


async def test_run_file_without_x_is_not_executable(engine: Engine) -> None:
    with pytest.raises(CommandNotExecutable):
        await engine.run("busybox", ["/etc/passwd"])


async def test_run_directory_as_command_is_not_executable(engine: Engine) -> None:
    with pytest.raises(CommandNotExecutable):
        await engine.run("busybox", ["/etc"])


async def test_run_with_init_reaps_and_passes_the_code(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", "ps -o pid,args; exit 9"], init=True)
    assert done.exit.code == 9
    first = done.stdout.decode().splitlines()[1]
    assert first.split()[0] == "1"
    assert "init" in first


async def test_command_behind_an_init_is_looked_up(engine: Engine) -> None:
    with pytest.raises(CommandNotFound, match="'no-such-command'"):
        await engine.run("busybox", ["no-such-command"], init=True)
    with pytest.raises(CommandNotExecutable, match="'/etc/passwd'"):
        await engine.run("busybox", ["/etc/passwd"], init=True)
    assert await engine.containers() == []


async def test_run_init_killed_child_code_is_128_and_signal(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", "kill -9 $$"], init=True)
    assert done.exit.shell_code == 137


async def test_run_arguments_are_passed_as_they_are(engine: Engine) -> None:
    arguments = ["a b", "", "'", '"', "$HOME", "\\", "*", "ä€", "-n", "\t"]
    done = await engine.run("busybox", ["sh", "-c", 'for a in "$@"; do printf "<%s>\\n" "$a"; done', "sh", *arguments])
    assert done.stdout.decode() == "".join(f"<{argument}>\n" for argument in arguments)


async def test_run_many_at_once_each_gets_its_own_answer(engine: Engine) -> None:
    done = await asyncio.gather(
        *(engine.run("busybox", ["sh", "-c", f"cat; exit {number}"], stdin=b"%d" % number) for number in range(24))
    )
    assert [(one.exit.code, one.stdout) for one in done] == [(number, b"%d" % number) for number in range(24)]


async def test_run_bind_mounts_read_only_and_writable(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    text = await inside(
        engine,
        "cat /ro/file; touch /ro/x 2>/dev/null && echo wrong; echo in > /rw/new; df /t | tail -1 | cut -d' ' -f1",
        mounts=[f"{tmp_path}:/ro:ro", f"{tmp_path}:/rw", Mount(type="tmpfs", target="/t", size_bytes=1 << 20)],
    )
    assert text == "from the host\ntmpfs\n"
    assert (tmp_path / "new").read_text() == "in\n"


@pytest.mark.parametrize("how", ["", ":ro"])
@pytest.mark.parametrize("target", ["/etc/one", "/new/directory/one", "/etc/passwd"])
async def test_run_one_file_bound_is_that_file(engine: Engine, tmp_path: Path, target: str, how: str) -> None:
    (tmp_path / "file").write_text("one\n")
    assert await inside(engine, f"cat {target}", mounts=[f"{tmp_path}/file:{target}{how}"]) == "one\n"
    assert (tmp_path / "file").read_text() == "one\n"
