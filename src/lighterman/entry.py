"""What the engine holds in memory of one container and of its processes, beside the record."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lighterman import limits
from lighterman.checks import HealthCheck
from lighterman.errors import InvalidState, NotFound, StoreError
from lighterman.flag import Flag
from lighterman.images.image import Image
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.restart import RestartRule
from lighterman.lifecycle.status import Status
from lighterman.logs.container import ContainerLog
from lighterman.logs.reader import read_frames
from lighterman.logs.sink import OutputSink, Pin, Pump, StreamEnd
from lighterman.logs.streams import LogStream
from lighterman.record import Record
from lighterman.spec import CallableSink, ExitRecord, LogPolicy, ProcessConfig
from lighterman.stdin import StdinWriter
from lighterman.supervisor.client import Client
from lighterman.supervisor.streams import DrainEnd, ReadStream, Streams
from lighterman.threads import in_thread

if TYPE_CHECKING:
    from lighterman.journal import Event
    from lighterman.logs.feeds import Feeds

__all__ = [
    "PROBE",
    "Entry",
    "ExecEntry",
    "Output",
    "exit_record",
    "last_words",
    "not_started",
    "read_output",
    "take_output",
]


PROBE = "probe-"  # what the names of a health check's processes begin with: the next engine ends those


class Output:
    """The streams of one process as its readers see them."""

    def __init__(self) -> None:
        self.sink: OutputSink | None = None
        self.stdin: StdinWriter | None = None
        self.terminal = False
        self._readers: dict[int, LogStream] = {}
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

    def close(self) -> None:
        """Let go of the readers' places."""
        self.let_go_soon(0)
        for reader in self._readers.values():
            reader.close()


class ExecEntry:
    """One exec process."""

    def __init__(self, name: str, pump: Pump, directory: Path, policy: LogPolicy = "block") -> None:
        self.name = name
        self.pid = 0
        self.directory = directory
        self.log = ContainerLog(pump, directory, policy=policy)
        self.output_of = Output()
        self.exit: ExitRecord | None = None
        self.reason: str | None = None
        self.is_probe = False  # of a health check: too frequent for the journal
        self.due: float | None = None  # when its time is over, seconds on CLOCK_MONOTONIC
        self.ended = Flag()

    def require_stdin(self) -> StdinWriter:
        """Raises: InvalidState without one."""
        if self.output_of.stdin is None:
            raise InvalidState(f"process {self.name} was started without stdin")
        return self.output_of.stdin

    def output(self, stream: int) -> LogStream:
        """Its stdout (1) or stderr (2)."""
        return self.output_of.reader(stream, f"process {self.name}")

    async def forget(self) -> None:
        """Nobody can ask for it any more: its output goes."""
        self.output_of.close()
        if self.output_of.sink is not None and self.output_of.sink.progress:
            await in_thread(shutil.rmtree, self.directory, ignore_errors=True)

    async def wait_exit(self) -> ExitRecord:
        """How it ended."""
        await self.ended.wait()
        if self.exit is None:
            raise NotFound(f"process {self.name} is no longer watched")
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
        # When the time of an exec is over (`ExecEntry.due`), by its id; and what is written down of that.
        self.execs_due: dict[str, float] = {}
        self.execs_due_saved: dict[str, float] = {}
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
        self.last_end: StateInfo | None = None
        self.start_times: tuple[float, float] | None = None
        self.start_asked_mono = 0.0
        self.end_known_mono = 0.0

    def surplus_execs(self) -> list[ExecEntry]:
        """Take out the ended processes that are too many to be kept, the oldest first."""
        ended = [life for life in self.execs.values() if life.ended.is_set()]
        surplus = ended[: max(0, len(ended) - limits.EXECS_KEPT)]
        for life in surplus:
            del self.execs[life.name]
        return surplus

    def new_exec(self, name: str) -> ExecEntry:
        """Enter a further process."""
        life = self.execs[name] = ExecEntry(
            name, self._pump, self.directory / "execs" / name, self.record.spec.log_policy
        )
        life.due = self.execs_due.get(name)
        life.is_probe = name.startswith(PROBE)
        return life

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
        if self.record.exit is None:
            why = "is no longer watched by this engine" if self.record.started_at is not None else "was never started"
            raise InvalidState(f"{self.client_name} {why}")
        return self.record.exit


_ENDS = {StreamEnd.EOF: DrainEnd.EOF, StreamEnd.BUFFERED: DrainEnd.BUFFERED, StreamEnd.CLOSED: DrainEnd.STUCK}


def take_output(streams: Streams, sink: OutputSink) -> None:
    """Hand a process's output over to the pump, and tell the streams when each byte is in safety."""
    if streams.terminal and streams.stdout is not None:
        terminal = streams.stdout
        through = terminal.detach_through()
        sink.add_terminal(terminal.detach(progress=lambda: sink.progress), *through)
        _tie(terminal, sink, 1)
        return
    for number, stream in ((1, streams.stdout), (2, streams.stderr)):
        if stream is not None:
            sink.add(number, stream.detach(progress=lambda: sink.progress))
            _tie(stream, sink, number)


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


def exit_record(info: StateInfo, reason: str | None) -> ExitRecord:
    """The record of an end that was told."""
    known = info.exit_code_known and not info.not_started
    if known and info.state is not State.RESTART:
        reason = reason or info.reason
    if reason is None and info.oom_killed and info.signal == 9:
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
    after = max(0, sink.progress - 8 * limits.LAST_WORDS_BYTES)
    try:
        said = b"".join(frame.data for frame in read_frames(sink.directory, after) if frame.stream == stream)
    except (OSError, StoreError):
        return b""  # rotated away or damaged: the log itself says so
    said = said[-limits.LAST_WORDS_BYTES :]
    first = said.find(b"\n")
    return said[first + 1 :] if len(said) == limits.LAST_WORDS_BYTES and 0 <= first < len(said) - 1 else said


def not_started(text: str, generation: int) -> ExitRecord:
    """Of a run whose program never ran."""
    return ExitRecord(not_started=text, finished_at=time.time(), generation=generation)
