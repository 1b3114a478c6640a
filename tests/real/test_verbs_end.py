"""Every verb ends, with a typed result; and none on one container waits for another. A runtime that hangs is in
test_failing_runtime.py."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_support import process_is_there, running_in

from lighterman import Engine, InvalidState, NotFound
from lighterman.lifecycle.status import Status
from support import eventually

pytestmark = pytest.mark.real

IGNORES = ["sh", "-c", "trap '' TERM INT HUP; echo ready; while :; do sleep 0.1; done"]


async def test_P06_init_ignores_TERM(engine: Engine) -> None:
    async with engine.container("busybox", IGNORES) as box:
        await box.stdout.readline()
        exit = await asyncio.wait_for(box.stop(grace_s=0.3), 60)
        assert exit is not None
        assert (exit.signal, exit.reason) == (9, "stop")


async def test_P06_a_grandchild_holds_stdout(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        begun = time.monotonic()
        done = await asyncio.wait_for(box.exec(["sh", "-c", "echo out; sleep 1000 & exit 5"]), 60)
        assert (done.exit.code, done.stdout) == (5, b"out\n")
        assert time.monotonic() - begun < 30
    done = await asyncio.wait_for(engine.run("busybox", ["sh", "-c", "echo out; sleep 1000 & exit 6"]), 60)
    assert (done.exit.code, done.stdout) == (6, b"out\n")


async def test_P06_two_removes_race(engine: Engine) -> None:
    for _ in range(5):
        box = await engine.create("busybox", IGNORES)
        await box.start()
        ends = await asyncio.wait_for(
            asyncio.gather(*(box.remove(force=True) for _ in range(4)), return_exceptions=True), 60
        )
        assert all(end is None or isinstance(end, NotFound) for end in ends), ends
        assert None in ends
        assert (await box.wait()).signal == 9
        assert box.status is Status.REMOVED
        assert running_in(box.id) == []


async def test_P06_verbs_of_all_kinds_race(engine: Engine) -> None:
    """Whatever meets whatever: every one of them ends, typed."""
    for _ in range(5):
        box = await engine.create("busybox", ["sleep", "1000"])
        await box.start()
        verbs = [
            box.stop(grace_s=0),
            box.kill(),
            box.pause(),
            box.resume(),
            box.exec(["true"], timeout_s=1),
            box.exec(["sleep", "1000"], timeout_s=0.1),
            box.restart(grace_s=0),
            box.wait(),
            box.remove(force=True),
        ]
        ends = await asyncio.wait_for(asyncio.gather(*verbs, return_exceptions=True), 90)
        wrong = [end for end in ends if isinstance(end, BaseException) and not _is_typed(end)]
        assert not wrong, wrong
        await eventually(functools.partial(nothing_runs_in, box.id))


def nothing_runs_in(id: str) -> bool:
    return not running_in(id)


def _is_typed(end: BaseException) -> bool:
    from lighterman import InternalError, LightermanError

    return isinstance(end, LightermanError) and not isinstance(end, InternalError)


async def test_P06_a_reader_that_is_stopped_holds_nobody_up(root: Path) -> None:
    """The program that reads a container's output is stopped; it is ended all the same, and others go on."""
    command = [sys.executable, "-m", "lighterman.cli", "run", "busybox", "sh", "-c"]
    command += [
        "echo begun >&2; while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done"
    ]
    out_r, out_w = os.pipe()
    client = await asyncio.create_subprocess_exec(*command, stdout=out_w, stderr=subprocess.PIPE)
    os.close(out_w)
    try:
        assert client.stderr is not None
        assert await client.stderr.readline() == b"begun\n"
        # Nobody reads `out_r`: the client stands still in its write, and is stopped there.
        client.send_signal(signal.SIGSTOP)
        async with Engine(root=root) as engine:
            done = await asyncio.wait_for(engine.run("busybox", ["sh", "-c", "echo fine; exit 3"]), 60)
            assert (done.exit.code, done.stdout) == (3, b"fine\n")
    finally:
        client.kill()
        await client.wait()
        os.close(out_r)


async def test_P06_a_reader_within_the_program_that_stands_still(engine: Engine) -> None:
    """Who has begun to read and stops holds up the program at most, never its end."""
    script = "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done"
    async with engine.container("busybox", ["sh", "-c", script]) as box:
        await box.stdout.readline()
        exit = await asyncio.wait_for(box.stop(grace_s=0.2), 60)
        assert exit is not None
        with pytest.raises(InvalidState):
            await box.exec(["true"])


def run_program(what: str) -> list[str]:
    environment = {**os.environ, "LIGHTERMAN_KILL_WAIT_S": "1", "LIGHTERMAN_EXEC_TERM_S": "0.2"}
    program = Path(__file__).with_name("verbs_program.py")
    done = subprocess.run(
        [sys.executable, str(program), what], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_P06_unkillable_names_the_process_since_when_and_where() -> None:
    lines = run_program("unkillable")
    assert len(lines) == 4, lines
    for said, took in (lines[:2], lines[2:]):
        match = re.fullmatch(
            r"Unkillable True (\d+) container \w+ is unkillable: pid (\d+) has not ended (\d+) s after SIGKILL; "
            r"in uninterruptible sleep: pid (\d+) in nfs_wait_on_request",
            said,
        )
        assert match, said
        assert match[1] == match[2] == match[4]
        assert not process_is_there(int(match[1]))
        # The limit is 1 s; whoever waits is told soon after, on a busy host too.
        assert float(took.split()[1]) < 30


def test_P06_exec_in_a_paused_container_is_killed_all_the_same() -> None:
    assert run_program("frozen") == ["other fine"]
