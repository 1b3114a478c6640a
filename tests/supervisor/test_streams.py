"""What happens to the bytes of stdin, stdout and stderr, until the drain is over [L15-L19]."""

from __future__ import annotations

import asyncio
import math
import re

import pytest

from lighterman import limits
from lighterman.errors import AlreadyClosed, BrokenPipe, InvalidState, KeeperLost, NotFound, RuntimeFailed
from lighterman.lifecycle.events import State
from lighterman.runtimes.fake.pipes import FakeReadPipe, FakeWritePipe
from lighterman.supervisor.streams import DrainEnd, ReadStream, Streams, WriteStream
from lighterman.testing import ProgramContext
from supervisor.world import World, config

FAILED = RuntimeFailed("it failed", runtime="fake", operation="close_stdin")


def streams_of(world: World, process_id: str = "init") -> Streams:
    return world.backend.streams["c1", process_id]


def stdin_of(world: World) -> WriteStream:
    stdin = streams_of(world).stdin
    assert stdin is not None
    return stdin


def stdout_of(world: World, process_id: str = "init") -> ReadStream:
    stdout = streams_of(world, process_id).stdout
    assert stdout is not None
    return stdout


# ---- L15: closing stdin ------------------------------------------------------------------------------------------


async def test_L15_closing_closes_the_pipe_and_tells_the_runtime(world: World) -> None:
    """The fake's keeper holds a second copy of the write end: closing the pipe alone would not end `cat`."""
    await world.create("cat", stdin=True)
    await stdin_of(world).write(b"abc")
    await stdin_of(world).close()
    assert (await world.client.wait("c1")).exit_code == 0
    assert world.runtime.count("close_stdin") == 1
    assert world.backend.stdout("c1") == b"abc"


@pytest.mark.parametrize("expected", [NotFound("x"), AlreadyClosed("x"), InvalidState("x")])
async def test_L15_expected_errors_are_swallowed(world: World, expected: Exception) -> None:
    world.plan.at("close_stdin", error=expected)
    await world.create("sleep", stdin=True)
    await stdin_of(world).close()


@pytest.mark.parametrize("other", [FAILED, KeeperLost("x")])
async def test_L15_other_errors_are_raised(world: World, other: Exception) -> None:
    world.plan.at("close_stdin", error=other)
    await world.create("sleep", stdin=True)
    with pytest.raises(type(other)):
        await stdin_of(world).close()


async def test_L15_done_only_when_nobody_else_holds_it(world: World) -> None:
    world.plan.at("close_stdin", delay_s=5)
    await world.create("cat", stdin=True)
    before = world.clock.mono()
    await stdin_of(world).close()
    assert world.clock.mono() - before == 5


async def test_L15_closing_twice_tells_the_runtime_once(world: World) -> None:
    await world.create("sleep", stdin=True)
    await asyncio.gather(stdin_of(world).close(), stdin_of(world).close())
    await stdin_of(world).close()
    await stdin_of(world).wait_closed()
    assert world.runtime.count("close_stdin") == 1


async def test_L15_closing_after_the_exit_is_no_error(world: World) -> None:
    world.backend.reads = False
    system = await world.create("sleep", stdin=True)
    system.init.exit(0)
    await world.clock.settle()
    await stdin_of(world).close()


async def test_L15_write_after_close(world: World) -> None:
    await world.create("sleep", stdin=True)
    await stdin_of(world).close()
    with pytest.raises(AlreadyClosed):
        await stdin_of(world).write(b"x")


async def test_L15_write_to_a_process_that_is_gone(world: World) -> None:
    world.backend.reads = False
    system = await world.create("sleep", stdin=True)
    system.init.exit(0)
    await world.clock.settle()
    with pytest.raises((BrokenPipe, AlreadyClosed)):
        await stdin_of(world).write(b"x")


async def test_L15_detached_stdin_is_told_to_the_runtime_all_the_same(world: World) -> None:
    world.use(detachable=True)
    await world.create("cat", stdin=True)
    taken = world.runtime.descriptors[stdin_of(world).detach()]
    assert isinstance(taken, FakeWritePipe)
    await taken.write(b"abc")
    await taken.close()
    await stdin_of(world).close()
    assert (await world.client.wait("c1")).exit_code == 0
    assert world.backend.stdout("c1") == b"abc"


# ---- L16: half-close ---------------------------------------------------------------------------------------------


async def test_L16_output_arrives_after_stdin_was_closed(world: World) -> None:
    async def wc(context: ProgramContext) -> int:
        count = 0
        while data := await context.read():
            count += len(data)
        await context.sleep(5)
        await context.write(b"%d\n" % count)
        await context.write_error(b"done\n")
        return 0

    world.program("wc", wc)
    await world.create("wc", stdin=True)
    await world.backend.write_stdin("c1", b"x" * 300_000)
    assert (await world.client.wait("c1")).exit_code == 0
    assert world.backend.stdout("c1") == b"300000\n"
    assert world.backend.stderr("c1") == b"done\n"


async def test_L16_half_close_of_an_exec(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("cat", stdin=True))
    await world.backend.write_stdin("c1", b"abc", "x")
    assert (await world.backend.wait_for("c1", State.EXIT_PROCESS)).exit_code == 0
    assert world.backend.stdout("c1", "x") == b"abc"


# ---- L17: a reader at its end ------------------------------------------------------------------------------------


async def test_L17_reader_closes_itself_exactly_once(world: World) -> None:
    async def early(context: ProgramContext) -> int:
        await context.write(b"abc")
        context.close_output()
        await context.sleep(100)
        return 0

    world.program("early", early)
    world.backend.reads = False
    await world.create("early")
    stdout = stdout_of(world)
    assert [await stdout.read(), await stdout.read(), await stdout.read()] == [b"abc", b"", b""]
    await stdout.wait_closed()
    assert "c1/init stdout" not in world.runtime.leftovers().pipes
    await stdout.close()
    assert world.states() == ["start"]


async def test_L17_broken_pipe_is_an_end(world: World) -> None:
    world.backend.reads = False
    system = await world.create("sleep")
    reading = asyncio.create_task(stdout_of(world).read())
    await world.clock.settle()
    assert system.init.stdout is not None
    system.init.stdout.broken = True
    system.init.stdout.changed()
    assert await reading == b""
    await stdout_of(world).wait_closed()


async def test_L17_two_readers_at_once_are_refused(world: World) -> None:
    await world.create("sleep")
    await world.clock.settle()
    with pytest.raises(InvalidState):
        await stdout_of(world).read()


async def test_L17_cancelled_read_loses_no_byte(world: World) -> None:
    world.backend.reads = False
    await world.create("cat", stdin=True)
    for _ in range(3):
        reading = asyncio.create_task(stdout_of(world).read())
        await world.clock.settle()
        reading.cancel()
        await asyncio.wait([reading])
    await stdin_of(world).write(b"abc")
    assert await stdout_of(world).read() == b"abc"


# ---- L18: binary, and the one exception --------------------------------------------------------------------------

EVERY_BYTE = bytes(range(256)) + b"\r\n\xff\xfe\x00\x1a"
SWAPPED = EVERY_BYTE.translate(bytes.maketrans(b"\x08\x7f", b"\x7f\x08"))


@pytest.mark.parametrize(
    ("os_build", "terminal", "arrives"),
    [
        (None, False, EVERY_BYTE),
        (None, True, EVERY_BYTE),
        (14349, False, EVERY_BYTE),
        (14349, True, SWAPPED),
        (10586, True, SWAPPED),
        (14350, True, EVERY_BYTE),
        (14393, True, EVERY_BYTE),
    ],
)
async def test_L18_bytes_arrive_as_they_are(world: World, os_build: int | None, terminal: bool, arrives: bytes) -> None:
    await world.create("cat", stdin=True, terminal=terminal, os_build=os_build)
    await world.backend.write_stdin("c1", EVERY_BYTE)
    await world.client.wait("c1")
    assert world.backend.stdout("c1") == arrives


async def test_L18_a_filtered_stdin_is_not_given_away(world: World) -> None:
    world.use(detachable=True)
    await world.create("cat", stdin=True, terminal=True, os_build=10586)
    with pytest.raises(InvalidState):
        stdin_of(world).detach()


async def test_L18_exec_input_is_filtered_by_the_image_too(world: World) -> None:
    await world.create("sleep", os_build=10586)
    await world.client.add_process("c1", "x", config("cat", stdin=True, terminal=True))
    await world.backend.write_stdin("c1", b"a\x7fb", "x")
    await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert world.backend.stdout("c1", "x") == b"a\x08b"


# ---- L19: the drain ----------------------------------------------------------------------------------------------


async def test_L19_each_stream_is_read_to_its_end(world: World) -> None:
    async def both(context: ProgramContext) -> int:
        await context.write(b"o" * 200_000)
        await context.write_error(b"e" * 100_000)
        return 0

    world.program("both", both)
    await world.create("both")
    ended = await world.client.wait("c1")
    assert ended.drained == ("eof", "eof")
    assert len(world.backend.stdout("c1")) == 200_000
    assert len(world.backend.stderr("c1")) == 100_000


async def test_L19_grandchild_holds_the_pipe_for_ever(world: World) -> None:
    await world.create("grandchild")
    before = world.clock.mono()
    ended = await world.client.wait("c1")
    assert world.clock.mono() == before
    assert "buffered" in ended.drained
    assert world.backend.stdout("c1") == b"before\n"


async def test_L19_buffered_bytes_are_all_read(world: World) -> None:
    """The consumer is slower than the program, and a grandchild keeps the pipe open: what was in it arrives."""

    async def program(context: ProgramContext) -> int:
        context.leave_grandchild(math.inf)
        await context.write(b"x" * 60_000)
        return 0

    world.program("program", program)
    world.backend.reads = False
    await world.create("program")
    got = b""
    while data := await stdout_of(world).read(1000):
        got += data
        await world.clock.sleep(limits.DRAIN_S * 0.9)
    stderr = streams_of(world).stderr
    assert stderr is not None
    assert await stderr.read() == b""
    ended = await world.client.wait("c1")
    assert ended.drained == ("buffered", "buffered")
    assert got == b"x" * 60_000


async def test_L19_what_the_grandchild_writes_later_is_not_waited_for(world: World) -> None:
    await world.create("grandchild", "5")
    ended = await world.client.wait("c1")
    assert b"late" not in world.backend.stdout("c1")
    assert ended.finished_mono == ended.started_mono


async def test_L19_grandchild_that_writes_without_end_does_not_hold_the_exit(world: World) -> None:
    async def program(context: ProgramContext) -> int:
        context.leave_grandchild(0.001, b"y" * 10_000_000)
        await context.write(b"mine")
        return 3

    world.program("program", program)
    await world.create("program")
    ended = await world.client.wait("c1")
    assert ended.exit_code == 3
    assert world.backend.stdout("c1").startswith(b"mine")


async def test_L19_consumer_without_progress_is_given_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.backend.reads = False
    await world.create("echo", "hi")
    before = world.clock.mono()
    ended = await world.client.wait("c1")
    assert limits.DRAIN_S <= world.clock.mono() - before <= 3 * limits.DRAIN_S
    assert "stuck" in ended.drained
    assert "no progress" in caplog.text
    assert await stdout_of(world).read() == b""


async def test_L19_slow_consumer_with_progress_is_waited_for(world: World) -> None:
    async def program(context: ProgramContext) -> int:
        await context.write(b"x" * 50_000)
        context.close_output()
        return 0

    world.program("program", program)
    world.backend.reads = False
    await world.create("program")
    got = 0
    before = world.clock.mono()
    while data := await stdout_of(world).read(1000):
        got += len(data)
        await world.clock.sleep(limits.DRAIN_S * 0.9)
    assert got == 50_000
    assert world.clock.mono() - before > 10 * limits.DRAIN_S
    stderr = streams_of(world).stderr
    assert stderr is not None
    await stderr.read()
    assert (await world.client.wait("c1")).drained == ("eof", "eof")


async def test_L19_exit_code_and_stop_do_not_wait_for_the_drain(world: World) -> None:
    world.backend.reads = False
    system = await world.create("sleep")
    system.init.exit(0)
    before = world.clock.mono()
    await world.client.stop("c1")
    assert world.clock.mono() == before


async def test_L19_finish_time_is_that_of_the_exit(world: World) -> None:
    world.backend.reads = False
    await world.create("sleep", "7")
    ended = await world.client.wait("c1")
    assert ended.started_mono is not None
    assert ended.finished_mono == ended.started_mono + 7


async def test_L19_holds_for_exec_processes(world: World) -> None:
    await world.create("sleep")
    await world.client.add_process("c1", "x", config("grandchild"))
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS)
    assert "buffered" in ended.drained
    assert world.backend.stdout("c1", "x") == b"before\n"
    world.backend.reads = False
    await world.client.add_process("c1", "y", config("echo", "hi"))
    ended = await world.backend.wait_for("c1", State.EXIT_PROCESS, count=2)
    assert "stuck" in ended.drained


async def test_L19_reader_that_waits_when_the_drain_begins_gets_all(world: World) -> None:
    """The read waits in the pipe, the bytes and the exit come at the same moment."""
    system = await world.create("sleep")
    await world.clock.settle()
    init = system.init
    assert init.stdout is not None
    init.leave_grandchild(math.inf, b"")
    await init.stdout.write(b"last words", lambda: True)
    init.exit(1)
    ended = await world.client.wait("c1")
    assert world.backend.stdout("c1") == b"last words"
    assert ended.drained == ("buffered", "buffered")


async def test_L19_late_end_of_stream_of_a_live_drain(world: World) -> None:
    world.backend.reads = False
    system = await world.create("sleep")
    system.init.leave_grandchild(3, b"")
    system.init.exit(0)
    await world.clock.sleep(5)
    world.backend.read("c1", "init", streams_of(world))
    ended = await world.client.wait("c1")
    assert "stuck" not in ended.drained


async def test_L19_detached_descriptor_is_waited_for(world: World) -> None:
    world.use(detachable=True)
    world.backend.reads = False
    system = await world.create("echo", "hi")
    stdout, stderr = streams_of(world).readable
    taken = world.runtime.descriptors[stdout.detach()]
    await stderr.close()
    assert isinstance(taken, FakeReadPipe)
    waiting = asyncio.create_task(world.client.wait("c1"))
    await stdout.wait_drain()
    await world.clock.sleep(limits.DRAIN_S / 2)
    assert not waiting.done()
    assert await taken.read(100) == b"hi\n"
    await taken.close()
    stdout.drained(DrainEnd.EOF)
    assert (await waiting).drained == ("eof", "eof")
    assert system.init.exit_code is not None


async def test_L19_detached_and_never_drained_is_given_up(world: World) -> None:
    world.use(detachable=True)
    world.backend.reads = False
    await world.create("echo", "hi")
    for stream in streams_of(world).readable:
        stream.detach()
    assert (await world.client.wait("c1")).drained == ("stuck", "stuck")


async def test_streams_name_their_process(world: World) -> None:
    await world.create("sleep")
    assert re.search("c1.*init.*stdout", stdout_of(world).name)
