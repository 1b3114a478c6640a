"""What must not end a keeper, and what must: clients of every kind, full disks, idleness, signals."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper_support import PATH, PERL, RUNTIME, Keepers, alive, exit_code, kill, text_of

from lighterman.errors import KeeperLost, LimitExceeded, NotSupported
from lighterman.keeper import wire
from lighterman.keeper.client import KeeperClient
from lighterman.keeper.slots import read_exit_slots
from support import eventually

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def raw(keepers: Keepers, name: str = "k") -> socket.socket:
    """A client without manners."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(20)
    directory = os.open(keepers.directory(name), os.O_PATH)
    sock.connect(f"/proc/self/fd/{directory}/keeper.sock")
    os.close(directory)
    return sock


def hello(sock: socket.socket, role: str = "observer") -> None:
    sock.send(wire.pack(wire.HELLO, 1, {"role": role}))
    assert wire.unpack_header(sock.recv(65536))[1] == wire.OK


MALFORMED = {
    "short": b"\0",
    "no-body": struct.pack(">HHI", wire.VERSION, wire.PING, 1),
    "no-dict": struct.pack(">HHI", wire.VERSION, wire.HELLO, 1) + wire.encode([1]),
    "garbage": bytes(range(256)) * 4,
    "no-hello": wire.pack(wire.PING, 1, {}),
    "deep": struct.pack(">HHI", wire.VERSION, wire.HELLO, 1) + (b"l" + struct.pack(">I", 1)) * 10_000,
    "oversized": b"x" * (wire.MESSAGE_BYTES + 1),
}


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_message_ends_only_its_sender(keepers: Keepers, message: bytes) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    with raw(keepers) as sock:
        # With descriptors, which must not stay.
        socket.send_fds(sock, [message], [keepers.null] * 3)
        answers = 0
        while await asyncio.to_thread(sock.recv, 65536):
            answers += 1
        assert answers <= 1
    assert (await keeper.stats()).descriptors == before


async def test_too_many_descriptors_are_closed(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    with raw(keepers) as sock:
        hello(sock)
        socket.send_fds(sock, [wire.pack(wire.PING, 2, {})], [keepers.null] * (wire.MAX_DESCRIPTORS + 1))
        assert await asyncio.to_thread(sock.recv, 65536) == b""
    assert (await keeper.stats()).descriptors == before


async def test_wrong_requests_are_refused_and_the_client_stays(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    before = (await keeper.stats()).descriptors
    spawn: dict[str, object] = {"job": "a", "argv": [], "executable": 5, "stdio": [0, 1, 99]}
    await keeper.close()
    with raw(keepers) as sock:
        hello(sock, "engine")
        refused: list[tuple[int, dict[str, object], str]] = [
            (wire.SPAWN, spawn, "invalid"),
            (wire.LIST, {"after": -1}, "invalid"),
            (wire.FETCH, {"job": "../x"}, "invalid"),
            (wire.CLOSE, {"job": "a"}, "not_found"),
            (wire.REGISTER, {"name": "x"}, "invalid"),
            (wire.LEASE, {"lease": "a", "remove": []}, "invalid"),
            (999, {}, "unsupported"),
            (wire.HELLO, {"role": "engine"}, "invalid"),
        ]
        for verb, body, code in refused:
            message = wire.pack(verb, 3, body)
            socket.send_fds(sock, [message], [keepers.null] * 2)
            answer = await asyncio.to_thread(sock.recv, 65536)
            assert wire.unpack_header(answer)[1:] == (wire.ERROR, 3)
            assert wire.unpack_body(answer)["code"] == code
    keeper = await keepers.connect()
    assert (await keeper.stats()).descriptors == before
    with raw(keepers) as sock:
        hello(sock)
        sock.send(wire.pack(wire.SHUTDOWN, 3, {}))
        assert wire.unpack_body(sock.recv(65536))["code"] == "state"


async def test_another_version_is_refused_with_both_names(keepers: Keepers, monkeypatch: pytest.MonkeyPatch) -> None:
    await keepers.connect()
    with raw(keepers) as sock:
        sock.send(wire.pack(wire.HELLO, 1, {"role": "engine"}, version=77))
        answer = await asyncio.to_thread(sock.recv, 65536)
    assert wire.unpack_header(answer) == (wire.VERSION, wire.ERROR, 1)
    text = wire.unpack_body(answer)["text"]
    assert isinstance(text, str)
    assert "77" in text
    assert str(wire.VERSION) in text
    monkeypatch.setattr(wire, "PROTOCOLS", (78,))
    with pytest.raises(NotSupported, match="78"):
        await keepers.connect()


async def test_a_client_that_does_not_read_is_dropped(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    with raw(keepers) as sock:
        hello(sock)
        sock.setblocking(False)
        message = wire.pack(wire.STATS, 2, {})

        async def push() -> bool:
            try:
                for _ in range(100):
                    sock.send(message)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        await eventually(push)
    # The others, meanwhile and after, are served.
    await keeper.ping()
    assert (await keeper.stats()).private_bytes < 32 * 1024 * 1024


async def test_exits_wait_for_an_engine_that_stands_still(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    await keeper.close()
    jobs = 800
    with raw(keepers) as sock:
        hello(sock, "engine")
        for number in range(jobs):
            job = f"j{number}"
            body: dict[str, object] = {
                "job": job,
                "argv": [*RUNTIME, f"{keepers.root}/{job}", "sleep 0.2"],
                "executable": PERL,
                "env": {"PATH": PATH},
                "cwd": "/",
                "pid_file": f"{keepers.root}/{job}",
                "timeout_s": 20.0,
                "stdio": [0, 0, 0],
                "extra": {},
                "hold": {},
                "recipe": wire.encode({}),
                "meta": b"",
            }
            await asyncio.to_thread(socket.send_fds, sock, [wire.pack(wire.SPAWN, number + 2, body)], [keepers.null])
            # The answer is taken; what is pushed lies until the end.
            if number % 64 == 63:
                await drain(sock, 64)
        await eventually(lambda: len(exits_on_disk(keepers)) == jobs, timeout_s=60)
    keeper = await keepers.connect()
    listed = await keeper.list_jobs()
    assert len(listed) == jobs
    assert all(job.exit is not None and job.exit.status == 0 for job in listed)


async def drain(sock: socket.socket, answers: int) -> None:
    while answers:
        message, fds, _, _ = await asyncio.to_thread(socket.recv_fds, sock, 65536, 8)
        for fd in fds:
            os.close(fd)
        answers -= wire.unpack_header(message)[1] == wire.OK


def exits_on_disk(keepers: Keepers, name: str = "k") -> list[str]:
    files = (keepers.directory(name) / "exits").iterdir()
    return [exit.job for file in files for exit in read_exit_slots(str(file))]


@needs_root
async def test_another_user_is_refused(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    directory = keepers.directory()
    for path in (directory, *directory.parents):
        if str(path).startswith("/tmp/"):
            os.chmod(path, 0o755)
    os.chmod(directory / "keeper.sock", 0o777)
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setuid(65534)
        code = 9
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(20)
                os.chdir(directory)
                sock.connect("keeper.sock")
                sock.send(wire.pack(wire.HELLO, 1, {"role": "engine"}))
                code = 0 if sock.recv(65536) == b"" else 1
        except (BrokenPipeError, ConnectionResetError):
            code = 0
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert exit_code(status) == 0
    await keeper.ping()


async def test_it_leaves_when_idle(keepers: Keepers) -> None:
    keeper = await keepers.connect(idle_s=0.2)
    await keepers.spawn(keeper, keepers.job("a", "exit 0"))
    await keeper.wait_exit("a")
    await keeper.close()
    # An exit that nobody has acknowledged holds it. Twice its idle time is no proof, but a wrong one fails often.
    again = await keepers.connect(idle_s=0.2)
    assert again.pid == keeper.pid
    await again.acknowledge("a")
    await again.close()
    await eventually(lambda: not alive(keeper.pid))
    directory = keepers.directory()
    assert not (directory / "keeper.sock").exists()
    assert list((directory / "exits").iterdir()) == []
    assert text_of(directory / "keeper.log") == ""
    third = await keepers.connect()
    assert third.pid != keeper.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_it_only_without_jobs(keepers: Keepers, number: signal.Signals) -> None:
    keeper = await keepers.connect()
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    assert spawned.pid is not None
    os.kill(keeper.pid, number)
    await keeper.ping()
    assert alive(spawned.pid)
    kill(spawned.pid)
    await keeper.wait_exit("a")
    await keeper.acknowledge("a")
    await keeper.ping()
    os.kill(keeper.pid, number)
    await keeper.wait_lost()
    await eventually(lambda: not alive(keeper.pid))


async def test_a_second_keeper_leaves_quietly(keepers: Keepers) -> None:
    from lighterman.keeper import boot, launch

    keeper = await keepers.connect()
    path = str(keepers.directory())
    deadline = asyncio.get_running_loop().time() + 20
    assert await launch._start(path, path, 1.0, deadline) == boot.LOCKED
    await keeper.ping()
    assert text_of(f"{path}/keeper.log") == ""


async def test_many_starters_get_one_keeper(keepers: Keepers) -> None:
    clients = await asyncio.gather(*(keepers.connect() for _ in range(5)))
    assert len({client.pid for client in clients}) == 1


async def test_a_killed_keeper_is_noticed_and_replaced(keepers: Keepers) -> None:
    keeper = await keepers.connect()
    spawned = await keepers.spawn(keeper, keepers.job("a", "exec sleep 1000"))
    await keepers.spawn(keeper, keepers.job("b", "exit 3"))
    await keeper.wait_exit("b")
    waiting = asyncio.create_task(keeper.wait_exit("a"))
    await keeper.ping()
    os.kill(keeper.pid, signal.SIGKILL)
    await keeper.wait_lost()
    with pytest.raises(KeeperLost):
        await waiting
    with pytest.raises(KeeperLost):
        await keeper.ping()
    assert spawned.pid is not None
    assert alive(spawned.pid)
    # What it had recorded is there for the next engine.
    assert exits_on_disk(keepers) == ["b"]
    newer = await keepers.connect()
    assert newer.pid != keeper.pid
    assert await newer.list_jobs() == []
    kill(spawned.pid)


async def test_a_run_directory_with_a_long_path(keepers: Keepers) -> None:
    keepers.root = keepers.root / ("x" * 120)
    keepers.root.mkdir()
    keeper = await keepers.connect()
    await keeper.ping()


async def test_a_run_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeeperLost, match="nowhere"):
        await KeeperClient.start_or_connect(str(tmp_path / "nowhere"), str(tmp_path))


async def test_a_state_directory_that_can_not_be_written(keepers: Keepers) -> None:
    run = keepers.directory()
    keepers.may_complain = True
    with pytest.raises(KeeperLost, match=r"keeper\.log"):
        await KeeperClient.start_or_connect(str(run), "/proc/nowhere")
    assert "nowhere" in text_of(run / "keeper.log")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, b"size=65536,mode=0700") == 0
    yield path
    assert libc.umount2(os.fsencode(path), 2) == 0


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 512)


@needs_root
async def test_a_full_disk_refuses_a_spawn_and_never_an_exit(keepers: Keepers, small_disk: Path) -> None:
    run = str(keepers.directory())
    keeper = await KeeperClient.start_or_connect(run, str(small_disk), idle_s=30)
    keepers.pids.add(keeper.pid)
    before = (await keeper.stats()).descriptors
    accepted = 0
    refusal: LimitExceeded | None = None
    while refusal is None:
        try:
            await keepers.spawn(keeper, keepers.job(f"j{accepted}", "exec sleep 1000"))
        except LimitExceeded as error:
            refusal = error
        else:
            accepted += 1
            if accepted == 10:
                # The slots that it has are promised; more it can't have.
                await asyncio.to_thread(fill_up, small_disk / "filler")
    assert "disk" in refusal.message
    assert accepted >= 10
    assert (await keeper.stats()).jobs == accepted
    listed = await keeper.list_jobs()
    for job in listed:
        assert job.pid is not None
        kill(job.pid)
    for job in listed:
        assert exit_code((await keeper.wait_exit(job.job)).status) == -signal.SIGKILL
    found = [exit for file in (small_disk / "exits").iterdir() for exit in read_exit_slots(str(file))]
    assert {exit.job for exit in found} == {job.job for job in listed}
    for job in listed:
        await keeper.acknowledge(job.job)
    await keepers.spawn(keeper, keepers.job("again", "exit 0"))
    await keeper.wait_exit("again")
    await keeper.acknowledge("again")
    assert (await keeper.stats()).descriptors == before
    await keeper.close()
    os.kill(keeper.pid, signal.SIGTERM)
    await eventually(lambda: not alive(keeper.pid))


async def test_an_exit_that_can_be_written_nowhere_is_told(keepers: Keepers) -> None:
    keepers.may_complain = True
    keeper = await keepers.connect()
    spawned = [await keepers.spawn(keeper, keepers.job(f"j{n}", "exec sleep 1000")) for n in range(3)]
    # Neither the slots nor the log take another byte.
    _, hard = resource.prlimit(keeper.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(keeper.pid, resource.RLIMIT_FSIZE, (0, hard))
    for one in spawned:
        assert one.pid is not None
        kill(one.pid)

    async def all_told() -> bool:
        return all(job.exit is not None for job in await keeper.list_jobs())

    await eventually(all_told)
    for n in range(3):
        assert exit_code((await keeper.wait_exit(f"j{n}")).status) == -signal.SIGKILL
        await keeper.acknowledge(f"j{n}")
    assert await keeper.list_jobs() == []
