"""The keeper becomes another program by an exec of itself: no exit, byte or lease is lost, whatever is under way."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from keeper_support import EXIT_RUNTIME, RUNTIME, SLOW_RUNTIME, Keepers, alive, exit_code, read_pipe, text_of
from test_keeper_takeover import finish, written

from builds import Builds
from lighterman.errors import InvalidState, NotFound, NotSupported, RuntimeFailed
from lighterman.keeper import boot, launch, slots, wire
from lighterman.keeper.client import KeeperClient, SegmentPlan
from support import eventually


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def is_of_build(pid: int, name: str) -> bool:
    return any(f"/{name}/" in word for word in words_of(pid))


def signals_of(pid: int) -> set[str]:
    return {
        line
        for line in text_of(f"/proc/{pid}/status").splitlines()
        if line.startswith(("SigB", "SigC", "SigI", "Umask"))
    }


async def inherited(keepers: Keepers, keeper: KeeperClient) -> bytes:
    """What a process started by the keeper has of it."""
    read, write = os.pipe()
    script = (
        "ulimit -n; umask; cat /proc/self/oom_score_adj; ls -l /proc/self/fd | wc -l; grep Sig[BCIP] /proc/self/status"
    )
    await keeper.spawn(keepers.command("c", ("/bin/sh", "-c", script), stdio=(keepers.null, write, write)))
    os.close(write)
    return await asyncio.to_thread(read_pipe, read)


async def test_another_build_takes_over_in_the_same_process(keepers: Keepers, builds: Builds) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    limits = text_of(f"/proc/{keeper.pid}/limits")
    signals, children = signals_of(keeper.pid), await inherited(keepers, keeper)
    name = builds.use()
    newer = await keepers.connect()
    assert newer.build == name != keeper.build
    assert newer.pid == keeper.pid
    assert str(keepers.directory()) in words_of(newer.pid)
    assert is_of_build(newer.pid, name)
    await keeper.wait_lost()  # fenced, as ever
    assert text_of(f"/proc/{keeper.pid}/comm").strip() == "lighterman-keep"
    assert text_of(f"/proc/{keeper.pid}/limits") == limits
    # Its answer comes before its signal handlers do.
    await eventually(lambda: signals_of(keeper.pid) == signals)
    assert await inherited(keepers, newer) == children
    os.kill(spawned.pid or 0, signal.SIGTERM)
    assert exit_code((await newer.wait_exit("a")).status) == -signal.SIGTERM
    (listed,) = await newer.list_jobs()
    assert (listed.job, listed.pid, listed.start_time) == ("a", spawned.pid, spawned.start_time)
    await newer.acknowledge("a")
    assert (await newer.stats()).descriptors == before


async def test_the_same_build_is_left_alone(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    start = text_of(f"/proc/{keeper.pid}/stat")
    again = await keepers.connect()
    assert "--resume" not in words_of(again.pid)
    assert text_of(f"/proc/{keeper.pid}/stat").split()[21] == start.split()[21]


async def test_it_keeps_its_lock_and_leaves_when_idle(keepers: Keepers, builds: Builds) -> None:
    keeper = await keepers.connect(idle_s=0.3)
    await keeper.close()
    builds.use()
    newer = await keepers.connect(idle_s=0.3)
    assert newer.pid == keeper.pid
    (exits,) = (keepers.directory() / "exits").iterdir()
    assert not slots.is_free_to_remove(str(exits))
    path = str(keepers.directory())
    assert await launch._start(path, path, 1.0, asyncio.get_running_loop().time() + 20) == boot.LOCKED
    await newer.close()
    await eventually(lambda: not alive(keeper.pid))
    assert not (keepers.directory() / "keeper.sock").exists()
    assert list((keepers.directory() / "exits").iterdir()) == []


# ---- programs that don't take over -------------------------------------------------------------------------------


def _no_syntax(path: Path) -> None:
    (path / "server.py").write_text("this is no program")


def _other_format(path: Path) -> None:
    file = path / "handover.py"
    file.write_text(file.read_text().replace("\nFORMAT = 1\n", "\nFORMAT = 99\n"))


def _needs_more(path: Path) -> None:
    file = path / "handover.py"
    file.write_text(file.read_text().replace('state.rows[body["job"]]', 'body["future"]; state.rows[body["job"]]'))


@pytest.mark.parametrize("change", [_no_syntax, _other_format, _needs_more, shutil.rmtree])
async def test_one_that_can_not_take_over_changes_nothing(
    keepers: Keepers, builds: Builds, change: Callable[[Path], None]
) -> None:
    keepers.may_complain = True
    keeper = await keepers.connect()
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    descriptors = (await keeper.stats()).descriptors
    builds.use(change)
    # An engine takes what there is.
    newer = await keepers.connect()
    assert (newer.pid, newer.build) == (keeper.pid, keeper.build)
    assert "--resume" not in words_of(newer.pid)
    with pytest.raises(RuntimeFailed):
        await newer.upgrade()
    assert (await newer.stats()).descriptors == descriptors
    os.kill(spawned.pid or 0, signal.SIGKILL)
    assert exit_code((await newer.wait_exit("a")).status) == -signal.SIGKILL


async def test_an_exec_that_fails_after_the_trial(keepers: Keepers, builds: Builds) -> None:
    """The interpreter goes away between the two: it is a script that removes itself."""
    keeper = await keepers.connect()
    plan = SegmentPlan(str(keepers.directory() / "log"), 1_000_000, 2)
    read, write = os.pipe()
    job = keepers.job(
        "a", "while :; do echo x; sleep 0.01; done", stdio=(keepers.null, write, keepers.null), hold={"stdout": read},
        segments=plan,
    )  # fmt: skip
    spawned = await keepers.spawn(keeper, job)
    os.close(write)
    os.close(read)
    builds.use()
    once = keepers.root / "python-once"
    once.write_text('#!/bin/sh\nrm "$0"\nexit 0\n')
    once.chmod(0o755)
    with pytest.raises(RuntimeFailed, match="No such file"):
        await keeper._connection.call(wire.UPGRADE, {"argv": [str(once), "x"], "build": "never"}, 30)
    assert (await keeper.stats()).pid == keeper.pid
    await keeper.close()
    # It writes on.
    log = keepers.directory() / "log"
    await eventually(lambda: sum(file.stat().st_size for file in log.glob("*")) > 0)
    newer = await keepers.connect()
    os.kill(spawned.pid or 0, signal.SIGKILL)
    assert exit_code((await newer.wait_exit("a")).status) == -signal.SIGKILL


async def test_two_at_once_and_requests_without_sense(keepers: Keepers, builds: Builds) -> None:
    keeper = await keepers.connect()
    builds.use()
    for body in ({"argv": [], "build": "x"}, {"argv": ["python", "x"], "build": "x"}, {"argv": ["/a", "b"]}):
        with pytest.raises(Exception, match=r"argv|build"):
            await keeper._connection.call(wire.UPGRADE, dict(body), 30)
    done = await asyncio.gather(keeper.upgrade(), keeper.upgrade(), return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["InvalidState", "NoneType"]
    assert isinstance(next(one for one in done if one is not None), InvalidState)
    await keeper.ping()


async def test_a_newer_protocol_is_tried_first_and_the_older_is_spoken(
    keepers: Keepers, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine of the next release, whose keeper program speaks both."""
    older = await keepers.connect()

    def speaks_both(path: Path) -> None:
        file = path / "wire.py"
        text = file.read_text().replace("\nVERSION = 1\n", "\nVERSION = 2\n")
        file.write_text(text.replace("= (VERSION,)", "= (VERSION, 1)"))

    builds.use(speaks_both)
    monkeypatch.setattr(wire, "PROTOCOLS", (2, 1))
    newer = await keepers.connect()
    assert newer.pid == older.pid
    assert newer._connection.version == 2
    assert (await newer.stats()).version == 2
    monkeypatch.setattr(wire, "PROTOCOLS", (9, 8))
    with pytest.raises(NotSupported, match="2, 1"):
        await keepers.connect()


# ---- what is under way -------------------------------------------------------------------------------------------


async def test_calls_consoles_clients_and_leases_go_over(keepers: Keepers, builds: Builds) -> None:
    keeper = await keepers.connect()
    observer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    observer.settimeout(20)
    observer.connect(f"{keepers.directory()}/keeper.sock")
    observer.send(wire.pack(wire.HELLO, 1, {"role": "observer"}))
    observer.recv(65536)
    ours, theirs = socket.socketpair()
    await keeper.lease_connection("client", ours.fileno(), grace_s=0.05)
    await keeper.lease("time", None, until=time.clock_gettime(time.CLOCK_BOOTTIME) + 3)
    shell = os.open("/bin/sh", os.O_RDONLY)
    await keeper.register_binary("shell", shell)
    os.close(shell)
    for job, lease in (("a", "client"), ("b", "time")):
        await keepers.spawn(keeper, keepers.job(job, "exec sleep 1000", lease=lease))
    fifo = keepers.root / "go"
    os.mkfifo(fifo)
    runtime = (*SLOW_RUNTIME, str(keepers.root / "slow.pid"), "exit 7", str(fifo))
    slow = asyncio.create_task(keepers.spawn(keeper, keepers.job("slow", "", argv=runtime)))
    await eventually(lambda: _has_job(keeper, "slow"))
    builds.use()
    await keeper.upgrade()
    # On the same connection, which goes on; and so does the other client's.
    observer.send(wire.pack(wire.PING, 2, {}))
    assert wire.unpack_header(observer.recv(65536)) == (wire.VERSION, wire.OK, 2)
    observer.close()
    await asyncio.to_thread(fifo.write_text, "go\n")
    spawned = await asyncio.wait_for(slow, 30)
    assert spawned.pid is not None
    assert exit_code((await keeper.wait_exit("slow")).status) == 7
    done = await keeper.spawn(keepers.command("c", ("sh", "-c", "exit 4"), executable="shell"))
    assert exit_code(done.status) == 4
    ours.close()
    theirs.close()
    assert (await keeper.wait_exit("a")).lease_ended
    assert (await keeper.lease_of("client")).over
    assert (await keeper.wait_exit("b")).lease_ended


async def _has_job(keeper: KeeperClient, job: str) -> bool:
    return any(one.job == job for one in await keeper.list_jobs())


async def test_exits_flow_while_it_is_upgraded_again_and_again(keepers: Keepers, builds: Builds) -> None:
    keeper = await keepers.connect()
    count = 300
    ends: dict[str, int] = {}

    async def one(number: int) -> None:
        job = f"j{number}"
        argv = (*EXIT_RUNTIME, str(keepers.root / f"{job}.pid"), str(number % 200))
        if number % 3 == 0:
            argv = (*RUNTIME, str(keepers.root / f"{job}.pid"), f"sleep 0.{number % 10}; exit {number % 200}")
        spawned = await keepers.spawn(keeper, keepers.job(job, "", argv=argv))
        assert spawned.pid is not None
        ends[job] = exit_code((await keeper.wait_exit(job)).status)
        await keeper.acknowledge(job)

    upgrades = 0

    async def upgrade() -> None:
        nonlocal upgrades
        while len(ends) < count:
            builds.use()
            await keeper.upgrade()
            upgrades += 1

    upgrading = asyncio.create_task(upgrade())
    gate = asyncio.Semaphore(16)

    async def gated(number: int) -> None:
        async with gate:
            await one(number)

    await asyncio.gather(*(gated(number) for number in range(count)))
    await upgrading
    print(f"{upgrades} upgrades, {count} jobs")
    assert upgrades >= 3
    assert ends == {f"j{number}": number % 200 for number in range(count)}
    assert await keeper.list_jobs() == []
    assert [path.stat().st_blocks >= 0 for path in (keepers.directory() / "exits").iterdir()] == [True]


async def test_output_flows_while_it_is_upgraded_again_and_again(keepers: Keepers, builds: Builds) -> None:
    """No engine is there, so the keeper writes: the exec finds it in the middle of frames."""
    keeper = await keepers.connect()
    logs, enough = keepers.directory() / "logs", keepers.root / "enough"
    script = f'i=0; while [ ! -e {enough} ]; do echo "out $i"; echo "err $i" >&2; i=$((i+1)); done; exit 9'
    names = ["j0", "j1", "j2"]
    for name in names:
        out_r, out_w = os.pipe()
        err_r, err_w = os.pipe()
        plan = SegmentPlan(str(logs / name), 300_000, 1000)
        job = keepers.job(
            name, script, stdio=(keepers.null, out_w, err_w), hold={"stdout": out_r, "stderr": err_r}, segments=plan
        )
        await keepers.spawn(keeper, job)
        for fd in (out_r, out_w, err_r, err_w):
            os.close(fd)

    def size() -> int:
        return sum(file.stat().st_size for file in logs.glob("*/*"))

    for _ in range(6):
        builds.use()
        # Nobody waits for the answer: the exec comes while nobody is there.
        keeper._connection.send(wire.UPGRADE, {"argv": launch.program(), "build": launch.build()})
        await keeper.close()
        await eventually(functools.partial(is_of_build, keeper.pid, launch.build()))
        before = size()
        await eventually(lambda before=before: size() > before)  # type: ignore[misc]
        keeper = await keepers.connect()
        assert keeper.build == launch.build()
    await keeper.close()
    enough.touch()
    keeper = await keepers.connect()
    await asyncio.gather(*(finish(keeper, name, logs / name) for name in names))
    for name in names:
        assert exit_code((await keeper.wait_exit(name)).status) == 9
        streams = await asyncio.to_thread(written, logs / name)
        count = streams[1].count(b"\n")
        assert streams[1] == "".join(f"out {number}\n" for number in range(count)).encode()
        assert streams[2] == "".join(f"err {number}\n" for number in range(count)).encode()


async def test_an_exit_while_it_is_being_upgraded_is_told(keepers: Keepers, builds: Builds) -> None:
    keeper = await keepers.connect()
    jobs = 40
    spawned = [await keepers.spawn(keeper, keepers.job(f"j{n}", "exec sleep 1000")) for n in range(jobs)]
    for number, one in enumerate(spawned):
        builds.use()
        if number % 4 == 0:
            upgrading = asyncio.create_task(keeper.upgrade())
            for _ in range(10 * (number % 8)):
                await keeper.ping()
        os.kill(one.pid or 0, signal.SIGKILL)
        if number % 4 == 3:
            await upgrading
    for number in range(jobs):
        assert exit_code((await keeper.wait_exit(f"j{number}")).status) == -signal.SIGKILL


async def test_what_is_dropped_is_counted_over_engines_and_upgrades(keepers: Keepers, builds: Builds) -> None:
    """The drains of a job are the same for whoever asks, until its exit is acknowledged."""
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    log = str(keepers.directory() / "log")
    segments = SegmentPlan(log, 10_000, 2, "drop-newest")
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", segments=segments))
    first = await keeper.drains(log)
    os.pwrite(first[1], b"x" * 10, 0)
    builds.use()
    await keeper.upgrade()
    again = await keeper.drains(log)
    assert [os.fstat(fd).st_size for fd in again] == [0, 10]
    assert [os.fstat(fd).st_ino for fd in again] == [os.fstat(fd).st_ino for fd in first]
    os.kill(spawned.pid or 0, signal.SIGKILL)
    await keeper.wait_exit("a")
    late = await keeper.drains(log)
    assert os.fstat(late[1]).st_size == 10
    await keeper.acknowledge("a")
    with pytest.raises(NotFound):
        await keeper.drains(log)
    assert (await keeper.stats()).descriptors == before
    for fd in (*first, *again, *late):
        os.close(fd)
