"""Sinks: what they are sent, and that a dead or slow one holds nobody up (P7)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighterman import limits
from lighterman.errors import InvalidSpec
from lighterman.keeper.segments import STDERR, STDOUT
from lighterman.logs.container import ContainerLog
from lighterman.logs.feeds import Feed, Feeds
from lighterman.logs.pipes import make_output_pipe
from lighterman.logs.pump import OutputPump
from lighterman.logs.reader import Cursor, LogRecord
from lighterman.logs.sink import OutputSink
from lighterman.logs.sinks.base import LogSource
from lighterman.logs.sinks.journald import JournaldOutlet, journal_entry
from lighterman.logs.sinks.syslog import SyslogOutlet, syslog_address
from lighterman.spec import CallableSink, JournaldSink, SyslogSink

from .support import eventually

SOURCE = LogSource("0123456789abcdef" * 2, "web", "busybox")


class Writer:
    """A run whose program is the test."""

    def __init__(self, log: ContainerLog) -> None:
        self.log = log
        self._writes: dict[int, int] = {}
        self.sink: OutputSink

    async def open(self, generation: int = 1) -> Writer:
        self.sink = await self.log.open_run(generation)
        for stream in (STDOUT, STDERR):
            read, self._writes[stream] = make_output_pipe()
            self.sink.add(stream, read)
        return self

    async def say(self, data: bytes, stream: int = STDOUT) -> None:
        await asyncio.to_thread(self._write, data, stream)

    def _write(self, data: bytes, stream: int) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._writes[stream], view) :]

    async def end(self) -> None:
        for write in self._writes.values():
            os.close(write)
        for stream in self._writes:
            await self.sink.wait_stream_end(stream)
        self.log.end()


@pytest.fixture
async def log(pump: OutputPump, tmp_path: Path) -> ContainerLog:
    return ContainerLog(pump, tmp_path / "logs")


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(path))
        bound.settimeout(30)
        yield bound


def record(data: bytes, *, lost: int = 0, stream: str = "stdout") -> LogRecord:
    return LogRecord(stream, 1000.25, data, Cursor(1, len(data)), lost, partial=not data.endswith(b"\n"))  # type: ignore[arg-type]


# ---- callables ----


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_callable_gets_every_line_once_and_in_order(log: ContainerLog, tmp_path: Path, kind: str) -> None:
    got: list[bytes] = []
    threads: set[int] = set()

    def take(record: LogRecord) -> None:
        threads.add(threading.get_ident())
        got.append(record.data)

    async def take_async(record: LogRecord) -> None:
        await asyncio.sleep(0)
        take(record)

    feeds = Feeds(log, tmp_path / "sinks", SOURCE, (), [CallableSink(take if kind == "sync" else take_async)])
    for generation in (1, 2):
        writer = await Writer(log).open(generation)
        await writer.say(b"".join(b"%d %d\n" % (generation, number) for number in range(3000)))
        await writer.end()
    await feeds.finish(30.0)
    assert got == [b"%d %d\n" % (generation, number) for generation in (1, 2) for number in range(3000)]
    assert (threads == {threading.get_ident()}) == (kind == "async")
    assert not (tmp_path / "sinks").exists()


async def test_P07_callable_that_fails_is_offered_the_same_again_and_shows_why(
    log: ContainerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SINK_RETRY_FIRST_S", 0.001)
    got: list[bytes] = []
    broken = True

    def take(record: LogRecord) -> None:
        if broken and len(got) == 2:
            raise ValueError("no room")
        got.append(record.data)

    feeds = Feeds(log, tmp_path, SOURCE, (), [CallableSink(take)])
    writer = await Writer(log).open()
    await writer.say(b"1\n2\n3\n4\n")
    await eventually(lambda: feeds.states[0].failures >= 3)
    assert feeds.states[0].error == "ValueError: no room"
    assert feeds.states[0].sent == 2
    broken = False
    await eventually(lambda: feeds.states[0].sent == 4)
    assert feeds.states[0].error is None
    await writer.end()
    await feeds.finish(30.0)
    assert got == [b"1\n", b"2\n", b"3\n", b"4\n"]


@pytest.mark.parametrize("hang", ["thread", "loop"])
async def test_P07_sink_that_hangs_slows_no_program_and_no_other_sink(
    log: ContainerLog, tmp_path: Path, hang: str
) -> None:
    released = threading.Event()
    got = 0

    def hang_in_thread(record: LogRecord) -> None:
        released.wait(60)

    async def hang_on_loop(record: LogRecord) -> None:
        await asyncio.Event().wait()

    def count(record: LogRecord) -> None:
        nonlocal got
        got += len(record.data)

    sinks = [CallableSink(hang_in_thread if hang == "thread" else hang_on_loop), CallableSink(count)]
    feeds = Feeds(log, tmp_path, SOURCE, (), sinks)
    writer = await Writer(log).open()
    # Far more than pipe and socket buffers hold: it ends only if nobody waits for the sink.
    await writer.say(b"x" * 999_999 + b"\n" + b"y\n" * 1_000_000)
    await writer.end()
    await eventually(lambda: got == 3_000_000)
    assert writer.sink.progress == 3_000_000
    assert not writer.sink.blocked
    assert feeds.states[0].sent == 0
    await feeds.finish(0.01)
    released.set()


async def test_P07_coroutine_that_swallows_its_cancellation_keeps_nobody_from_closing(
    log: ContainerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "SINK_CANCEL_S", 0.01)
    called = asyncio.Event()
    released = asyncio.Event()

    async def stubborn(record: LogRecord) -> None:
        called.set()
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()

    feeds = Feeds(log, tmp_path, SOURCE, (), [CallableSink(stubborn)])
    writer = await Writer(log).open()
    await writer.say(b"1\n")
    await called.wait()
    async with asyncio.timeout(60):
        await feeds.stop()
    assert "left alone" in caplog.text
    released.set()
    # And once it returns it is called no more.
    await eventually(lambda: not any(task.get_name().startswith("log sink") for task in asyncio.all_tasks()))
    await writer.end()


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("sync", SystemExit),
        ("sync", KeyboardInterrupt),
        ("sync", asyncio.CancelledError),
        # The others, raised on its own loop, end the program, which is what they ask for.
        ("async", asyncio.CancelledError),
    ],
)
async def test_P07_callable_that_raises_no_exception_but_worse_has_failed(
    log: ContainerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, raised: type[BaseException]
) -> None:
    monkeypatch.setattr(limits, "SINK_RETRY_FIRST_S", 0.001)
    got: list[bytes] = []
    failures = 3

    def take(record: LogRecord) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise raised(3)
        got.append(record.data)

    async def take_async(record: LogRecord) -> None:
        take(record)

    feeds = Feeds(log, tmp_path, SOURCE, (), [CallableSink(take if kind == "sync" else take_async)])
    shown: set[str | None] = set()
    back_off = Feed._back_off

    async def see(self: Feed, error: str) -> None:
        shown.add(error)
        await back_off(self, error)

    monkeypatch.setattr(Feed, "_back_off", see)
    writer = await Writer(log).open()
    await writer.say(b"1\n2\n")
    await eventually(lambda: feeds.states[0].sent == 2)
    assert shown == {f"{raised.__name__}: 3"}
    await writer.end()
    await feeds.finish(30.0)
    assert got == [b"1\n", b"2\n"]


# ---- journald ----


def parsed(entry: bytes) -> dict[str, bytes]:
    """The reading side of the native protocol."""
    fields = {}
    while entry:
        key, _, rest = entry.partition(b"\n")
        if b"=" in key:
            name, _, value = key.partition(b"=")
            entry = rest
        else:
            name, size = key, int.from_bytes(rest[:8], "little")
            value = rest[8 : 8 + size]
            assert rest[8 + size : 9 + size] == b"\n"
            entry = rest[9 + size :]
        fields[name.decode()] = value
    return fields


def test_journal_entry_keeps_any_bytes() -> None:
    fields = {"A": b"text\twith = and \xc3\xbc", "B": b"two\nlines", "C": bytes(range(256)), "D": b""}
    assert parsed(journal_entry(fields)) == fields


async def test_journald_gets_lines_with_their_fields(log: ContainerLog, tmp_path: Path) -> None:
    with listening(tmp_path / "journal") as journal:
        feeds = Feeds(log, tmp_path / "sinks", SOURCE, [JournaldSink(path=str(tmp_path / "journal"))])
        writer = await Writer(log).open()
        await writer.say(b"hello\n")
        out = parsed(await asyncio.to_thread(journal.recv, 65536))
        await writer.say(b"bad\0", STDERR)
        await writer.end()
        err = parsed(await asyncio.to_thread(journal.recv, 65536))
        await feeds.finish(30.0)
    assert (out["MESSAGE"], out["PRIORITY"], out["CONTAINER_NAME"]) == (b"hello", b"6", b"web")
    assert out["CONTAINER_ID_FULL"].decode() == SOURCE.id
    assert out["CONTAINER_LOG_CURSOR"] == b"1:6:0:0"
    assert (err["MESSAGE"], err["PRIORITY"], err["CONTAINER_PARTIAL_MESSAGE"]) == (b"bad\0", b"3", b"true")


async def test_journald_gets_what_is_too_long_for_a_datagram_in_a_sealed_file(tmp_path: Path) -> None:
    data = b"x" * 900_000
    with listening(tmp_path / "journal") as journal:
        outlet = JournaldOutlet(JournaldSink(path=str(tmp_path / "journal")), SOURCE)
        assert await outlet.send([record(data + b"\n")]) == 1
        message, (fd,), _, _ = socket.recv_fds(journal, 65536, 1)
        await outlet.close()
    try:
        assert message == b""
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as content:
            assert parsed(content[:])["MESSAGE"] == data
        with pytest.raises(PermissionError):
            os.write(fd, b"more")
    finally:
        os.close(fd)


async def test_P08_journald_away_and_back_and_a_new_engine_misses_no_line(
    pump: OutputPump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SINK_RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(limits, "SINK_RETRY_MAX_S", 0.01)
    sinks = [JournaldSink(path=str(tmp_path / "journal"))]
    log = ContainerLog(pump, tmp_path / "logs")
    feeds = Feeds(log, tmp_path / "sinks", SOURCE, sinks)
    writer = await Writer(log).open()
    await writer.say(b"one\n")
    await eventually(lambda: feeds.states[0].failures >= 2)
    assert feeds.states[0].error == f"{tmp_path}/journal: No such file or directory"
    with listening(tmp_path / "journal") as journal:
        assert parsed(await asyncio.to_thread(journal.recv, 65536))["MESSAGE"] == b"one"
        await eventually(lambda: feeds.states[0].error is None and feeds.states[0].sent == 1)
        # As an engine that is closed.
        await feeds.stop()
        await writer.say(b"two\n")
        await writer.end()
        again = Feeds(ContainerLog(pump, tmp_path / "logs"), tmp_path / "sinks", SOURCE, sinks)
        assert parsed(await asyncio.to_thread(journal.recv, 65536))["MESSAGE"] == b"two"
        await again.finish(30.0)
        assert again.states[0].sent == 1


async def test_P07_journald_that_reads_nothing_costs_the_program_nothing(log: ContainerLog, tmp_path: Path) -> None:
    with listening(tmp_path / "journal"):
        feeds = Feeds(log, tmp_path / "sinks", SOURCE, [JournaldSink(path=str(tmp_path / "journal"))])
        writer = await Writer(log).open()
        await writer.say(b"x\n" * 2_000_000)
        await writer.end()
        assert writer.sink.progress == 4_000_000
        await feeds.finish(0.01)
        assert feeds.states[0].sent < 2_000_000


# ---- syslog ----

RFC5424 = re.compile(
    rb"<(?P<pri>\d+)>1 (?P<time>\S+) (?P<host>\S+) (?P<app>\S+) - (?P<stream>\S+) \[(?P<data>[^]]*)\] (?P<text>.*)",
    re.S,
)


async def test_syslog_over_a_unix_socket_and_udp(tmp_path: Path) -> None:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    udp.settimeout(30)
    with udp, listening(tmp_path / "log") as unix:
        for heard, address in ((unix, str(tmp_path / "log")), (udp, f"udp://127.0.0.1:{udp.getsockname()[1]}")):
            outlet = SyslogOutlet(SyslogSink(address=address, facility=16), SOURCE)
            assert await outlet.send([record(b"hello w\n"), record(b"", lost=9, stream="stderr")]) == 2
            await outlet.close()
            first = RFC5424.fullmatch(heard.recv(65536))
            assert first is not None
            assert (first["pri"], first["app"], first["text"]) == (b"134", b"web", b"hello w")
            assert first["time"] == b"1970-01-01T00:16:40.250000+00:00"
            assert f'id="{SOURCE.id}"'.encode() in first["data"]
            second = RFC5424.fullmatch(heard.recv(65536))
            assert second is not None
            assert (second["pri"], second["stream"], second["text"]) == (
                b"131",
                b"stderr",
                b"9 bytes of output were not kept",
            )


async def test_syslog_long_lines_come_in_pieces(tmp_path: Path) -> None:
    data = os.urandom(30_000).replace(b"\n", b" ")
    with listening(tmp_path / "log") as heard:
        outlet = SyslogOutlet(SyslogSink(address=str(tmp_path / "log"), identifier="a b€"), SOURCE)
        assert await outlet.send([record(data + b"\n")]) == 1
        await outlet.close()
        text = b""
        while len(text) < len(data):
            message = heard.recv(65536)
            assert len(message) <= 8192
            found = RFC5424.fullmatch(message)
            assert found is not None
            assert found["app"] == b"a_b_"
            text += found["text"]
    assert text == data


class Refusing(socket.socket):
    """Refuses some messages."""

    how = errno.EMSGSIZE

    def send(self, data: bytes, *flags: int) -> int:  # type: ignore[override]
        if b"too much" in data:
            raise OSError(self.how, os.strerror(self.how))
        return super().send(data, *flags)


async def test_P07_syslog_record_that_it_never_takes_is_left_out_and_counted(
    log: ContainerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(tmp_path / "log") as heard:
        monkeypatch.setattr(socket, "socket", Refusing)
        feeds = Feeds(log, tmp_path / "sinks", SOURCE, [SyslogSink(address=str(tmp_path / "log"))])
        writer = await Writer(log).open()
        await writer.say(b"one\ntoo much\ntwo\n")
        assert (await asyncio.to_thread(heard.recv, 65536)).endswith(b" one")
        assert (await asyncio.to_thread(heard.recv, 65536)).endswith(b" two")
        await eventually(lambda: feeds.states[0].sent == 3)
        assert (feeds.states[0].refused, feeds.states[0].error) == (1, None)
        await writer.end()
        await feeds.finish(30.0)


async def test_P07_syslog_without_buffers_is_tried_again(
    log: ContainerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SINK_RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(Refusing, "how", errno.ENOBUFS)
    with listening(tmp_path / "log") as heard:
        monkeypatch.setattr(socket, "socket", Refusing)
        feeds = Feeds(log, tmp_path / "sinks", SOURCE, [SyslogSink(address=str(tmp_path / "log"))])
        writer = await Writer(log).open()
        await writer.say(b"too much\n")
        await eventually(lambda: feeds.states[0].failures >= 2)
        assert feeds.states[0].error == f"{tmp_path}/log: {os.strerror(errno.ENOBUFS)}"
        monkeypatch.undo()
        assert (await asyncio.to_thread(heard.recv, 65536)).endswith(b" too much")
        await writer.end()
        await feeds.finish(30.0)
        assert feeds.states[0].refused == 0


@pytest.mark.parametrize(
    "address",
    ["", "dev/log", "tcp://127.0.0.1:1", "udp://host.example:514", "udp://127.0.0.1", "udp://127.0.0.1:99999"],
)
def test_bad_syslog_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidSpec):
        syslog_address(address)


def test_syslog_addresses() -> None:
    assert syslog_address("udp://[::1]:514") == (socket.AF_INET6, ("::1", 514))
    assert syslog_address("/dev/log") == (socket.AF_UNIX, "/dev/log")
