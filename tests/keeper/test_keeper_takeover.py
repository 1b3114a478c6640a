"""`kill -9` of the engine: the keeper goes on, and the next engine finds every exit code and every byte."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from keeper_support import LINES, Keepers, alive, exit_code, text_of
from killed_engine import code_of

from builds import Builds
from lighterman.errors import KeeperLost
from lighterman.keeper import scope
from lighterman.keeper.client import JobExit, KeeperClient, SegmentPlan
from lighterman.keeper.segments import (
    HEADER_BYTES,
    SegmentWriter,
    frame_position,
    list_segments,
    segment_name,
    unpack_header,
)
from lighterman.keeper.slots import read_exit_slots
from support import eventually

ENGINE = Path(__file__).with_name("killed_engine.py")


def start_engine(keepers: Keepers, jobs: int, *, pump: bool, action: str = "stay") -> subprocess.Popen[str]:
    """Returns when its jobs run; in a process group of its own."""
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    engine = subprocess.Popen(
        [sys.executable, str(ENGINE), str(keepers.directory()), str(jobs), str(int(pump)), action],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        start_new_session=True,
    )
    assert engine.stdout is not None
    line = engine.stdout.readline()
    engine.stdout.close()
    keepers.pids.add(int(line))
    return engine


def written(directory: Path, *, is_growing: bool = False) -> dict[int, bytes]:
    """The payload of each stream in the segments of a directory; all frames are whole, but one being written."""
    streams = {1: b"", 2: b""}
    offset = 0
    for start in list_segments(str(directory)):
        data = (directory / segment_name(start)).read_bytes()
        at = 0
        while at < len(data):
            header = unpack_header(data, at, at)
            assert header is not None
            stream, _, length, frame_offset, _ = header
            assert frame_offset == offset
            payload = data[at + HEADER_BYTES : at + HEADER_BYTES + length]
            if is_growing and len(payload) < length:
                return streams
            assert len(payload) == length
            streams[stream] += payload
            offset += length
            at = frame_position(at + HEADER_BYTES + length)
    return streams


async def finish(keeper: KeeperClient, job: str, directory: Path) -> None:
    """Do what an engine does that takes over: what is still in the pipes goes into the segments."""
    writer = SegmentWriter(str(directory), 10_000_000, 5)
    fds = await keeper.fetch(job)
    sources = {fds["stdout"]: 1, fds["stderr"]: 2}
    while sources:
        progress = False
        for fd, stream in list(sources.items()):
            try:
                moved = writer.splice(stream, fd, 65536)
            except BlockingIOError:
                continue
            progress = True
            if moved == 0:
                del sources[fd]
                os.close(fd)
        if not progress:
            await asyncio.sleep(0.001)
    writer.close()


def expected() -> dict[int, bytes]:
    return {
        1: "".join(f"out {number}\n" for number in range(LINES)).encode(),
        2: "".join(f"err {number}\n" for number in range(LINES)).encode(),
    }


@pytest.mark.parametrize("pump", [True, False], ids=["engine-wrote", "keeper-alone"])
@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_lost_or_doubled_when_the_engine_is_killed(keepers: Keepers, pump: bool, seed: int) -> None:
    jobs = 8
    chance = random.Random(seed)
    engine = await asyncio.to_thread(start_engine, keepers, jobs, pump=pump)
    logs = keepers.directory() / "logs"
    goal = chance.randrange(1, LINES * 8)

    def enough_was_written() -> bool:
        return not pump or sum(file.stat().st_size for file in logs.glob("j0/*")) >= goal

    await eventually(enough_was_written)
    engine.send_signal(signal.SIGKILL)
    await asyncio.to_thread(engine.wait)
    if seed % 2:
        # Nobody is there for a while: the writers must not stand still.
        await eventually(lambda: len(slots(keepers)) == jobs)
    keeper = await keepers.connect()
    assert {job.job for job in await keeper.list_jobs()} == {f"j{number}" for number in range(jobs)}
    names = [f"j{number}" for number in range(jobs)]
    await asyncio.gather(*(finish(keeper, name, logs / name) for name in names))
    for number, name in enumerate(names):
        assert exit_code((await keeper.wait_exit(name)).status) == code_of(number)
        assert await asyncio.to_thread(written, logs / name) == expected()
        await keeper.acknowledge(name)
    assert await keeper.list_jobs() == []
    assert slots(keepers) == {}


def slots(keepers: Keepers) -> dict[str, int]:
    files = (keepers.directory() / "exits").iterdir()
    return {exit.job: exit_code(exit.status) for file in files for exit in read_exit_slots(str(file))}


async def test_a_spawn_whose_engine_died_is_found(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    fifo = keepers.root / "go"
    os.mkfifo(fifo)
    for name, end in (("good", "echo $$ > $1"), ("bad", "exit 5")):
        argv = ("sh", "-c", f'read line < "$2"; {end}', "runtime", str(keepers.root / f"{name}.pid"), str(fifo))
        spawning = asyncio.create_task(keeper.spawn(keepers.job(name, "", argv=argv, executable="/bin/sh")))
        await eventually(keeper.list_jobs)
        await keeper.close()
        with pytest.raises(KeeperLost):
            await spawning
        await asyncio.to_thread(fifo.write_text, "go\n")
        keeper = await keepers.connect()
        # "good" names itself, so that both end with the runtime.
        exit: JobExit = await keeper.wait_exit(name)
        assert exit_code(exit.status) == (0 if name == "good" else 5)
        (listed,) = await keeper.list_jobs()
        assert listed.exit == exit
        if name == "bad":
            assert listed.pid is None
        await keeper.acknowledge(name)
        assert await keeper.list_jobs() == []


async def test_the_process_group_of_the_owner_is_killed(keepers: Keepers) -> None:
    engine = await asyncio.to_thread(start_engine, keepers, 1, pump=False)
    os.killpg(engine.pid, signal.SIGKILL)
    await asyncio.to_thread(engine.wait)
    (pid,) = keepers.pids
    assert alive(pid)
    stat = text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()
    session, terminal = int(stat[3]), int(stat[4])
    assert session != engine.pid
    assert session != pid  # no leader: it can never get a terminal
    assert terminal == 0
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    keeper = await keepers.connect()
    assert keeper.pid == pid
    assert exit_code((await asyncio.wait_for(drained_exit(keeper, keepers), 30)).status) == code_of(0)


async def drained_exit(keeper: KeeperClient, keepers: Keepers) -> JobExit:
    await finish(keeper, "j0", keepers.directory() / "logs" / "j0")
    return await keeper.wait_exit("j0")


@pytest.mark.parametrize("upgraded", [False, True])
async def test_a_child_of_the_engine_that_lives_is_no_engine(keepers: Keepers, builds: Builds, upgraded: bool) -> None:
    if upgraded:
        # It makes a keeper of another build its own.
        builds.use()
        await (await keepers.connect()).close()
    engine = await asyncio.to_thread(start_engine, keepers, 1, pump=False, action="fork")
    try:
        engine.send_signal(signal.SIGKILL)
        await asyncio.to_thread(engine.wait)
        # The keeper sees that nobody is there, and takes the output.
        logs = keepers.directory() / "logs" / "j0"
        await eventually(lambda: logs.exists() and written(logs, is_growing=True) == expected())
    finally:
        os.killpg(engine.pid, signal.SIGKILL)


async def test_a_keeper_in_groups_of_its_own(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    groups = {line.split(":", 2)[2] for line in text_of(f"/proc/{keeper.pid}/cgroup").splitlines()}
    above = {group.removesuffix("/lighterman-keeper") for group in groups}
    own = above == {""} or all(scope.is_one(path) for path in above)
    assert (await keeper.stats()).own_cgroup == own
    if os.geteuid() == 0 and os.access("/sys/fs/cgroup", os.W_OK):
        assert own
        # Under systemd the tree is ours in a scope alone.
        assert (above == {""}) != scope.is_wanted()


async def test_a_newer_engine_fences_the_older(keepers: Keepers) -> None:
    older = await keepers.connect()
    await keepers.spawn(older, keepers.job("a", "exec sleep 1000"))
    waiting = asyncio.create_task(older.wait_exit("a"))
    await older.ping()
    newer = await keepers.connect()
    await older.wait_lost()
    with pytest.raises(KeeperLost) as caught:
        await waiting
    assert "fenced" in caught.value.message
    for lost in (older.ping(), older.spawn(keepers.job("b", "exit 0")), older.wait_exit("a"), older.acknowledge("a")):
        with pytest.raises(KeeperLost):
            await lost
    (listed,) = await newer.list_jobs()
    assert listed.pid is not None
    os.kill(listed.pid, signal.SIGTERM)
    assert exit_code((await newer.wait_exit("a")).status) == -signal.SIGTERM


async def test_output_waits_for_a_program_that_is_not_on_the_disk(keepers: Keepers, builds: Builds) -> None:
    keepers.may_complain = True
    name = builds.use()
    keeper = await keepers.connect()
    out_r, out_w = os.pipe()
    logs = keepers.directory() / "logs"
    job = keepers.job(
        "a",
        "echo said; exec sleep 1000",
        stdio=(keepers.null, out_w, keepers.null),
        hold={"stdout": out_r},
        segments=SegmentPlan(str(logs), 10_000, 5),
    )
    await keepers.spawn(keeper, job)
    for fd in (out_r, out_w):
        os.close(fd)
    program, away = keepers.root / name, keepers.root / "away"
    program.rename(away)
    await keeper.close()
    log = keepers.directory() / "keeper.log"
    await eventually(lambda: "ModuleNotFoundError" in log.read_text())
    away.rename(program)
    await eventually(lambda: logs.exists() and written(logs, is_growing=True)[1] == b"said\n")
    assert log.read_text().count("ModuleNotFoundError") == 1


async def test_terminal_output_while_no_engine_is_there(keepers: Keepers) -> None:
    from test_keeper_spawn import CONSOLE_RUNTIME

    keeper = await keepers.connect()
    path = keepers.root / "console.sock"
    through = os.pipe()
    job = keepers.job("a", "")
    code = f"i=0; while [ $i -lt {LINES} ]; do echo out $i; i=$((i+1)); done; exit 3"
    spawned = await keepers.spawn(
        keeper,
        keepers.job(
            "a",
            "",
            console=str(path),
            executable=sys.executable,
            argv=(sys.executable, "-ISc", CONSOLE_RUNTIME, str(job.pid_file), str(path), code),
            hold={"console_pipe_r": through[0], "console_pipe_w": through[1]},
            segments=SegmentPlan(str(keepers.root / "log"), 10_000_000, 5),
        ),
    )
    for fd in through:
        os.close(fd)
    assert spawned.console is not None
    await keeper.close()
    await eventually(lambda: slots(keepers) == {"a": 3})
    text = expected()[1].replace(b"\n", b"\r\n")
    await eventually(lambda: len(written(keepers.root / "log", is_growing=True)[1]) == len(text))
    assert await asyncio.to_thread(written, keepers.root / "log") == {1: text, 2: b""}
    keeper = await keepers.connect()
    assert exit_code((await keeper.wait_exit("a")).status) == 3
    assert set(await fetched_names(keeper)) == {"console", "console_pipe_r", "console_pipe_w"}


async def fetched_names(keeper: KeeperClient) -> list[str]:
    fds = await keeper.fetch("a")
    for fd in fds.values():
        os.close(fd)
    return list(fds)


async def test_while_an_engine_is_there_the_keeper_reads_nothing(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    read_end, write_end = os.pipe()
    plan = SegmentPlan(str(keepers.root / "log"), 10_000_000, 5)
    stdio = (keepers.null, write_end, write_end)
    await keepers.spawn(keeper, keepers.job("a", "echo hello", stdio=stdio, hold={"stdout": read_end}, segments=plan))
    os.close(write_end)
    await keeper.wait_exit("a")
    await keeper.ping()
    assert not (keepers.root / "log").exists()
    assert os.read(read_end, 100) == b"hello\n"
    assert os.read(read_end, 100) == b""
    os.close(read_end)
