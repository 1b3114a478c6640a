"""Containers and execs with a terminal."""

from __future__ import annotations

import asyncio

import pytest
from real_support import logged

from lighterman import ConsoleSize, Engine, InvalidState

pytestmark = pytest.mark.real


async def test_terminal_size_is_set_before_the_program_starts(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", "tty; stty size"], terminal=True, console_size=(40, 100))
    assert done.stdout == b"/dev/pts/0\r\n40 100\r\n"
    assert done.stderr == b""


async def test_terminal_is_the_controlling_one_of_all_three(engine: Engine) -> None:
    script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo yes > /dev/tty; ls -l /dev/console | cut -c1"
    done = await engine.run("busybox", ["sh", "-c", script], terminal=True)
    assert done.stdout == b"yes\r\nc\r\n"


async def test_terminal_resize_reaches_the_program(engine: Engine) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do read x; done"
    async with engine.container("busybox", ["sh", "-c", script], terminal=True, stdin=True) as box:
        assert await box.stdout.readline() == b"ready\r\n"
        await box.resize(height=33, width=77)
        assert await asyncio.wait_for(box.stdout.readline(), 30) == b"33 77\r\n"


async def test_terminal_ctrl_c_interrupts(engine: Engine) -> None:
    script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    async with engine.container("busybox", ["sh", "-c", script], terminal=True, stdin=True) as box:
        assert await box.stdout.readline() == b"ready\r\n"
        box.stdin.write(b"\x03")
        assert (await box.wait()).code == 5
        assert b"interrupted\r\n" in await box.stdout.read()


async def test_terminal_ctrl_d_is_end_of_file(engine: Engine) -> None:
    async with engine.container("busybox", ["cat"], terminal=True, stdin=True) as box:
        box.stdin.write(b"line\n\x04")
        assert (await box.wait()).code == 0
        assert await box.stdout.read() == b"line\r\nline\r\n"


async def test_terminal_stderr_is_invalid(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], terminal=True) as box:
        with pytest.raises(InvalidState):
            _ = box.stderr


async def test_terminal_much_output_is_whole(engine: Engine) -> None:
    done = await engine.run("busybox", ["seq", "1", "50000"], terminal=True)
    assert done.stdout == b"".join(b"%d\r\n" % number for number in range(1, 50001))


async def test_terminal_output_is_in_the_log_as_stdout(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "echo out; echo err >&2"], terminal=True) as box:
        await box.wait()
        assert await logged(box, "stdout") == b"out\r\nerr\r\n"


async def test_resize_without_terminal_is_invalid(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        with pytest.raises(InvalidState):
            await box.resize(height=10, width=10)
        process = await box.start_exec(["sleep", "1000"])
        with pytest.raises(InvalidState):
            await process.resize(height=10, width=10)


async def test_exec_terminal_size_resize_and_exit(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        process = await box.start_exec(
            ["sh", "-c", "stty size; trap 'stty size; exit 9' WINCH; echo ready; while :; do sleep 0.05; done"],
            terminal=True,
            stdin=True,
            console_size=ConsoleSize(height=20, width=50),
        )
        assert await process.stdout.readline() == b"20 50\r\n"
        assert await process.stdout.readline() == b"ready\r\n"
        await process.resize(height=21, width=51)
        assert (await process.wait()).code == 9
        assert await process.stdout.read() == b"21 51\r\n"


async def test_exec_with_terminal_in_container_with_terminal(engine: Engine) -> None:
    async with engine.container("busybox", ["sh"], terminal=True, stdin=True) as box:
        process = await box.start_exec(["tty"], terminal=True)
        assert (await process.wait()).code == 0
        assert (await process.stdout.read()).startswith(b"/dev/pts/")


async def test_terminal_container_killed_ends(engine: Engine) -> None:
    async with engine.container("busybox", ["sh"], terminal=True, stdin=True) as box:
        exit = await asyncio.wait_for(box.stop(grace_s=0.1), 60)
        assert exit is not None
        assert exit.reason == "stop"
