"""What the engine holds in memory of one container and of its processes, beside the record."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lighterman import limits
from lighterman.checks import HealthCheck
from lighterman.errors import InvalidState, NotFound, StoreError
from lighterman.flag import Flag
from lighterman.images.image import Image
from lighterman.journal import Event
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.restart import RestartRule
from lighterman.lifecycle.status import Status
from lighterman.logs.container import ContainerLog
from lighterman.logs.reader import SegmentReader
from lighterman.logs.sink import OutputSink, Pin, Pump, StreamEnd
from lighterman.logs.streams import LogStream
from lighterman.record import ExecRecord, Record
from lighterman.spec import CallableSink, ExitRecord, LogPolicy, ProcessConfig
from lighterman.stdin import StdinWriter
from lighterman.supervisor.client import Client
from lighterman.supervisor.streams import DrainEnd, ReadStream, Streams
from lighterman.threads import in_thread

if TYPE_CHECKING:
    from lighterman.logs.feeds import Feeds

__all__ = [
    "PROBE",
    "UNHEALTHY",
    "Entry",
    "ExecEntry",
    "Output",
    "exit_record",
    "last_words",
    "not_started",
    "read_output",
    "take_output",
]


UNHEALTHY = "unhealthy"  # the reason of an exit, and of the run that follows it
PROBE = "probe-"  # what the names of a health check's processes begin with: the next engine ends those


class Output:
    """The streams of one process as its readers see them."""

    def __init__(self) -> None:
        self.sink: OutputSink | None = None
        self.stdin: StdinWriter | None = None
        self.terminal = False
        self._readers: dict[int, LogStream] = {}
        self._earlier: weakref.WeakSet[LogStream] = weakref.WeakSet()  # of the runs before
        self._held: Pin | None = None

    def hold(self) -> None:
        """Let nothing be rotated away before `let_go_soon`: who starts it and reads at once must miss nothing."""
        assert self.sink is not None
        self._held = self.sink.pin(self.sink.progress)

    def let_go_soon(self, turns: int = 3) -> None:
        """End `hold`, some turns of the loop from now: whoever waited for the start has begun to read by then."""
        if turns and self._held is not None:
            asyncio.get_running_loop().call_soon(self.let_go_soon, turns - 1)
        elif self._held is not None:
            self._held.release()
            self._held = None

    def reader(self, stream: int, whose: str) -> LogStream:
        """The one reader of a stream, made at the first call: until then nobody can hold the program up."""
        if self.sink is None:
            raise InvalidState(f"{whose} was never started")
        if stream == 2 and self.terminal:
            raise InvalidState(f"{whose} has a terminal: all of its output is in stdout")
        reader = self._readers.get(stream)
        if reader is None:
            reader = self._readers[stream] = LogStream(self.sink, stream)
        return reader

    def next_run(self) -> Output:
        """That of the next run. Who has begun to read this one reads it to its end."""
        self.let_go_soon(0)
        following = Output()
        following._earlier = self._earlier | self._readers.values()
        return following

    def close(self) -> None:
        """Let go of the readers' places."""
        self.let_go_soon(0)
        for reader in (*self._readers.values(), *self._earlier):
            reader.close()


class ExecEntry:
    """One exec process."""

    def __init__(self, record: ExecRecord, pump: Pump, directory: Path, policy: LogPolicy = "block") -> None:
        self.record = record
        self.directory = directory
        self.log = ContainerLog(pump, directory, policy=policy)
        self.output_of = Output()
        self.reason: str | None = None
        self.is_probe = record.id.startswith(PROBE)  # of a health check: too frequent for the journal
        self.is_kept = record.is_kept and not self.is_probe  # can be asked for after its end
        self.ended = Flag()

    @property
    def name(self) -> str:
        """Its id."""
        return self.record.id

    @property
    def pid(self) -> int:
        """The host's number; 0 until it is known."""
        return self.record.pid

    @property
    def exit(self) -> ExitRecord | None:
        """How it ended; None until that is told."""
        return self.record.exit

    def change(self, **fields: Any) -> None:
        """See `ExecRecord`."""
        self.record = msgspec.structs.replace(self.record, **fields)

    def end(self, record: ExecRecord) -> None:
        """Its end is told."""
        if not self.ended.is_set():
            self.record = record
            self.log.end()
            self.ended.set()

    def require_stdin(self) -> StdinWriter:
        """Raises: InvalidState without one."""
        if self.output_of.stdin is None:
            raise InvalidState(f"process {self.name} was started without stdin")
        return self.output_of.stdin

    def output(self, stream: int) -> LogStream:
        """Its stdout (1) or stderr (2)."""
        if self.output_of.sink is None and self.exit is not None:
            raise InvalidState(f"process {self.name} had ended before this engine came: its output is in its logs")
        return self.output_of.reader(stream, f"process {self.name}")

    async def forget(self) -> None:
        """Nobody can ask for it any more: its output goes."""
        self.output_of.close()
        if self.output_of.sink is None or self.output_of.sink.progress:
            await in_thread(shutil.rmtree, self.directory, ignore_errors=True)

    def let_go(self) -> None:
        """Nothing more is heard of it: who waits, waits no longer."""
        self.log.end()
        self.ended.set()

    async def wait_exit(self) -> ExitRecord:
        """How it ended."""
        await self.ended.wait()
        if self.exit is None:
            raise NotFound(f"process {self.name} is no longer watched by this engine")
        return self.exit


class Entry:
    """One container."""

    def __init__(self, record: Record, pump: Pump, directory: Path) -> None:
        self.record = record
        self.directory = directory
        self.log = ContainerLog(pump, directory / "logs", policy=record.spec.log_policy)
        self.feeds: Feeds | None = None
        self._pump = pump
        self.client: Client | None = None  # of the runtime that its last run used
        self.process: ProcessConfig | None = None  # of its last run
        self.image: Image | None = None  # of its last run
        self.output_of = Output()
        self.execs: dict[str, ExecEntry] = {}
        self.execs_unsaved: dict[str, bytes | None] = {}  # rows that the next commit writes, or takes away
        self.restarts = self.restarts_saved = b""  # the history of its restarts, and what is written down of it
        self.restart_rule: RestartRule | None = None  # instead of the stored policy; this process alone knows it
        self.check: HealthCheck | None = None  # with its functions, which are not stored
        self.reason: str | None = None  # who asked for the end that comes next
        self.reason_since = 0.0  # CLOCK_MONOTONIC, seconds: what ended before that has ended by itself
        self.ended = Flag()  # the run that is under way, or was last; the next one has its own
        self.removed = Flag()
        self.stored = False  # its row has been written by this engine
        self.has_no_files = False  # its directory is removed
        self.buried = False  # its row is out of the store
        self.burying = asyncio.Lock()  # one attempt at a time to take away what is left of it
        self.taking_away: asyncio.Task[None] | None = None  # tries again
        self.told_start = Flag()  # the start, or its failure, is written down
        self.starting = False
        self.start_unwanted = Flag()  # a start that has not come to its runtime yet goes no further
        self.start_over = Flag()  # no start is under way
        self.start_over.set()
        self.removing = False
        self.restoring = False  # an earlier engine's run is being taken up
        self.heard = Flag()  # something was told of it to this engine
        self.untold: deque[Event] = deque()  # facts that the record shows and the journal does not have yet
        self.telling: asyncio.Task[None] | None = None  # writes them down once the disk takes them
        self.all_told: Flag | None = None  # somebody has written them down
        self.writing = asyncio.Lock()  # one commit at a time, in the order of what it tells
        self.updating = asyncio.Lock()  # one change of its limits at a time
        self.saving = asyncio.Lock()  # one checkpoint at a time; and its files stay until that is over
        self.last_end: StateInfo | None = None
        self.start_times: tuple[float, float] | None = None
        self.start_asked_mono = 0.0
        self.end_known_mono = 0.0

    def surplus_execs(self) -> list[ExecEntry]:
        """Take out the ended processes that are too many to be kept, the oldest first."""
        ended = [life for life in self.execs.values() if life.ended.is_set()]
        surplus = ended[: max(0, len(ended) - limits.EXECS_KEPT)]
        for life in surplus:
            self.drop_exec(life)
        return surplus

    def new_exec(self, record: ExecRecord) -> ExecEntry:
        """What is held in memory of an exec."""
        return ExecEntry(record, self._pump, self.directory / "execs" / record.id, self.record.spec.log_policy)

    def enter_exec(self, record: ExecRecord) -> ExecEntry:
        """Enter a further process, or one from the store."""
        life = self.execs[record.id] = self.new_exec(record)
        if record.exit is not None:
            life.end(record)
        return life

    def let_go(self) -> None:
        """Nothing more is heard of it: who waits, waits no longer."""
        for life in self.execs.values():
            life.let_go()
        self.log.end()
        self.ended.set()
        self.heard.set()

    def exec_changed(self, record: ExecRecord) -> None:
        """Write it down with the next commit."""
        self.execs_unsaved[record.id] = msgspec.json.encode(record)

    def drop_exec(self, life: ExecEntry) -> None:
        """Nobody can ask for it any more."""
        life.is_kept = False
        self.execs.pop(life.name, None)
        if not life.is_probe:
            self.execs_unsaved[life.name] = None

    def lose_execs(self, why: str, found: Callable[[ExecRecord], ExitRecord | None] = lambda record: None) -> None:
        """Execs that were told to have started end unknown: the next commit tells so, before anything else [L25].

        Args: found: how one ended, where that is known all the same.
        """
        for life in self.execs.values():
            record = life.record
            if life.ended.is_set() or life.is_probe or record.started_at is None:
                continue
            exit = found(record) or ExitRecord(unknown=why)
            exit = msgspec.structs.replace(exit, started_at=record.started_at, generation=record.generation)
            lost = msgspec.structs.replace(record, exit=exit, due=None, is_kept=life.is_kept)
            self.exec_changed(lost)
            self.untold.append(self.exec_event(State.EXIT_PROCESS, lost))
            life.end(lost)

    def exec_event(self, state: State, exec: ExecRecord) -> Event:
        """What the journal says of a start or an end."""
        return Event(
            kind=state,
            container=self.record.id,
            name=self.record.name,
            generation=exec.generation,
            process=exec.id,
            pid=exec.pid,
            exit=exec.exit,
        )

    async def taken_up(self) -> None:
        """Return once its record follows what is told of it: a change before that would be seen late."""
        if self.restoring:
            await self.heard.wait()

    def feed_sinks(self, callables: Sequence[CallableSink] = ()) -> None:
        """Begin to feed its log's sinks, if it has any."""
        spec = self.record.spec
        if spec.log_sinks or callables:
            # Only who has sinks pays for them.
            from lighterman.logs.feeds import Feeds
            from lighterman.logs.sinks.base import LogSource

            source = LogSource(self.record.id, self.record.name, spec.image or spec.rootfs or "")
            self.feeds = Feeds(self.log, self.directory / "sinks", source, spec.log_sinks, callables)

    async def end_feeds(self, within_s: float = 0.0) -> None:
        """Stop feeding; what is still to come has so many seconds."""
        feeds, self.feeds = self.feeds, None
        if feeds is not None:
            await feeds.finish(within_s)

    def ask_for_end(self, reason: str, now: float) -> None:
        """Who asks first for the end of a run is its reason."""
        if self.reason is None:
            self.reason, self.reason_since = reason, now

    def forget_reason(self) -> None:
        """What was asked for has happened, or not; the next run is another one."""
        self.reason, self.reason_since = None, 0.0

    def reason_of(self, info: StateInfo) -> str | None:
        """Who ended a run that has ended."""
        if self.reason is not None and (info.finished_mono is None or info.finished_mono >= self.reason_since):
            return self.reason
        return None

    @property
    def is_registered(self) -> bool:
        """Whether a client watches it: from its start to its told end."""
        return self.client is not None and self.record.id in self.client.containers()

    @property
    def end_is_untold(self) -> bool:
        """Whether its run is over, nobody watches it any more, and its end is on its way to here."""
        running = self.record.status in (Status.RUNNING, Status.PAUSED, Status.RESTARTING)
        return running and self.client is not None and not self.is_registered and not self.starting

    @property
    def client_name(self) -> str:
        """How messages call it."""
        return f"container {self.record.name}"

    def require_stdin(self) -> StdinWriter:
        """Raises: InvalidState without one."""
        if self.output_of.stdin is None:
            raise InvalidState(f"{self.client_name} has no stdin: it was made without stdin=True, or never started")
        return self.output_of.stdin

    def output(self, stream: int) -> LogStream:
        """The last run's stdout (1) or stderr (2)."""
        return self.output_of.reader(stream, self.client_name)

    async def wait_exit(self) -> ExitRecord:
        """How the last run ended, once it has."""
        if self.record.generation == 0 and not self.starting and self.record.exit is None:
            raise InvalidState(f"{self.client_name} was never started")
        await self.ended.wait()
        # The engine may have been closed in a back-off: another run follows that end, by the next engine.
        if self.record.exit is None or self.record.status is Status.RESTARTING:
            why = "is no longer watched by this engine" if self.record.started_at is not None else "was never started"
            raise InvalidState(f"{self.client_name} {why}")
        return self.record.exit


_ENDS = {StreamEnd.EOF: DrainEnd.EOF, StreamEnd.BUFFERED: DrainEnd.BUFFERED, StreamEnd.CLOSED: DrainEnd.STUCK}


def take_output(streams: Streams, sink: OutputSink) -> None:
    """Hand a process's output over to the pump, and tell the streams when each byte is in safety."""
    if streams.terminal and streams.stdout is not None:
        terminal = streams.stdout
        through = terminal.detach_through()
        fds = (terminal.detach(progress=lambda: sink.progress), *through)
        with _closed_if_refused(*fds):
            sink.add_terminal(*fds)
        _tie(terminal, sink, 1)
        return
    for number, stream in ((1, streams.stdout), (2, streams.stderr)):
        if stream is not None:
            fd = stream.detach(progress=lambda: sink.progress)
            with _closed_if_refused(fd):
                sink.add(number, fd)
            _tie(stream, sink, number)


@contextlib.contextmanager
def _closed_if_refused(*fds: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def read_output(streams: Streams, sink: OutputSink) -> None:
    """As `take_output`, where streams have no descriptors: they tell by themselves when they are at their end."""
    for number, stream in ((1, streams.stdout), (2, streams.stderr)):
        if stream is not None:
            sink.add_reader(number, stream.read)


def _tie(stream: ReadStream, sink: OutputSink, number: int) -> None:
    def look() -> None:
        end = sink.stream_end(number)
        if end is not None:
            unsubscribe()
            stream.drained(_ENDS[end])

    unsubscribe = sink.subscribe(look)
    stream.on_drain(lambda: sink.finish(number))
    look()


def exit_record(info: StateInfo, reason: str | None, *, oom_is_news: bool = True) -> ExitRecord:
    """The record of an end that was told. Args: oom_is_news: not all of its OOM kills were told long before it."""
    known = info.exit_code_known and not info.not_started
    if known and info.state is not State.RESTART:
        reason = reason or info.reason
    if reason is None and info.oom_killed and oom_is_news and info.signal == 9:
        reason = "oom"
    duration = None
    if info.started_mono is not None and info.finished_mono is not None:
        duration = max(0.0, info.finished_mono - info.started_mono)
    return ExitRecord(
        code=info.exit_code if known and info.signal is None else None,
        signal=info.signal if known else None,
        unknown=(info.reason or "unknown") if not info.exit_code_known and not info.not_started else None,
        not_started=(info.reason or "unknown") if info.not_started else None,
        reason=reason,
        oom_killed=info.oom_killed,
        oom_kills=info.oom_kills,
        memory_peak_bytes=info.memory_peak_bytes,
        cpu_s=info.cpu_ns / 1e9 if info.cpu_ns is not None else None,
        started_at=info.started_at,
        finished_at=info.finished_at,
        duration_s=duration,
        generation=info.generation,
    )


def last_words(sink: OutputSink, terminal: bool) -> bytes:
    """The end of what a program said on stderr, whole lines where there are any. Blocking."""
    stream = 1 if terminal else 2
    # However much came after it on the other one.
    end = sink.stream_progress(stream) if stream in sink.sources else 0
    said, step = b"", 8 * limits.LAST_WORDS_BYTES
    while end > 0:
        begin = max(0, end - step)
        try:
            said = _said(sink.directory, stream, begin, end)
        except (OSError, StoreError):
            break  # rotated away or damaged: the log itself says so
        if len(said) >= limits.LAST_WORDS_BYTES or begin == 0 or step >= limits.LAST_WORDS_SEARCH_BYTES:
            break
        step *= 8
    said = said[-limits.LAST_WORDS_BYTES :]
    first = said.find(b"\n")
    return said[first + 1 :] if len(said) == limits.LAST_WORDS_BYTES and 0 <= first < len(said) - 1 else said


def _said(directory: str, stream: int, begin: int, end: int) -> bytes:
    said = b""
    reader = SegmentReader(directory, begin)
    try:
        while frames := reader.read(end, stream):
            for frame in frames:
                said = (said + frame.data)[-limits.LAST_WORDS_BYTES :]
    finally:
        reader.close()
    return said


def not_started(text: str, generation: int) -> ExitRecord:
    """Of a run whose program never ran."""
    return ExitRecord(not_started=text, finished_at=time.time(), generation=generation)
