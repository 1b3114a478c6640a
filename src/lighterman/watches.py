"""What an engine looks at while its containers run: whether they are healthy, and when they are ready.

Everything here belongs to one run, and ends with it; a restart begins anew.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from lighterman import limits
from lighterman.arguments import check_seconds
from lighterman.books import Books
from lighterman.checks import PROBES, Exec, HealthCheck, LogPattern, Port, Readiness, SdNotify
from lighterman.clock import Clock
from lighterman.entry import UNHEALTHY, Entry
from lighterman.errors import (
    InvalidSpec,
    InvalidState,
    KeeperLost,
    LightermanError,
    NotFound,
    OperationTimeout,
    StoreError,
)
from lighterman.execs import Execs
from lighterman.host import Host
from lighterman.journal import Event
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.health import Health, HealthMonitor, HealthReport, Which
from lighterman.lifecycle.status import Status
from lighterman.logs.reader import Cursor
from lighterman.notify import NotifySocket
from lighterman.supervisor.client import Client
from lighterman.supervisor.health import Answer, watch_health
from lighterman.supervisor.tasks import OwnedTasks
from lighterman.threads import InThread, OneThread, in_own_thread

if TYPE_CHECKING:
    from lighterman.checks import OnUnhealthy
    from lighterman.runtimes.oci.reach import Reach

__all__ = ["Until", "Watches"]

log = logging.getLogger(__name__)

Until = Literal["exit", "healthy", "unhealthy", "ready"]

_PORT_FIRST_S, _PORT_MAX_S = 0.02, 1.0  # between looks at a port that is to open: it costs a thread's start each time
_PORT_TIMEOUT_S = 5.0


class _Watch:
    """One container's."""

    def __init__(self) -> None:
        self.monitor: HealthMonitor | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.reach: Reach | None = None
        self.probing = OneThread()  # over all runs: who restarts what hangs its probes must not gather threads
        self.notify: NotifySocket | None = None
        self.listening: asyncio.Task[None] | None = None
        self.run_since = 0.0  # when the run before had ended; CLOCK_MONOTONIC, seconds
        self._news = asyncio.Event()

    def tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def wait_news(self) -> None:
        await self._news.wait()

    def end_run(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.tasks = []
        if self.reach is not None:
            self.reach.close()
            self.reach = None

    def end(self) -> None:
        self.end_run()
        if self.listening is not None:
            self.listening.cancel()
        self.notify = self.listening = None


class Watches:
    """Of all containers of one engine.

    Args:
        host: asked for at each use. stop: by request, saying why. face: what a user's function is given.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        tasks: OwnedTasks,
        books: Books,
        execs: Execs,
        host: Callable[[], Host],
        client_of: Callable[[Entry], Client],
        stop: Callable[[Entry, str], Awaitable[object]],
        face: Callable[[Entry], object],
    ) -> None:
        self._clock = clock
        self._tasks = tasks
        self._books = books
        self._execs = execs
        self._host = host
        self._client_of = client_of
        self._stop = stop
        self._face = face
        self._watches: dict[str, _Watch] = {}
        self._is_closed = False

    # ---- what may be asked ---------------------------------------------------------------------------------------

    def report(self, entry: Entry) -> HealthReport | None:
        """The health of the run that is under way or was last; None without a check, and before the first run."""
        watch = self._watches.get(entry.record.id)
        return watch.monitor.report if watch is not None and watch.monitor is not None else None

    def said(self, entry: Entry) -> str | None:
        """The last STATUS that it sent by sd_notify."""
        watch = self._watches.get(entry.record.id)
        return watch.notify.status if watch is not None and watch.notify is not None else None

    async def wait(self, entry: Entry, until: Until, timeout_s: float | None) -> None:
        """Return once a container is healthy, unhealthy or ready; restarts by its policy are waited through.

        Raises: InvalidSpec, InvalidState if it has no such check, or ends for good before; OperationTimeout.
        """
        record = entry.record
        if until not in ("healthy", "unhealthy", "ready"):
            raise InvalidSpec(f"until {until!r:.80}: must be exit, healthy, unhealthy or ready")
        check_seconds("timeout_s", timeout_s, none=True)
        if (record.spec.ready if until == "ready" else _check_of(entry)) is None:
            raise InvalidState(
                f"container {record.name} can't become {until}: it was made without "
                f"{'ready=' if until == 'ready' else 'health='}",
                container=record.id,
            )
        watch = self._watches.setdefault(record.id, _Watch())
        try:
            async with self._clock.timeout(timeout_s):
                while not _is(entry, until):
                    if self._is_closed:
                        raise _closed(entry, until)
                    if _is_over(entry):
                        raise InvalidState(
                            f"container {record.name} ended before it was {until}: {record.exit}", container=record.id
                        )
                    await watch.wait_news()
        except TimeoutError as late:
            report = self.report(entry)
            last = f": {report.log[-1].output}" if report is not None and report.log and until != "ready" else ""
            raise OperationTimeout(
                f"container {record.name} was not {until} after {timeout_s:g} s{last}",
                operation="wait",
                container=record.id,
            ) from late

    # ---- what the engine tells -----------------------------------------------------------------------------------

    async def prepare(self, entry: Entry) -> None:
        """Before its start: what the program may find from its first moment on. Raises: StoreError."""
        if isinstance(entry.record.spec.ready, SdNotify):
            (await self._listen(entry, anew=True)).expect_ready()

    def changed(self, entry: Entry, info: StateInfo) -> None:
        """A run has begun, was taken up, or has ended; the record says so already."""
        if _check_of(entry) is None and entry.record.spec.ready is None:
            return
        watch = self._watches.setdefault(entry.record.id, _Watch())
        if info.state in (State.START, State.RESTORE):
            watch.end_run()
            self._begin(entry, watch, info)
        elif info.state is State.RESTART:
            watch.run_since = info.finished_mono or 0.0
            if watch.notify is not None:
                watch.notify.expect_ready(watch.run_since)
            watch.end_run()
        elif info.state is State.EXIT:
            watch.run_since = info.finished_mono or 0.0
            self._end(entry, watch)
        watch.tell()

    def start_is_over(self, entry: Entry) -> None:
        """Whether it has begun to run or not: nothing else is told of a start that failed."""
        watch = self._watches.get(entry.record.id)
        if watch is not None:
            watch.tell()

    def forget(self, entry: Entry) -> None:
        """It is removed."""
        watch = self._watches.pop(entry.record.id, None)
        if watch is not None:
            self._end(entry, watch)
            watch.tell()

    def _end(self, entry: Entry, watch: _Watch) -> None:
        if watch.notify is not None:
            self._tasks.finish(self._drop_kept(entry), f"drop the socket of {entry.record.name}")
        watch.end()

    def close(self) -> None:
        """The engine ends; its tasks have ended by now. Who waits hears of it."""
        self._is_closed = True
        for watch in self._watches.values():
            watch.end()
            watch.tell()

    # ---- one run -------------------------------------------------------------------------------------------------

    def _begin(self, entry: Entry, watch: _Watch, info: StateInfo) -> None:
        record = entry.record
        check, ready = _check_of(entry), record.spec.ready
        if info.state is State.RESTORE:
            # What was said before that is of a run whose end another engine has seen.
            watch.run_since = info.started_mono or 0.0
        if check is not None:
            watch.monitor = HealthMonitor(
                check,
                started=info.started_mono or self._clock.mono(),
                status=Health(record.health or Health.STARTING),
                startup_over=record.startup_over,
            )
            if record.remedy is not None:
                # An earlier engine had found it unhealthy, and may not have come to the end of what follows.
                self._act_on(entry, record.remedy)
            watching = self._watch_health(entry, watch, watch.monitor)
            watch.tasks.append(self._tasks.watch(watching, f"health of {record.name}"))
        # Known to be ready, it is listened to all the same: its next run may speak in its first moment.
        if ready is not None and (not record.ready or isinstance(ready, SdNotify)):
            waiting = self._watch_ready(entry, watch, ready, info.generation)
            watch.tasks.append(self._tasks.watch(waiting, f"readiness of {record.name}"))

    async def _watch_health(self, entry: Entry, watch: _Watch, monitor: HealthMonitor) -> None:
        async def probe(which: Which) -> Answer:
            wanted = (monitor.check.startup if which == "startup" else None) or monitor.check.probe
            if isinstance(wanted, Exec):
                return await self._execute(entry, wanted)
            if watch.probing.is_busy:
                return False, "the probe before has not ended yet"
            if isinstance(wanted, PROBES):
                return await self._reach(entry, watch).look(wanted, watch.probing)
            found = await _call(wanted, self._face(entry), watch.probing)
            return bool(found), repr(found)

        async def changed(status: Health | None) -> None:
            record = entry.record
            record.startup_over = monitor.startup_over
            if status is None:
                await self._save(entry)
                return
            record.health = status
            wanted = monitor.check.on_unhealthy
            acts = status is Health.UNHEALTHY and wanted != "none"
            if acts and not callable(wanted) and wanted != "none":
                # In the same commit: whoever dies from there on, the next engine goes on with it.
                record.remedy = wanted
            last = monitor.report.log[-1].output
            reason = f"{status}: {last}" if status is Health.UNHEALTHY else status.value
            await self._tell(entry, "health", reason)
            log.info("container %s is %s: %s", record.name, status, last)
            watch.tell()
            if acts:
                self._act_on(entry, wanted)

        def cannot_answer() -> bool:
            record, client = entry.record, entry.client
            # Long before its end is told.
            is_over = client is None or not client.is_running(record.id)
            return is_over or record.status is Status.PAUSED or record.saving is not None

        async def end_may_come() -> None:
            if entry.client is not None:
                await entry.client.ends_within(entry.record.id, limits.PROBE_END_S)

        await watch_health(
            monitor,
            probe,
            changed,
            clock=self._clock,
            spawn=self._tasks.watch,
            cannot_answer=cannot_answer,
            end_may_come=end_may_come,
        )

    async def _execute(self, entry: Entry, wanted: Exec) -> Answer:
        done = await self._execs.run(
            entry,
            wanted.argv,
            stdin=None,
            env=None,
            workdir=None,
            user=None,
            timeout_s=None,
            max_output=limits.PROBE_OUTPUT_BYTES,
            is_probe=True,
        )
        output = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
        return done.exit.ok, output or str(done.exit)

    def _reach(self, entry: Entry, watch: _Watch) -> Reach:
        if watch.reach is None:
            watch.reach = self._host().reach(entry.record.runtime, entry.record.id)
        if watch.reach is None:
            raise NotFound(f"container {entry.record.name} has no process that can be reached")
        return watch.reach

    def _act_on(self, entry: Entry, wanted: OnUnhealthy) -> None:
        # Not a part of a watch, which ends with the run that the action ends.
        self._tasks.watch(self._act(entry, wanted, entry.record.generation), f"{entry.record.name} is unhealthy")

    async def _act(self, entry: Entry, wanted: OnUnhealthy, generation: int) -> None:
        name, record = entry.record.name, entry.record
        try:
            if callable(wanted):
                await _call(wanted, self._face(entry), in_own_thread)
            elif record.generation != generation or record.remedy is None:
                log.debug("container %s: the run that was unhealthy has ended", name)
            elif wanted == "stop":
                await self._stop(entry, UNHEALTHY)
            elif wanted == "restart":
                await self._client_of(entry).end_run(record.id, grace_s=limits.STOP_GRACE_S, restart=UNHEALTHY)
            else:
                await self._client_of(entry).end_run(record.id, grace_s=0)
        except (InvalidState, NotFound) as gone:
            log.debug("container %s ended before it was acted on: %s", name, gone)
        except LightermanError as failed:
            log.error("container %s is unhealthy, and %s failed: %s", name, wanted, failed)
        except Exception:
            log.exception("container %s is unhealthy, and its on_unhealthy function failed", name)

    # ---- readiness -----------------------------------------------------------------------------------------------

    async def _watch_ready(self, entry: Entry, watch: _Watch, ready: Readiness, generation: int) -> None:
        match ready:
            case LogPattern():
                if not await _said(entry, ready, generation):
                    return
            case Port():
                await self._port_opened(entry, watch, ready)
            case SdNotify():
                notify = await self._listen(entry, anew=False)
                notify.expect_ready(watch.run_since)
                if entry.record.ready:
                    notify.settle()
                    return
                await notify.wait_ready(watch.run_since)
        entry.record.ready = True
        await self._tell(entry, "ready", None)
        if watch.notify is not None:
            watch.notify.settle()
        watch.tell()

    async def _port_opened(self, entry: Entry, watch: _Watch, ready: Port) -> None:
        wait_s = _PORT_FIRST_S
        while True:
            try:
                async with self._clock.timeout(_PORT_TIMEOUT_S):
                    await self._reach(entry, watch).look(ready)
                    return
            except (OSError, LightermanError) as closed:
                log.debug("container %s: port %d: %s", entry.record.name, ready.port, closed)
            await self._clock.sleep(wait_s)
            wait_s = min(wait_s * 1.5, _PORT_MAX_S)

    async def _listen(self, entry: Entry, *, anew: bool) -> NotifySocket:
        """The socket stands over all runs: what a program sends early is there for whoever looks later.

        Args: anew: nothing of it runs; else an earlier engine's is taken up, with what came while there was none.
        """
        watch = self._watches.setdefault(entry.record.id, _Watch())
        if watch.notify is None:
            made = None if anew else await self._kept(entry)
            if made is None:
                made = await in_own_thread(lambda: NotifySocket(str(entry.directory / "notify")), NotifySocket.close)
                await self._keep(entry, made)
            watch.notify = made
            watch.listening = self._tasks.watch(made.receive(), f"notifications of {entry.record.name}")
            # By whoever ends the task, and not before it has let go of the descriptor.
            watch.listening.add_done_callback(lambda _: made.close())
        return watch.notify

    async def _kept(self, entry: Entry) -> NotifySocket | None:
        try:
            state = await self._host().keeper.mailbox_of(_mailbox(entry))
        except KeeperLost:
            return None
        if state.socket is None:
            return None
        return NotifySocket.resumed(state.socket, state.ready_mono, state.stopping, state.status)

    async def _keep(self, entry: Entry, made: NotifySocket) -> None:
        """While no engine is there, the keeper reads it."""
        try:
            await self._host().keeper.keep_mailbox(_mailbox(entry), made.descriptor)
        except LightermanError as failed:
            log.warning("container %s: what it says to no engine will be lost: %s", entry.record.name, failed)

    async def _drop_kept(self, entry: Entry) -> None:
        try:
            await self._host().keeper.drop_mailbox(_mailbox(entry))
        except LightermanError as failed:
            log.debug("container %s: its socket goes with the keeper: %s", entry.record.name, failed)

    async def _save(self, entry: Entry) -> None:
        try:
            await self._books.save(entry)
        except StoreError as failed:
            log.error("container %s: that it is up is not written down yet: %s", entry.record.name, failed)

    async def _tell(self, entry: Entry, kind: str, reason: str | None) -> None:
        """A disk that takes nothing holds up neither who waits nor what follows."""
        record = entry.record
        event = Event(
            kind=kind,
            container=record.id,
            name=record.name,
            generation=record.generation,
            pid=record.pid,
            reason=reason,
        )
        await self._books.tell_fact(entry, event)


def _mailbox(entry: Entry) -> str:
    return f"notify:{entry.record.id}"


def _check_of(entry: Entry) -> HealthCheck | None:
    return entry.check or entry.record.spec.health


def _is(entry: Entry, until: Until) -> bool:
    record = entry.record
    if record.status not in (Status.RUNNING, Status.PAUSED):
        return False
    return record.ready if until == "ready" else record.health == until


def _is_over(entry: Entry) -> bool:
    if entry.starting or entry.is_registered:
        return False
    # A start that failed leaves it created.
    return entry.record.status is not Status.CREATED or entry.record.exit is not None or entry.removed.is_set()


def _closed(entry: Entry, until: Until) -> InvalidState:
    name, id = entry.record.name, entry.record.id
    return InvalidState(f"container {name} was not {until} before the engine was closed", container=id)


async def _call(function: Callable[[Any], Any], face: object, in_thread: InThread) -> object:
    """A user's function, sync or async; a sync one may block, and gets a thread."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return await function(face)
    found = await in_thread(lambda: function(face))
    return await found if inspect.isawaitable(found) else found


async def _said(entry: Entry, ready: LogPattern, generation: int) -> bool:
    """Whether a line of this run matched; False if the run has ended without."""
    pattern = re.compile(ready.pattern.encode())
    begun: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    async for record in entry.log.records(Cursor(generation, 0), follow=True):
        if record.cursor.generation > generation:
            return False
        if ready.stream not in (None, record.stream):
            continue
        *lines, rest = (begun[record.stream] + record.data).split(b"\n")
        begun[record.stream] = rest[: limits.READY_LINE_BYTES]
        if any(pattern.search(line[: limits.READY_LINE_BYTES]) for line in lines):
            return True
    return False
