"""An exec is a full process: signals, its tree, a timeout, its exit code, and found again by the next engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from real_support import keeper_pid, process_is_there, running_in

from lighterman import Container, Engine, InvalidState, KeeperLost, LogRecord, NotFound, Process, limits
from lighterman.keeper.client import KeeperClient
from lighterman.lifecycle.events import State
from lighterman.record import ExecRecord, Record, decode_exec
from lighterman.store.outside import look_into
from support import PATIENCE, eventually

pytestmark = pytest.mark.real

# A process leaves its children behind all the time; their parents are gone before anybody lists them.
FORKS = "while :; do (sleep 1000 &); (true); done 2>/dev/null"


@pytest.fixture
async def box(engine: Engine) -> AsyncIterator[Container]:
    async with engine.container("busybox", ["sleep", "1000"], pids_limit=300) as box:
        yield box


async def only_init(box: Container) -> None:
    await eventually(lambda: running_in(box.id) == [box.pid])


async def output(process: Process, stream: str = "stdout") -> bytes:
    return b"".join([record.data async for record in process.logs() if record.stream == stream])


# ---- signals and the tree ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["TERM", "HUP", 10])
async def test_P04_a_signal_reaches_the_process(box: Container, signal: int | str) -> None:
    process = await box.start_exec(["sh", "-c", "echo ready; exec sleep 1000"])
    assert await process.stdout.readline() == b"ready\n"
    await process.kill(signal)
    assert (await process.wait()).signal == {"TERM": 15, "HUP": 1, 10: 10}[signal]


async def test_P04_killing_a_forking_loop_leaves_no_process(box: Container) -> None:
    process = await box.start_exec(["sh", "-c", FORKS])
    await eventually(lambda: len(running_in(box.id)) > 30)
    await process.kill()
    assert (await process.wait()).signal == 9
    await only_init(box)


async def test_P04_timeout_of_a_forking_loop_leaves_no_process(box: Container) -> None:
    done = await box.exec(["sh", "-c", FORKS], timeout_s=1)
    assert done.exit.reason == "timeout"
    await only_init(box)


async def test_P04_timeout_asks_first(box: Container) -> None:
    script = "trap 'echo asked; exit 7' TERM; echo begun; while :; do sleep 0.05; done"
    done = await box.exec(["sh", "-c", script], timeout_s=0.5)
    assert (done.exit.code, done.exit.reason, done.stdout) == (7, "timeout", b"begun\nasked\n")


async def test_P04_timeout_kills_who_does_not_obey(box: Container) -> None:
    script = "trap '' TERM; echo begun; while :; do sleep 0.05; done"
    done = await box.exec(["sh", "-c", script], timeout_s=0.5)
    assert (done.exit.signal, done.exit.reason, done.stdout) == (9, "timeout", b"begun\n")
    await only_init(box)


async def test_P04_timeout_of_one_that_obeys_kills_what_it_leaves(box: Container) -> None:
    # The first is of its session; the second has its own, and loses its parent when that obeys.
    script = (
        "sh -c 'trap \"\" TERM; sleep 1000' & setsid sh -c 'trap \"\" TERM; sleep 999; :' & trap 'exit 3' TERM; wait"
    )
    done = await box.exec(["sh", "-c", script], timeout_s=1)
    assert (done.exit.code, done.exit.reason) == (3, "timeout")
    await only_init(box)


async def test_P04_timeout_while_streaming(box: Container) -> None:
    process = await box.start_exec(["sh", "-c", "while :; do echo line; done"], timeout_s=1)
    seen = 0
    while chunk := await process.stdout.read(65536):
        seen += chunk.count(b"line")
    exit = await process.wait()
    assert (exit.signal, exit.reason) == (15, "timeout")
    assert seen > 0
    await only_init(box)


async def test_P04_exit_code_while_streaming(box: Container) -> None:
    process = await box.start_exec(["sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; exit 42"])
    numbers = []
    while line := await process.stdout.readline():
        numbers.append(int(line))
    assert numbers == list(range(20000))
    assert (await process.wait()).code == 42


async def test_P04_fifty_at_once_are_all_right(box: Container) -> None:
    done = await asyncio.gather(*(box.exec(["sh", "-c", f"cat; exit {n}"], stdin=b"%d" % n) for n in range(50)))
    assert [(one.exit.code, one.stdout) for one in done] == [(n, b"%d" % n) for n in range(50)]
    await only_init(box)


async def test_P04_stdin_is_closed_by_itself(box: Container) -> None:
    process = await box.start_exec(["sh", "-c", "cat; echo after; exit 5"], stdin=True)
    process.stdin.write(b"some")
    process.stdin.write_eof()
    assert await process.stdout.read() == b"someafter\n"
    assert (await process.wait()).code == 5


async def test_P04_a_terminal_is_resized(box: Container) -> None:
    process = await box.start_exec(["sh", "-c", "read x; stty size"], terminal=True, stdin=True)
    await process.resize(height=33, width=77)
    process.stdin.write(b"\n")
    assert (await process.wait()).code == 0
    assert b"33 77" in await output(process)


async def test_P04_ends_of_execs_are_told_before_the_containers(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "read x; exit 4"], stdin=True) as box:
        processes = [await box.start_exec(["sleep", "1000"]) for _ in range(5)]
        box.stdin.write(b"\n")
        assert (await box.wait()).code == 4
        assert all(process.exit is not None and process.exit.signal == 9 for process in processes)
        kinds = [event.kind async for event in engine.events(after=0, container=box.id, follow=False)]
        assert kinds.count(State.EXIT_PROCESS) == 5
        assert kinds.index(State.EXIT) == len(kinds) - 1


# ---- found again -------------------------------------------------------------------------------------------------


async def test_P04_found_again_after_kill_9_of_the_engine(root: Path) -> None:
    """One that still runs, one that ends with nobody there, and one that had ended: code and output are exact."""
    many = "i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i+1)); done"
    scripts = [
        f"{many}; touch /one; while [ ! -e /go ]; do sleep 0.05; done; echo late; exit 11",
        f"while [ ! -e /one ]; do sleep 0.05; done; {many}; touch /two; exit 12",
        "exec sleep 1000",
    ]
    owner = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("exec_owner.py")),
        str(root),
        json.dumps(scripts),
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout is not None
    ids = [(await owner.stdout.readline()).decode().strip() for _ in scripts]
    owner.kill()
    await owner.wait()
    numbers = b"".join(b"%d\n" % n for n in range(5000))
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        await eventually(lambda: _is_there(box, "/two"))
        running, ended, sleeping = [await box.get_exec(id) for id in ids]
        assert (await asyncio.wait_for(ended.wait(), 60)).code == 12
        assert await output(ended) == numbers
        # A reader goes on from where another one, or an earlier engine's, had come.
        first: list[LogRecord] = []

        async def all_is_read() -> bool:
            first[:] = [record async for record in running.logs()]
            return sum(len(record.data) for record in first) >= len(numbers)

        await eventually(all_is_read)
        assert running.exit is None
        assert b"".join(record.data for record in first) == numbers
        await box.exec(["touch", "/go"])
        assert (await asyncio.wait_for(running.wait(), 60)).code == 11
        after = [record.data async for record in running.logs(after=first[0].cursor, follow=True)]
        assert b"".join(after) == numbers[len(first[0].data) :] + b"late\n"
        await sleeping.kill()
        assert (await sleeping.wait()).signal == 9
        with pytest.raises(NotFound):
            await box.get_exec("nosuch")


async def _is_there(box: Container, path: str) -> bool:
    return (await box.exec(["test", "-e", path])).ok


async def test_P04_time_is_bounded_also_by_the_next_engine(root: Path) -> None:
    """The engine that was asked is killed before the time is over, and long after it another one comes."""
    scripts = ["trap '' TERM; sleep 1000 & while :; do sleep 0.05; done", "exec sleep 1000"]
    owner = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("exec_owner.py")),
        str(root),
        json.dumps(scripts),
        json.dumps([{}, {"timeout_s": 2}]),
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout is not None
    ids = [(await owner.stdout.readline()).decode().strip() for _ in scripts]
    owner.kill()
    await owner.wait()
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        stubborn, obedient = [await asyncio.wait_for((await box.get_exec(id)).wait(), 60) for id in ids]
        assert (stubborn.signal, stubborn.reason) == (9, "timeout")
        assert (obedient.signal, obedient.reason) == (15, "timeout")
        await only_init(box)
    async with Engine(root=root) as engine:
        # What has ended has no time any more.
        assert [life.record.due for life in (await engine.get("box"))._entry.execs.values()] == [None, None]


async def _owned(
    root: Path, scripts: list[str], options: dict[str, object], exec_options: dict[str, object]
) -> tuple[asyncio.subprocess.Process, list[str]]:
    """An engine with a container and execs of these scripts, in a process of its own, to be killed."""
    owner = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("exec_owner.py")),
        str(root),
        json.dumps(scripts),
        json.dumps([options, exec_options]),
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout is not None
    return owner, [(await owner.stdout.readline()).decode().strip() for _ in scripts]


async def _has_written(root: Path, id: str, what: bytes) -> None:
    """By the files alone: the engine that has them is to be killed."""

    def is_there() -> bool:
        return any(what in file.read_bytes() for file in root.glob(f"containers/*/execs/{id}/1/segment-*"))

    await eventually(is_there)


async def test_P04_terminal_exec_of_a_container_without_one_is_taken_up(root: Path) -> None:
    script = "echo before; read x; echo got $x; stty size; exit 5"
    owner, (id,) = await _owned(root, [script], {}, {"terminal": True, "stdin": True})
    await _has_written(root, id, b"before")
    owner.kill()
    await owner.wait()
    async with Engine(root=root) as engine:
        process = await (await engine.get("box")).get_exec(id)
        await process.resize(height=33, width=77)
        process.stdin.write(b"hello\n")
        assert (await asyncio.wait_for(process.wait(), 60)).code == 5
        assert await output(process) == b"before\r\nhello\r\ngot hello\r\n33 77\r\n"


async def test_P04_exec_without_a_terminal_of_a_container_with_one_is_taken_up(root: Path) -> None:
    script = "echo before; echo wrong >&2; cat; echo after; exit 6"
    owner, (id,) = await _owned(root, [script], {"terminal": True}, {"stdin": True})
    await _has_written(root, id, b"wrong")
    owner.kill()
    await owner.wait()
    async with Engine(root=root) as engine:
        process = await (await engine.get("box")).get_exec(id)
        with pytest.raises(InvalidState, match="no terminal"):
            await process.resize(height=33, width=77)
        process.stdin.write(b"said\n")
        process.stdin.write_eof()
        assert (await asyncio.wait_for(process.wait(), 60)).code == 6
        assert await output(process) == b"before\nsaid\nafter\n"
        assert await output(process, "stderr") == b"wrong\n"
    # The keeper holds nothing of it any more.
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        jobs = await engine.host.keeper.list_jobs(of=f"{box.id}:")
        assert [job.pid for job in jobs] == [box.pid]


# ---- in the store ------------------------------------------------------------------------------------------------


async def _told(engine: Engine, box: Container) -> list[tuple[str, str]]:
    return [(event.kind, event.process) async for event in engine.events(after=0, container=box.id, follow=False)]


def _directories(root: Path, box: Container) -> set[str]:
    return {path.name for path in (root / "containers" / box.id / "execs").iterdir()}


async def test_P04_what_has_ended_is_found_again_with_exit_and_output(root: Path) -> None:
    argv = ("sh", "-c", "echo said; echo why >&2; exit 7")
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        process = await box.start_exec(argv)
        ended = await process.wait()
        # One that was run to its end was told of then: nobody asks for it again.
        assert (await box.exec(["sh", "-c", "echo more"])).ok
        assert [one.id for one in await box.execs()] == [process.id]
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        (found,) = await box.execs()
        assert (found.id, found.pid, found.argv) == (process.id, process.pid, argv)
        assert await found.wait() == ended
        assert (ended.code, ended.last_words) == (7, b"why\n")
        assert [await output(found), await output(found, "stderr")] == [b"said\n", b"why\n"]
        with pytest.raises(InvalidState, match="in its logs"):
            found.stdout  # noqa: B018  a property that raises
        await box.kill()
        await box.wait()
        # Its container's end, and a further engine, change nothing of that.
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert await (await box.get_exec(process.id)).wait() == ended
        await box.remove()
    assert not (root / "containers" / box.id).exists()
    assert _rows(root) == []


def _rows(root: Path) -> list[str]:
    with closing(sqlite3.connect(root / "state.db")) as database:
        return [decode_exec(row).id for (row,) in database.execute("SELECT record FROM execs ORDER BY rowid")]


async def test_P04_as_many_are_kept_as_one_engine_keeps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXECS_KEPT", 3)
    ids = []
    for number in range(3):
        async with Engine(root=root) as engine:
            if not number:
                box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
                await box.start()
            box = await engine.get("box")
            for _ in range(2):
                process = await box.start_exec(["echo", "said"])
                ids.append(process.id)
                await process.wait()
    # What was killed while it took something away has left it.
    (root / "containers" / box.id / "execs" / "0123456789ab" / "1").mkdir(parents=True)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert [process.id for process in await box.execs()] == ids[-3:]
        assert _directories(root, box) == set(ids[-3:])
        await box.exec(["true"])
        # What was run to its end is in no row, once another change was written.
        last = await box.start_exec(["true"])
    assert _rows(root) == [*ids[-3:], last.id]


async def test_P04_end_that_was_told_and_not_acknowledged_is_told_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill leaves it between the commit and the keeper's hearing of it."""

    async def lost(self: KeeperClient, job: str) -> None:
        raise KeeperLost("killed")

    monkeypatch.setattr(KeeperClient, "acknowledge", lost)
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        process = await box.start_exec(["sh", "-c", "echo said; exit 7"])
        await process.wait()
        assert (await box.exec(["sh", "-c", "exit 5"])).exit.code == 5
        told = await _told(engine, box)
    assert [kind for kind, _ in told][2:] == ["start-process", "exit-process"] * 2
    monkeypatch.undo()
    async with Engine(root=root) as engine:
        box = await engine.get("box")

        async def only_init_is_held() -> bool:
            jobs = await engine.host.keeper.list_jobs(of=f"{box.id}:")
            return [job.pid for job in jobs] == [box.pid]

        await eventually(only_init_is_held)
        assert await _told(engine, box) == [*told, ("restore", "init")]
        assert [one.id for one in await box.execs()] == [process.id]
        assert await output(process) == b"said\n"
        await box.exec(["true"])
        await box.exec(["true"])
    async with Engine(root=root) as engine:
        assert [one.id for one in await (await engine.get("box")).execs()] == [process.id]


async def test_P04_killed_before_its_start_was_told_the_next_engine_tells_it(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        process = await box.start_exec(["sleep", "1000"])
    # What a kill leaves: nothing is in the store of one that runs, and of another one only when its time is over.
    with closing(sqlite3.connect(root / "state.db")) as database, database:
        database.execute("DELETE FROM execs")
        database.execute("DELETE FROM events WHERE body LIKE '%start-process%'")
        never = msgspec.json.encode(ExecRecord(id="0123456789ab", argv=("true",), due=1.0))
        database.execute("INSERT INTO execs VALUES (?, '0123456789ab', ?)", (box.id, never))
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        (found,) = await box.execs()
        assert (found.id, found.pid, found.status, found.argv) == (process.id, process.pid, "running", ())
        await found.kill()
        assert (await found.wait()).signal == 9
        assert (await _told(engine, box))[-2:] == [("start-process", process.id), ("exit-process", process.id)]
    assert _rows(root) == [process.id]


async def test_P04_exec_and_container_ended_meanwhile_both_ends_are_exact(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        script = "echo before; while [ ! -e /go ]; do sleep 0.05; done; echo after; exit 12"
        process = await box.start_exec(["sh", "-c", script])
        assert await process.stdout.readline() == b"before\n"
    await asyncio.to_thread(Path(f"/proc/{box.pid}/root/go").touch)
    await eventually(lambda: not process_is_there(process.pid))
    os.kill(box.pid, signal.SIGKILL)
    async with Engine(root=root) as engine:
        found = await engine.get("box")
        assert (await asyncio.wait_for(found.wait(), 60)).signal == 9
        ended = await found.get_exec(process.id)
        assert ended.exit is not None
        assert ended.exit.code == 12
        assert await output(ended) == b"before\nafter\n"
        assert (await _told(engine, box))[-2:] == [(State.EXIT_PROCESS, process.id), (State.EXIT, "init")]


async def _killed_with_keeper(root: Path, scripts: list[str], exec_options: dict[str, object]) -> list[str]:
    owner, ids = await _owned(root, scripts, {}, exec_options)
    keeper = keeper_pid(root)
    # Together: neither sees the other's end.
    owner.send_signal(signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    owner.kill()
    await owner.wait()
    await eventually(lambda: not process_is_there(keeper))
    return ids


async def test_P04_engine_and_keeper_killed_it_is_found_by_its_number(root: Path) -> None:
    ids = await _killed_with_keeper(root, ["exec sleep 1000", "trap '' TERM; sleep 1000; :", "sleep 999; :"], {})
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        processes = [await box.get_exec(id) for id in ids]
        assert all(process_is_there(process.pid) for process in processes)
        assert [process.exit for process in processes] == [None] * 3
        await processes[0].kill("TERM")
        await processes[1].kill()
        for process, number in zip(processes[:2], (15, 9), strict=True):
            exit = await asyncio.wait_for(process.wait(), 60)
            assert exit.signal == number or exit.unknown == "keeper lost", exit
        # All that it had started as well.
        await eventually(lambda: len(running_in(box.id)) == 3)
        await box.kill()
        await box.wait()
        told = await _told(engine, box)
        assert [kind for kind, _ in told].count(State.EXIT_PROCESS) == 3
        assert told[-2:] == [(State.EXIT_PROCESS, ids[2]), (State.EXIT, "init")]


async def test_P04_engine_and_keeper_killed_its_time_is_bounded(root: Path) -> None:
    (id,) = await _killed_with_keeper(root, ["exec sleep 1000"], {"timeout_s": 3})
    async with Engine(root=root) as engine:
        process = await (await engine.get("box")).get_exec(id)
        exit = await asyncio.wait_for(process.wait(), 60)
        assert exit.reason == "timeout" or exit.unknown == "keeper lost", exit
        assert not process_is_there(process.pid)


def _record_in(root: Path) -> Record:
    """Of the one container that there is."""
    ((_, encoded),) = look_into(str(root / "state.db")).records
    return msgspec.json.decode(encoded, type=Record)


async def test_P04_engine_keeper_and_container_killed_its_end_is_told_first(root: Path) -> None:
    (id,) = await _killed_with_keeper(root, ["exec sleep 1000"], {})
    init = _record_in(root).pid
    os.kill(init, signal.SIGKILL)
    await eventually(lambda: not process_is_there(init))
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        exit = await asyncio.wait_for(box.wait(), 60)
        process = await box.get_exec(id)
        assert exit.unknown or exit.signal == 9
        assert process.exit is not None
        assert process.exit.unknown or process.exit.signal == 9
        assert (await _told(engine, box))[-2:] == [(State.EXIT_PROCESS, id), (State.EXIT, "init")]


async def test_P04_host_restarted_its_end_is_told_first(root: Path) -> None:
    (id,) = await _killed_with_keeper(root, ["exec sleep 1000"], {"timeout_s": 1000})
    record = _record_in(root)
    with closing(sqlite3.connect(root / "state.db")) as database, database:
        database.execute("UPDATE facts SET value = 'of an earlier boot' WHERE name = 'boot_id'")
    os.kill(record.pid, signal.SIGKILL)
    await eventually(lambda: running_in(record.id) == [])
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        process = await box.get_exec(id)
        assert [exit is not None and exit.unknown for exit in (box.exit, process.exit)] == ["host restarted"] * 2
        assert (await _told(engine, box))[-2:] == [(State.EXIT_PROCESS, id), (State.EXIT, "init")]
    async with Engine(root=root) as engine:
        exit = await (await (await engine.get("box")).get_exec(id)).wait()
        assert exit.unknown == "host restarted"


# ---- in a paused container ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["timeout", "kill"])
async def test_P04_ends_in_a_paused_container_which_stays_paused(box: Container, by: str) -> None:
    script = "trap 'echo woken' TERM; sleep 1000 & echo begun; wait; echo woken"
    process = await box.start_exec(["sh", "-c", script], timeout_s=3 * PATIENCE if by == "timeout" else None)
    # By then the child is there too.
    assert await process.stdout.readline() == b"begun\n"
    await box.pause()
    if by == "kill":
        await process.kill()
    exit = await asyncio.wait_for(process.wait(), 60 * PATIENCE)
    assert (exit.signal, exit.reason) == (9, "timeout" if by == "timeout" else None)
    assert box.status == "paused"
    # Nothing of it has run on its way to its end; nor is anything of it left.
    assert await output(process) == b"begun\n"
    await only_init(box)
    await box.resume()
    assert (await box.exec(["true"])).ok
