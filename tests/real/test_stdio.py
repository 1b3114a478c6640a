"""Input, output, half-close, back-pressure."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest
from real_support import logged

from lighterman import BrokenPipe, Engine, InvalidState

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("program", "given", "wanted"),
    [
        (["cat"], b"a\nb\n", b"a\nb\n"),
        (["wc", "-c"], b"12345", b"5\n"),
        (["sort"], b"b\na\n", b"a\nb\n"),
    ],
)
async def test_half_close_output_after_the_end_of_input_arrives(
    engine: Engine, program: list[str], given: bytes, wanted: bytes
) -> None:
    async with engine.container("busybox", program, stdin=True) as box:
        box.stdin.write(given)
        box.stdin.write_eof()
        await box.stdin.wait_closed()
        assert await box.stdout.read() == wanted
        assert (await box.wait()).code == 0


async def test_stdin_not_asked_for_program_reads_the_end(engine: Engine) -> None:
    assert (await engine.run("busybox", ["cat"])).exit.code == 0
    async with engine.container("busybox", ["cat"]) as box:
        assert (await box.wait()).code == 0
        with pytest.raises(InvalidState):
            _ = box.stdin


async def test_stdin_conversation_line_by_line(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "while read l; do echo got $l; done"], stdin=True) as box:
        for number in range(50):
            box.stdin.write(b"%d\n" % number)
            await box.stdin.drain()
            assert await box.stdout.readline() == b"got %d\n" % number


async def test_stdin_five_megabytes_through_come_byte_for_byte(engine: Engine) -> None:
    data = os.urandom(5_000_000)
    done = await engine.run("busybox", ["cat"], stdin=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


async def test_stdin_program_closes_it_drain_says_broken_pipe(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "exec 0<&-; echo closed; sleep 1000"], stdin=True) as box:
        assert await box.stdout.readline() == b"closed\n"

        async def write_for_ever() -> None:
            while True:
                box.stdin.write(b"x" * 200_000)
                await box.stdin.drain()

        with pytest.raises(BrokenPipe):
            await asyncio.wait_for(write_for_ever(), 60)


async def test_stdin_program_does_not_read_run_is_not_held_up(engine: Engine) -> None:
    done = await asyncio.wait_for(engine.run("busybox", ["sh", "-c", "exit 3"], stdin=b"x" * 4_000_000), 60)
    assert done.exit.code == 3


async def test_output_40_megabytes_hash_is_right(engine: Engine) -> None:
    done = await engine.run(
        "busybox", ["sh", "-c", "yes 0123456789 | head -c 40000000 | tee /dev/stderr | md5sum"], max_output=1 << 26
    )
    assert len(done.stderr) == 40_000_000
    assert done.stdout.split()[0].decode() == hashlib.md5(done.stderr).hexdigest()


async def test_output_nobody_reads_container_ends_all_the_same(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "yes | head -c 30000000; exit 8"]) as box:
        assert (await asyncio.wait_for(box.wait(), 90)).code == 8


async def test_output_is_there_before_the_end(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "echo first; read x; echo second"], stdin=True) as box:
        assert await box.stdout.readline() == b"first\n"
        box.stdin.write(b"go\n")
        assert await box.stdout.readline() == b"second\n"
        assert await box.stdout.readline() == b""
        assert box.stdout.at_eof()


async def test_output_read_after_the_end_is_whole(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "echo out; echo err >&2"]) as box:
        await box.wait()
        assert (await box.stdout.read(), await box.stderr.read()) == (b"out\n", b"err\n")
        assert await logged(box, None) in (b"out\nerr\n", b"err\nout\n")


async def test_output_closed_by_the_program_container_goes_on(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "exec >&- 2>&-; read x; exit 4"], stdin=True) as box:
        assert await box.stdout.read() == b""
        assert box.exit is None
        box.stdin.write(b"\n")
        assert (await box.wait()).code == 4


async def test_output_reader_cancelled_no_byte_is_lost(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "while read l; do echo $l; done"], stdin=True) as box:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await box.stdout.readline()
        expected = b"".join(b"%d\n" % number for number in range(2000))
        box.stdin.write(expected)
        box.stdin.write_eof()
        read = b""
        while not box.stdout.at_eof():
            try:
                async with asyncio.timeout(0.001):
                    read += await box.stdout.read(100)
            except TimeoutError:
                continue
        assert read == expected
