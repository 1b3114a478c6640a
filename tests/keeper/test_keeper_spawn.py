"""A runtime call: what the process gets, what the engine is told, in whatever order things end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
from keeper_support import SLOW_RUNTIME, Keepers, alive, children, exit_code, kill, read_pipe, state, text_of

from lighterman.errors import (
    AlreadyExists,
    InvalidSpec,
    InvalidState,
    KeeperLost,
    LimitExceeded,
    NotFound,
    RuntimeFailed,
)
from lighterman.keeper.calls import now_ticks
from lighterman.keeper.client import Job, KeeperClient, MountPlan
from lighterman.keeper.slots import read_exit_slots
from support import descriptors_left, eventually

REAL_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts in a namespace of their own")


def slots_on_disk(keepers: Keepers) -> list[str]:
    return [exit.job for file in (keepers.directory() / "exits").iterdir() for exit in read_exit_slots(str(file))]


async def test_a_job_and_its_exit(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    spawned = await keepers.spawn(keeper, keepers.job("a", "exit 7"))
    assert exit_code(spawned.status) == 0
    assert spawned.pid is not None
    assert not spawned.timed_out
    assert spawned.runtime_exited_mono >= spawned.spawned_mono
    exits = await asyncio.gather(*(keeper.wait_exit("a") for _ in range(3)))
    assert {exit_code(exit.status) for exit in exits} == {7}
    assert exits[0].mono >= spawned.spawned_mono
    assert await keeper.wait_exit("a") == exits[0]
    assert slots_on_disk(keepers) == ["a"]
    await keeper.acknowledge("a")
    await keeper.acknowledge("a")
    assert await keeper.list_jobs() == []
    assert slots_on_disk(keepers) == []
    with pytest.raises(NotFound):
        await keeper.wait_exit("a")


async def test_the_pidfd_is_the_process(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    assert spawned.pidfd is not None
    assert spawned.pid is not None
    stat = text_of(f"/proc/{spawned.pid}/stat")
    assert spawned.start_time == int(stat.rpartition(")")[2].split()[19])
    (listed,) = await keeper.list_jobs()
    assert (listed.job, listed.pid, listed.start_time, listed.exit) == ("a", spawned.pid, spawned.start_time, None)
    signal.pidfd_send_signal(spawned.pidfd, signal.SIGKILL)
    assert exit_code((await keeper.wait_exit("a")).status) == -signal.SIGKILL


async def test_the_jobs_of_one_container_are_listed_without_the_others(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    for key in ("box:1", "box:2", "boxer:1", "other:1"):
        await keepers.spawn(keeper, keepers.job(key, "exec sleep 1000"))
    assert [job.job for job in await keeper.list_jobs(of="box:")] == ["box:1", "box:2"]
    assert await keeper.list_jobs(of="nobody:") == []
    assert len(await keeper.list_jobs()) == 4


async def test_an_exit_before_the_runtime_returned(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    fifo = keepers.root / "go"
    os.mkfifo(fifo)
    pid_file = keepers.root / "a.pid"
    argv = (*SLOW_RUNTIME, str(pid_file), "exit 9", str(fifo))
    spawning = asyncio.create_task(keepers.spawn(keeper, keepers.job("a", "", argv=argv)))
    await eventually(lambda: pid_file.exists() and pid_file.read_text().strip())
    pid = int(pid_file.read_text())
    # Reaped by the keeper, although nobody has told it yet whose process that was.
    await eventually(lambda: state(pid) == "")
    assert not spawning.done()
    await asyncio.to_thread(fifo.write_text, "go\n")
    spawned = await spawning
    assert spawned.pid == pid
    assert spawned.pidfd is None
    exit = await keeper.wait_exit("a")
    assert exit_code(exit.status) == 9
    assert spawned.spawned_mono <= exit.mono <= spawned.runtime_exited_mono


async def test_a_stale_pid_file_is_not_believed(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    (keepers.root / "a.pid").write_text(f"{os.getpid()}\n")
    spawned = await keepers.spawn(keeper, keepers.job("a", "", argv=("sh", "-c", "exit 0"), executable="/bin/sh"))
    assert spawned.pid is None
    assert await keeper.list_jobs() == []


@pytest.mark.parametrize("text", ["", "0", "1", "-5", "x", "99999999999999999999", "1e3", "4194305"])
async def test_nonsense_in_the_pid_file_is_no_process(keepers: Keepers, text: str) -> None:
    keeper = await keepers.connect()
    job = keepers.job("a", "")
    argv = ("sh", "-c", f"printf '%s' '{text}' > {job.pid_file}")
    spawned = await keepers.spawn(keeper, keepers.job("a", "", argv=argv, executable="/bin/sh"))
    assert (spawned.pid, exit_code(spawned.status)) == (None, 0)
    assert await keeper.list_jobs() == []


async def test_a_runtime_that_fails_leaves_nothing(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    read_end, write_end = os.pipe()
    job = keepers.job("a", "", argv=("sh", "-c", "exit 3"), executable="/bin/sh", hold={"stdout": read_end})
    spawned = await keepers.spawn(keeper, job)
    os.close(write_end)
    os.close(read_end)
    assert (spawned.pid, exit_code(spawned.status), spawned.timed_out) == (None, 3, False)
    assert await keeper.list_jobs() == []
    assert (await keeper.stats()).descriptors == before
    assert exit_code((await keepers.spawn(keeper, keepers.job("a", "exit 0"))).status) == 0


async def test_a_runtime_that_hangs_is_killed_with_its_helpers(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    job = keepers.job("a", "", argv=("sh", "-c", "sleep 1000 & sleep 1000"), executable="/bin/sh", timeout_s=0.3)
    spawned = await keepers.spawn(keeper, job)
    assert (spawned.pid, exit_code(spawned.status), spawned.timed_out) == (None, -signal.SIGKILL, True)
    assert await keeper.list_jobs() == []
    await eventually(lambda: children(keeper.pid) == [])


async def test_commands(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    read_end, write_end = os.pipe()
    command = keepers.command("c", ["/bin/echo", "hello"], stdio=(keepers.null, write_end, write_end))
    spawned = await keepers.spawn(keeper, command)
    os.close(write_end)
    assert (spawned.pid, spawned.pidfd, spawned.status) == (None, None, 0)
    assert read_pipe(read_end) == b"hello\n"
    assert await keeper.list_jobs() == []


async def test_a_job_is_unique(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    with pytest.raises(AlreadyExists):
        await keepers.spawn(keeper, keepers.job("a", "exit 0"))
    assert len(await keeper.list_jobs()) == 1


async def test_a_job_can_be_used_again(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    for code in range(1, 30):
        await keepers.spawn(keeper, keepers.job("a", f"exit {code}"))
        # Known by the list in most rounds, before it is told; that telling must not be taken for the next round's.
        await eventually(lambda: ended(keeper))
        await keeper.acknowledge("a")
        await keepers.spawn(keeper, keepers.job("a", f"exit {code + 100}"))
        assert exit_code((await keeper.wait_exit("a")).status) == code + 100
        await keeper.acknowledge("a")


async def ended(keeper: KeeperClient) -> bool:
    return all(job.exit is not None for job in await keeper.list_jobs())


async def test_what_can_not_be_executed(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    with pytest.raises(RuntimeFailed) as caught:
        await keepers.spawn(keeper, keepers.command("a", ["/no/such/program"]))
    assert caught.value.runtime == "/no/such/program"
    with pytest.raises(NotFound):
        await keepers.spawn(keeper, keepers.command("a", ["unregistered"]))
    with pytest.raises(RuntimeFailed):
        await keepers.spawn(keeper, keepers.job("a", "exit 0", cwd="/no/such/directory"))
    with pytest.raises(LimitExceeded):
        await keepers.spawn(keeper, keepers.command("a", ["/bin/true"], env={"X": "x" * 100_000}))
    with pytest.raises(LimitExceeded):
        await keepers.spawn(keeper, keepers.job("a", "exit 0", meta=b"x" * 16_385))
    for job in (
        keepers.command("a", ["/bin/true", "a\0b"]),
        keepers.command("a", ["/bin/true"], env={"A=B\0": "x"}),
        keepers.command("a/b", ["/bin/true"]),
        keepers.command("a", ["/bin/true"], timeout_s=0.0),
        keepers.command("a", ["/bin/true"], timeout_s=float("nan")),
        keepers.command("a", ["/bin/true"], cwd="relative"),
        keepers.command("a", ["/bin/true"], extra_fds={2: keepers.null}),
        keepers.command("a", ["/bin/true"], stdio=(keepers.null, keepers.null, 9999)),
    ):
        with pytest.raises(InvalidSpec):
            await keepers.spawn(keeper, job)
    assert await keeper.list_jobs() == []
    assert (await keeper.stats()).descriptors == before


async def test_what_the_process_inherits(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    read_end, write_end = os.pipe()
    script = (
        "import os, resource, signal; os.write(1, repr((os.getsid(0) == os.getpid(), os.getcwd(), dict(os.environ),"
        " resource.getrlimit(resource.RLIMIT_NOFILE), os.nice(0), os.getppid())).encode() + b'\\n'"
        " + open('/proc/self/oom_score_adj').read().encode() + open('/proc/self/status').read().encode())"
    )
    # A Python sets dispositions for itself, so the status of a plain `cat` is looked at as well.
    argv = [sys.executable, "-ISc", script]
    spawned = await keepers.spawn(
        keeper, keepers.command("p", argv, stdio=(keepers.null, write_end, write_end), cwd="/tmp")
    )
    assert spawned.status == 0
    cat = ["/bin/cat", "/proc/self/status"]
    assert (
        await keepers.spawn(keeper, keepers.command("c", cat, stdio=(keepers.null, write_end, write_end)))
    ).status == 0
    os.close(write_end)
    facts, oom_score_adj, *status = read_pipe(read_end).decode().splitlines()
    environment = {"PATH": keepers.command("x", ["/x"]).env["PATH"]}
    session, cwd, env, nofile, nice, parent = eval(facts)
    env.pop("LC_CTYPE", None)  # Python sets it for itself
    assert (session, cwd, env, parent) == (True, "/tmp", environment, keeper.pid)
    assert nofile == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert nice == os.nice(0)
    assert int(oom_score_adj) == max(0, int(text_of("/proc/self/oom_score_adj")))
    last = dict(line.split(":\t", 1) for line in status[-60:] if ":\t" in line)
    assert last["Name"] == "cat"
    assert last["Umask"] == "0022"
    assert int(last["SigBlk"], 16) == 0
    # 32 and 33 are the C library's own: nobody can set them, whoever started this test.
    assert int(last["SigIgn"], 16) & ~(3 << 31) == 0


async def test_the_process_has_exactly_its_descriptors(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    read_end, write_end = os.pipe()
    extra = os.open(keepers.root, os.O_RDONLY)
    # The numbers cross over on purpose: 3 and 4 in the child, whatever they are on the way.
    script = (
        "import os\nfor n in os.listdir('/proc/self/fd'):\n"
        "  try: print(n, os.readlink(f'/proc/self/fd/{n}'))\n"
        "  except FileNotFoundError: continue"  # the one that the listing itself had open
    )
    command = keepers.command(
        "c",
        [sys.executable, "-ISc", script],
        stdio=(keepers.null, write_end, write_end),
        extra_fds={3: extra, 4: keepers.null, 20: extra},
        hold={"stdout": read_end},
    )
    assert (await keepers.spawn(keeper, command)).status == 0
    os.close(write_end)
    os.close(extra)
    lines = read_pipe(read_end).decode().split("\n")
    found = dict(line.split(" ", 1) for line in lines if line)
    pipe = found["1"]
    assert found == {
        "0": "/dev/null",
        "1": pipe,
        "2": pipe,
        "3": str(keepers.root),
        "4": "/dev/null",
        "20": str(keepers.root),
    }


async def test_many_extra_descriptors_arrive_at_their_numbers(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    files = {}
    for number in range(3, 40):
        path = keepers.root / f"f{number}"
        path.write_text(str(number))
        files[number] = os.open(path, os.O_RDONLY)
    numbers = list(reversed(files))
    script = "; ".join(f'test "$(cat /proc/$$/fd/{number})" = {number} || exit {number}' for number in files)
    extra = {number: files[number] for number in numbers}
    spawned = await keepers.spawn(keeper, keepers.command("c", ["/bin/sh", "-c", script], extra_fds=extra))
    for fd in files.values():
        os.close(fd)
    assert exit_code(spawned.status) == 0


async def test_held_descriptors(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    in_r, in_w = os.pipe()
    out_r, out_w = os.pipe()
    job = keepers.job("a", "cat; exit 4", stdio=(in_r, out_w, out_w), hold={"stdin": in_w, "stdout": out_r})
    await keepers.spawn(keeper, job)
    for fd in (in_r, out_w, in_w, out_r):
        os.close(fd)
    (listed,) = await keeper.list_jobs()
    assert set(listed.held) == {"stdin", "stdout"}
    fetched = await keeper.fetch("a")
    assert set(fetched) == {"stdin", "stdout"}
    os.write(fetched["stdin"], b"through the keeper")
    os.close(fetched["stdin"])
    with pytest.raises(NotFound):
        await keeper.close_held("a", ["stdin", "nothing"])
    with pytest.raises(NotFound):
        await keeper.close_held("b", ["stdin"])
    # Only now does `cat` see the end.
    await keeper.close_held("a", ["stdin"])
    assert await asyncio.to_thread(read_pipe, fetched["stdout"]) == b"through the keeper"
    assert exit_code((await keeper.wait_exit("a")).status) == 4
    with pytest.raises(NotFound):
        await keeper.fetch("b")


async def test_recipe_and_meta_come_back(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    recipe: dict[str, object] = {"cgroups": ["/lighterman/a"], "files": [], "depth": {"n": 3, "x": None}}
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000", recipe=recipe, meta=b"\0\xff"))
    (listed,) = await keeper.list_jobs()
    assert (listed.recipe, listed.meta) == (recipe, b"\0\xff")


async def test_a_registered_binary(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    for program, code in (("/bin/false", 1), ("/bin/true", 0)):
        binary = os.memfd_create("runtime", os.MFD_CLOEXEC)
        os.write(binary, await asyncio.to_thread(Path(program).read_bytes))
        before = (await keeper.stats()).descriptors
        await keeper.register_binary("runtime", binary)
        os.close(binary)
        spawned = await keepers.spawn(keeper, keepers.command("a", ["x"], executable="runtime"))
        assert exit_code(spawned.status) == code
    assert (await keeper.stats()).descriptors == before
    for name in ("", "a/b"):
        with pytest.raises(InvalidSpec):
            await keeper.register_binary(name, keepers.null)


CONSOLE_RUNTIME = """
import os, pty, socket, sys
pid_file, console, code = sys.argv[1:]
master, slave = pty.openpty()
child = os.fork()
if child == 0:
    os.setsid()
    os.dup2(slave, 0); os.dup2(slave, 1); os.dup2(slave, 2)
    os.closerange(3, 100)
    os.execv("/bin/sh", ["sh", "-c", code])
s = socket.socket(socket.AF_UNIX)
s.connect(console)
socket.send_fds(s, [b"/dev/ptmx"], [master])
open(pid_file, "w").write(str(child))
"""


async def test_the_terminal_is_handed_over(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    path = keepers.root / "console.sock"
    job = keepers.job("a", "", console=str(path), executable=sys.executable)
    argv = (sys.executable, "-ISc", CONSOLE_RUNTIME, str(job.pid_file), str(path), "read x; echo got $x; exit 6")
    spawned = await keepers.spawn(keeper, keepers.job("a", "", console=str(path), executable=sys.executable, argv=argv))
    assert spawned.console is not None
    assert not path.exists()
    (listed,) = await keeper.list_jobs()
    assert listed.held == ("console",)
    os.write(spawned.console, b"line\n")
    seen = bytearray()

    def everything() -> bool:
        with contextlib.suppress(BlockingIOError):
            seen.extend(os.read(spawned.console or 0, 4096))
        return b"got line" in seen

    await eventually(everything)
    assert exit_code((await keeper.wait_exit("a")).status) == 6


async def test_a_console_that_is_never_sent(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    path = keepers.root / "console.sock"
    spawned = await keepers.spawn(keeper, keepers.job("a", "exit 0", console=str(path)))
    assert spawned.console is None
    assert not path.exists()
    await keeper.wait_exit("a")
    await keeper.acknowledge("a")
    assert (await keeper.stats()).descriptors == before
    with pytest.raises(RuntimeFailed):
        await keepers.spawn(keeper, keepers.job("a", "exit 0", console="/no/such/directory/console.sock"))
    assert await keeper.list_jobs() == []


@REAL_ROOT
async def test_a_mount_only_the_spawned_see(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    target = keepers.root / "target"
    target.mkdir()
    mount = detached_tmpfs()
    own = os.readlink(f"/proc/{keeper.pid}/ns/mnt")
    script = f"touch {target}/inside; grep -q ' {target} ' /proc/self/mountinfo || exit 8"
    for number in range(2):
        job = keepers.command(f"c{number}", ["/bin/sh", "-c", script], mount=MountPlan(mount, str(target)))
        if number == 0:
            assert exit_code((await keepers.spawn(keeper, job)).status) == 0
    assert list(target.iterdir()) == []
    assert str(target) not in text_of("/proc/self/mountinfo")
    assert os.readlink(f"/proc/{keeper.pid}/ns/mnt") == own
    os.close(mount)


@REAL_ROOT
async def test_a_failed_mount_or_spawn_leads_home(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    own = os.readlink(f"/proc/{keeper.pid}/ns/mnt")
    before = (await keeper.stats()).descriptors
    mount = detached_tmpfs()
    failing: list[Job] = [
        keepers.job("a", "exit 0", mount=MountPlan(mount, "/no/such/directory")),
        keepers.job("a", "exit 0", mount=MountPlan(keepers.null, str(keepers.root))),
        keepers.job("a", "exit 0", mount=MountPlan(mount, str(keepers.root)), executable="/no/such/program"),
    ]
    for job in failing:
        with pytest.raises(RuntimeFailed):
            await keepers.spawn(keeper, job)
        assert os.readlink(f"/proc/{keeper.pid}/ns/mnt") == own
        assert os.readlink(f"/proc/{keeper.pid}/cwd") == "/"
    os.close(mount)
    assert (await keeper.stats()).descriptors == before
    assert exit_code((await keepers.spawn(keeper, keepers.command("b", ["/bin/true"]))).status) == 0


def detached_tmpfs() -> int:
    """A mounted tmpfs that is attached nowhere (fsopen(2), fsmount(2))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    context = libc.syscall(430, b"tmpfs", 1)
    assert context >= 0
    assert libc.syscall(431, context, 6, None, None, 0) == 0  # FSCONFIG_CMD_CREATE
    mount = libc.syscall(432, context, 1, 0)
    assert mount >= 0
    os.close(context)
    return int(mount)


async def test_a_cancelled_spawn_only_stops_the_waiting(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    fifo = keepers.root / "go"
    os.mkfifo(fifo)
    pid_file = str(keepers.root / "a.pid")
    argv = (*SLOW_RUNTIME, pid_file, "exit 5", str(fifo))
    spawning = asyncio.create_task(keepers.spawn(keeper, keepers.job("a", "", argv=argv)))
    await eventually(keeper.list_jobs)
    (listed,) = await keeper.list_jobs()
    assert (listed.pid, listed.exit) == (None, None)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    mine = len(os.listdir("/proc/self/fd"))
    await asyncio.to_thread(fifo.write_text, "go\n")
    assert exit_code((await keeper.wait_exit("a")).status) == 5
    assert len(os.listdir("/proc/self/fd")) == mine


async def test_a_cancelled_wait_leaves_the_others(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    first, second = (asyncio.create_task(keeper.wait_exit("a")) for _ in range(2))
    await keeper.ping()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert spawned.pid is not None
    kill(spawned.pid)
    assert exit_code((await second).status) == -signal.SIGKILL


async def test_what_still_runs_can_not_be_acknowledged(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    await keeper.acknowledge("a")
    await keeper.ping()
    assert spawned.pid is not None
    assert alive(spawned.pid)
    kill(spawned.pid)
    assert exit_code((await keeper.wait_exit("a")).status) == -signal.SIGKILL


async def test_shutdown(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    assert spawned.pid is not None
    with pytest.raises(InvalidState):
        await keeper.shutdown()
    await keeper.shutdown(force=True)
    await eventually(lambda: not alive(keeper.pid))
    assert alive(spawned.pid)
    kill(spawned.pid)
    assert not (keepers.directory() / "keeper.sock").exists()


async def test_abort_ends_a_runtime_call(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    job = keepers.job("a", "", argv=("sh", "-c", "sleep 1000"), executable="/bin/sh")
    spawning = asyncio.create_task(keeper.spawn(job))
    await eventually(keeper.list_jobs)
    await keeper.abort("a")
    spawned = await spawning
    assert (spawned.pid, spawned.timed_out, exit_code(spawned.status)) == (None, True, -signal.SIGKILL)
    await keeper.abort("a")
    assert await keeper.list_jobs() == []


async def test_abort_ends_the_process_that_a_call_has_left(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    await keeper.abort("a")
    assert exit_code((await keeper.wait_exit("a")).status) == -signal.SIGKILL
    await keeper.abort("a")


async def test_an_engine_without_room_for_an_answers_descriptors_loses_that_call_alone(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    other = await keepers.spawn(keeper, keepers.job("other", "sleep 1000; exit 3"))
    with descriptors_left(0):
        with pytest.raises(LimitExceeded, match="ulimit -n") as refused:
            await keeper.spawn(keepers.job("a", "exec sleep 1000"))
        assert refused.value.limit == "ulimit -n"
        # What the call has left can be found, and ended, without one.
        (left,) = await keeper.list_jobs("a")
        assert left.pid is not None
        await keeper.abort("a")
        assert exit_code((await keeper.wait_exit("a")).status) == -signal.SIGKILL
        await keeper.acknowledge("a")
    shell = other.pid
    assert shell is not None
    for sleep in await eventually(lambda: children(shell)):
        kill(sleep)
    assert exit_code((await keeper.wait_exit("other")).status) == 3


async def test_a_keeper_without_room_for_a_requests_descriptors_refuses_it_and_goes_on(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    used = len(os.listdir(f"/proc/{keeper.pid}/fd"))
    _, hard = was = resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (used, hard))
    with pytest.raises(LimitExceeded, match="ulimit -n"):
        await keeper.spawn(keepers.job("a", "exit 7"))
    assert await keeper.list_jobs() == []
    resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, was)
    await keepers.spawn(keeper, keepers.job("a", "exit 7"))
    assert exit_code((await keeper.wait_exit("a")).status) == 7


async def test_the_pid_of_a_process_that_is_not_of_its_making_is_not_believed(keepers: Keepers) -> None:
    """A runtime that lies: its container's exit would be another's, and a lease would kill whoever it has named."""
    keeper = await keepers.connect()
    # An orphan of an earlier command is a child of the keeper like any container's process.
    orphan = keepers.root / "orphan"
    argv = ("/bin/sh", "-c", f"sleep 1000 & echo $! > {orphan}.new; mv {orphan}.new {orphan}")
    await keepers.spawn(keeper, keepers.command("before", argv))
    older = await keepers.spawn(keeper, keepers.job("older", "exec sleep 1000"))
    # Start times count hundredths of a second: what is as old as the call may be of its making.
    begun = now_ticks()
    await eventually(lambda: now_ticks() > begun)
    before = (await keeper.stats()).descriptors
    wrong = {
        "ours": os.getpid(),
        "keeper": keeper.pid,
        "init": os.getppid(),
        "orphan": int(text_of(orphan)),
        "older": older.pid,
    }
    for name, pid in wrong.items():
        job = keepers.job(name + "-a", "")
        argv = ("sh", "-c", f"echo {pid} > {job.pid_file}")
        spawned = await keepers.spawn(keeper, keepers.job(name + "-a", "", argv=argv, executable="/bin/sh"))
        assert (spawned.pid, spawned.pidfd, exit_code(spawned.status)) == (None, None, 0), name
        assert spawned.claimed == (pid if pid != 1 else None), name
    assert [job.job for job in await keeper.list_jobs()] == ["older"]
    assert (await keeper.stats()).descriptors == before
    assert older.pid is not None
    os.kill(older.pid, signal.SIGTERM)
    assert exit_code((await keeper.wait_exit("older")).status) == -signal.SIGTERM
    os.kill(wrong["orphan"] or 0, signal.SIGKILL)


async def test_a_lying_runtime_with_no_engine_there(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    fifo = keepers.root / "go"
    os.mkfifo(fifo)
    job = keepers.job("a", "")
    argv = ("sh", "-c", f"read line < {fifo}; echo {os.getpid()} > {job.pid_file}")
    spawning = asyncio.create_task(keeper.spawn(keepers.job("a", "", argv=argv, executable="/bin/sh")))
    await eventually(keeper.list_jobs)
    await keeper.close()
    with pytest.raises(KeeperLost):
        await spawning
    await asyncio.to_thread(fifo.write_text, "go\n")
    keeper = await keepers.connect()
    await keeper.wait_exit("a")
    (listed,) = await keeper.list_jobs()
    assert listed.pid is None
    await keeper.acknowledge("a")
