"""Reaching into what runs, tried on a process of this host: its own network namespace is ours, its root is /."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from lighterman import limits
from lighterman.checks import File, HealthCheck, Http, Port, Tcp, UnixSocket
from lighterman.clock import SystemClock
from lighterman.errors import NotFound
from lighterman.lifecycle.health import Health, HealthMonitor
from lighterman.runtimes.oci.reach import Reach
from lighterman.supervisor.health import watch_health
from lighterman.supervisor.tasks import OwnedTasks
from lighterman.threads import in_own_thread
from support import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="setns(2) needs Linux and root")

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def reach() -> AsyncIterator[Reach]:
    reach = Reach(os.getpid(), os.pidfd_open(os.getpid()))
    yield reach
    reach.close()
    reach.close()


async def answered(
    reach: Reach, answer: bytes, probe_of: Callable[[int], Http], *, hold: bool = False
) -> tuple[bool, str]:
    """What a probe makes of a server that reads the request and sends `answer`."""
    release = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if hold:
            await release.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with asyncio.timeout(30):
            return await reach.look(probe_of(server.sockets[0].getsockname()[1]))
    finally:
        release.set()
        server.close()


# ---- HTTP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "ok"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None, True),
        (b"HTTP/1.0 204\r\n\r\n", None, True),
        (b"HTTP/1.1 399 X\n\n", None, True),
        (b"HTTP/1.1 400 X\r\n\r\n", None, False),
        (b"HTTP/1.1 500 X\r\n\r\n", None, False),
        (b"HTTP/1.1 503 X\r\n\r\n", 503, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", 503, False),
        (b"HTTP/1.1 2000 X\r\n\r\n", None, False),
        (b"HTTP/1.1 999 X\r\n\r\n", None, False),
        (b"HTTP/2 200\r\n\r\n", None, False),
        (b"SSH-2.0-x\r\n\r\n", None, False),
        (b"\0\xff" * 100, None, False),
        (b"", None, False),
        (b"HTTP/1.1 200 OK", None, False),
    ],
)
async def test_answers(reach: Reach, answer: bytes, status: int | None, ok: bool) -> None:
    assert (await answered(reach, answer, lambda port: Http(port, "/x", status)))[0] is ok


async def test_endless_answer_is_read_for_a_page_only(reach: Reach) -> None:
    ok, output = await answered(reach, b"HTTP/1.1 200 " + b"x" * 10_000_000, lambda port: Http(port), hold=True)
    assert not ok
    assert len(output) < limits.PROBE_OUTPUT_BYTES


async def test_server_that_keeps_the_connection_open_is_not_waited_for(reach: Reach) -> None:
    assert await answered(reach, b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nbody", lambda port: Http(port), hold=True) == (
        True,
        "HTTP/1.1 200 OK",
    )


async def test_request_is_one_that_servers_take(reach: Reach) -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await reach.look(Http(port, "/a?b=c"))
    server.close()
    lines = seen[0].split(b"\r\n")
    assert lines[0] == b"GET /a?b=c HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}".encode() in lines


async def test_cancelled_in_the_middle_leaves_nothing(reach: Reach) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for turns in range(0, 40, 2):
        looking = asyncio.ensure_future(reach.look(Http(port)))
        for _ in range(turns):
            await asyncio.sleep(0)
        looking.cancel()
        await asyncio.wait((looking,))
    server.close()
    # The run's end counts descriptors and threads.


# ---- servers that mean no good ------------------------------------------------------------------------------------


class Hostile:
    """A server that reads nothing and does what `act` says with each connection, until it is closed."""

    def __init__(self, act: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._act = act
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> int:
        async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._serving.add(task)
            try:
                await self._act(writer)
            except ConnectionError:
                return  # the probe has seen enough
            finally:
                self._serving.discard(task)
                writer.close()

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)


async def endless(writer: asyncio.StreamWriter, piece: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(piece)
        await writer.drain()


async def test_endless_headers_are_read_for_a_page_only(reach: Reach) -> None:
    for piece in (b"X-Many: y\r\n" * 100, b"X-Long-" + b"y" * 1000, b"\0" * 1000):
        async with Hostile(lambda writer, piece=piece: endless(writer, piece)) as port:  # type: ignore[misc]
            # All that it is asked for stands in the first line.
            assert await asyncio.wait_for(reach.look(Http(port)), 30) == (True, "HTTP/1.1 200 OK")


async def test_many_header_lines_are_no_harm(reach: Reach) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000 + b"\r\n"
    assert (await answered(reach, answer, lambda port: Http(port)))[0]


@pytest.mark.parametrize("line", [b"x" * 10_000_000, b"HTTP/1.1 200 " + b"\n" * 10, b"HTTP/1.1 2" + b"0" * 100_000])
async def test_huge_or_broken_first_line_is_no_answer(reach: Reach, line: bytes) -> None:
    ok, output = await answered(reach, line, lambda port: Http(port))
    assert ok is line.startswith(b"HTTP/1.1 200 \n")
    assert len(output) < limits.PROBE_OUTPUT_BYTES


async def test_who_hangs_up_at_once_has_not_answered(reach: Reach) -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with Hostile(hang_up) as port:
        for _ in range(20):
            try:
                assert not (await asyncio.wait_for(reach.look(Http(port)), 30))[0]
            except OSError as failed:
                assert not isinstance(failed, TimeoutError)  # noqa: PT017


@pytest.mark.parametrize("piece", [b"", b"H", b"HTTP/1.1 200 OK\r\nX: y\r\n"], ids=["nothing", "letters", "lines"])
async def test_drop_by_drop_the_deadline_is_one_for_all(reach: Reach, piece: bytes) -> None:
    """Each byte comes in time, the answer never: what counts is the time since the probe began."""

    async def drip(writer: asyncio.StreamWriter) -> None:
        for at in itertools.count():
            writer.write(piece[at % len(piece) :][:1] if piece else b"")
            await asyncio.sleep(0.01)

    monitor = HealthMonitor(
        HealthCheck(Tcp(1), interval_s=0.01, start_interval_s=0.01, timeout_s=0.3, retries=2), started=0.0
    )
    unhealthy: asyncio.Future[Health] = asyncio.get_running_loop().create_future()
    tasks = OwnedTasks()

    async def changed(status: Health | None) -> None:
        assert status is not None
        unhealthy.set_result(status)

    async with Hostile(drip) as port:
        watching = watch_health(
            monitor,
            lambda _which: reach.look(Http(port)),
            changed,
            clock=SystemClock(),
            spawn=tasks.watch,
            cannot_answer=lambda: False,
            end_may_come=lambda: asyncio.sleep(0),
        )
        tasks.watch(watching, "watch")
        assert await asyncio.wait_for(unhealthy, 30) is Health.UNHEALTHY
        assert {result.output for result in monitor.report.log} == {"no answer in 0.3 s"}
        await tasks.close(1)


# ---- the rest ----------------------------------------------------------------------------------------------------


async def test_port_where_nobody_listens(reach: Reach) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert (await reach.look(Tcp(port)))[0]
    with pytest.raises(ConnectionRefusedError):
        await reach.look(Tcp(port))


async def test_unix_socket(reach: Reach, tmp_path: Path) -> None:
    # Longer than the 107 bytes that a socket's path may have.
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        descriptor = os.open(directory, os.O_PATH)
        server.bind(f"/proc/self/fd/{descriptor}/s")
        os.close(descriptor)
        server.listen()
        assert (await reach.look(UnixSocket(str(directory / "s"))))[0]
    with pytest.raises(ConnectionRefusedError):
        await reach.look(UnixSocket(str(directory / "s")))
    with pytest.raises(FileNotFoundError):
        await reach.look(UnixSocket(str(directory / "t")))


async def test_unix_socket_that_nobody_accepts_from(reach: Reach, tmp_path: Path) -> None:
    """Its queue takes some, and then the kernel says "again", which is no connection."""
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as clients:
        server.bind(str(tmp_path / "s"))
        server.listen(0)
        said = 0
        while said != errno.EAGAIN:
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            said = client.connect_ex(str(tmp_path / "s"))
        ok, output = await reach.look(UnixSocket(str(tmp_path / "s")))
        assert not ok
        assert "queue is full" in output
        server.accept()[0].close()
        assert (await reach.look(UnixSocket(str(tmp_path / "s"))))[0]


async def test_probe_that_meets_itself_has_found_nobody(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may draw the probed port for the probe's own end, and a socket that connects to itself succeeds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    make = Reach._socket

    def drawn(self: Reach, family: int) -> socket.socket:
        made = make(self, family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        return made

    monkeypatch.setattr(Reach, "_socket", drawn)
    for probe in (Tcp(port), Port(port), Http(port)):
        with pytest.raises(ConnectionRefusedError, match="met itself"):
            await reach.look(probe)


async def test_file_and_its_age(reach: Reach, tmp_path: Path) -> None:
    file = tmp_path / "beat"
    file.touch()
    assert (await reach.look(File(str(file))))[0]
    assert (await reach.look(File(str(file), 3600)))[0]
    os.utime(file, (time.time() - 100, time.time() - 100))
    assert not (await reach.look(File(str(file), 50)))[0]
    os.mkfifo(tmp_path / "fifo")
    # Looked at, never opened: that would wait for ever.
    assert (await reach.look(File(str(tmp_path / "fifo"))))[0]
    with pytest.raises(OSError, match="No such file"):
        await reach.look(File(str(tmp_path / "none")))


async def test_a_process_that_has_ended_is_never_taken_for_another(tmp_path: Path) -> None:
    # Not reaped while it is looked at: its number still stands in /proc.
    process = subprocess.Popen(["/bin/true"])  # noqa: ASYNC220  it only has to end
    reach = Reach(process.pid, os.pidfd_open(process.pid))
    try:
        await eventually(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z")
        for probe in (Tcp(80), File("/")):
            with pytest.raises((NotFound, OSError)):
                await reach.look(probe)
    finally:
        reach.close()
        process.wait()
    with pytest.raises((NotFound, OSError)):
        await reach.look(File("/"))


async def test_the_thread_alone_changes_its_namespace(reach: Reach) -> None:
    before = os.readlink("/proc/self/ns/net"), os.readlink("/proc/thread-self/ns/net")
    with socket.create_server(("127.0.0.1", 0)) as server:
        await reach.look(Tcp(server.getsockname()[1]))
    assert (os.readlink("/proc/self/ns/net"), os.readlink("/proc/thread-self/ns/net")) == before


async def test_result_that_nobody_waits_for_is_discarded() -> None:
    discarded: list[int] = []
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    def act() -> int:
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        return 42

    waiting = asyncio.ensure_future(in_own_thread(act, discarded.append))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))
    go_on.set()
    await eventually(lambda: discarded == [42])
