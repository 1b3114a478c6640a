"""The engine: containers with names, images, logs and results, in this process. It alone picks concrete classes."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from lighterman import limits, recovery
from lighterman.asking import Options, check_name, container_spec, split_restart, split_sinks
from lighterman.books import Books
from lighterman.capture import Captured, capture
from lighterman.clock import Clock, SystemClock
from lighterman.container import Container
from lighterman.ends import to_its_end
from lighterman.entry import Entry, Output, exit_record, last_words, not_started, take_output
from lighterman.errors import (
    InvalidSpec,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    OperationTimeout,
    StoreError,
    UsageError,
)
from lighterman.execs import Execs
from lighterman.images.image import Image
from lighterman.journal import Event
from lighterman.leases import Leases, asked_lease
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.restart import RestartRate, RestartRule
from lighterman.lifecycle.status import Status, next_status
from lighterman.linux_host import LinuxHost, open_host
from lighterman.logs.pump import OutputPump
from lighterman.record import Record
from lighterman.results import Result
from lighterman.roots import StateRoot
from lighterman.runtimes.base import CreateOption, RuntimeVersion
from lighterman.runtimes.options import FirstRun, OutputSegments, WithLease, WithRestartPolicy
from lighterman.spec import (
    ContainerSpec,
    ExitRecord,
    Overlay,
    PlainRoot,
    Resources,
    RestartPolicy,
    Rootfs,
    Spec,
    Timings,
)
from lighterman.stdin import StdinWriter
from lighterman.store.base import Store
from lighterman.store.memory import MemoryStore
from lighterman.supervisor.client import Client
from lighterman.supervisor.streams import Streams
from lighterman.supervisor.tasks import OwnedTasks
from lighterman.trees import remove_tree

if TYPE_CHECKING:
    from lighterman.watches import Watches

__all__ = ["Engine"]

log = logging.getLogger(__name__)


class Engine:
    """A container engine inside a program.

    ```python
    async with Engine() as engine:
        done = await engine.run("busybox", ["sh", "-c", "echo hi; exit 3"])
    ```

    Args:
        root: the directory of its state; containers made with `lease=None` live on there when the engine is left.
            None: a private one, which is removed at the end with everything in it.
        runtime: `crun`, `runc` or `youki`; None takes the first that works on this host.
        restarts_per_s: how many restarts by policy there may be in a second, all containers together; None: any.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        runtime: str | None = None,
        restarts_per_s: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        if restarts_per_s is not None and not restarts_per_s > 0:
            raise InvalidSpec(f"restarts_per_s {restarts_per_s!r}: must be more than 0, or None for no limit")
        self._restart_rate = RestartRate(restarts_per_s) if restarts_per_s is not None else None
        self._root = StateRoot.of(root)
        self._wanted_runtime = runtime
        self._clock: Clock = clock or SystemClock()
        self._clients: dict[str, Client] = {}
        self._tasks = OwnedTasks()
        self._store: Store = MemoryStore()
        self._host: LinuxHost | None = None
        self._pump: OutputPump | None = None
        self._books = Books(self._store, self._clock)
        self._watches: Watches | None = None
        self._leases = Leases(
            self._tasks, lambda: self._books, lambda: self.host, self._end_for_lease, self._remove_for_lease
        )
        self._execs = Execs(self._clock, self._tasks, lambda: self.host, self.client_of)
        self._open = False
        self._books_are_true = False  # all that runs is in them
        self._closing: asyncio.Task[None] | None = None

    # ---- its own life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Take the root, find a runtime, connect to the keeper, take up what lived on.

        Raises: NotSupported (no Linux, not root), RootLocked, RuntimeUnavailable, KeeperLost, StoreError.
        If cancelled: what was begun is undone.
        """
        if sys.platform != "linux":
            raise NotSupported(f"no container runtime for {sys.platform} in this version: use Linux")
        if os.geteuid() != 0:
            raise NotSupported("running containers without root is not supported in this version: run it as root")
        opening = asyncio.ensure_future(self._open_all())
        try:
            # Half a lock or half a keeper has no undo: only what is whole can be given back.
            await to_its_end(opening)
        except asyncio.CancelledError:
            if opening.exception() is None:
                await to_its_end(self._give_back())
            raise

    async def _open_all(self) -> None:
        await asyncio.to_thread(self._root.acquire)
        try:
            self._host = await open_host(self._root, self._wanted_runtime)
            await self._host.lease_ourselves()
            self._tasks.watch(self._host.watch_keeper(self._leases.grant_again), "watch the keeper")
            self._pump = OutputPump(asyncio.get_running_loop())
            if not self._root.private:
                await self._open_store()
            self._open = True
            await recovery.take_up(self, self._host, self._books, self._store)
            self._books_are_true = True
        except BaseException:
            await self._give_back()
            raise

    async def _open_store(self) -> None:
        # Only who needs it pays for the import of sqlite3.
        from lighterman.store.sqlite import SqliteStore

        store = SqliteStore(f"{self._root.state}/state.db")
        await store.open()
        self._store = store
        self._books = Books(store, self._clock)

    async def close(self) -> None:
        """End and remove the containers that do not live on; stop watching the others; give everything back.

        If cancelled: all the same, before the cancellation is raised.
        """
        if self._open:
            self._open = False
            self._closing = asyncio.ensure_future(self._close())
        if self._closing is not None:
            await to_its_end(self._closing)

    async def _close(self) -> None:
        ours = ("scope", "process", "owner") if self._root.private else ("scope", "process")
        leased = [entry for entry in self._books if entry.record.lease in ours]
        await self._tasks.finish(self._end_all(leased), "end the containers of this engine")
        await self._give_back()

    async def _end_all(self, entries: Sequence[Entry]) -> None:
        ends = await asyncio.gather(
            *(self.remove_container(entry, force=True) for entry in entries), return_exceptions=True
        )
        for entry, failed in zip(entries, ends, strict=True):
            if isinstance(failed, BaseException) and not isinstance(failed, NotFound):
                log.error("container %s: removing it failed: %s", entry.record.name, failed)

    async def _give_back(self) -> None:
        self._open = False
        try:
            await self._give_back_all()
        finally:
            await asyncio.to_thread(self._root.release)

    async def _give_back_all(self) -> None:
        lives = not self._books_are_true or any(entry.is_registered or entry.record.pid for entry in self._books)
        for client in self._clients.values():
            await client.close()
        await self._tasks.close(limits.CANCEL_S)
        if self._watches is not None:
            self._watches.close()
            self._watches = None
        for entry in self._books:
            await entry.end_feeds()
        if self._pump is not None:
            await self._pump.close()
        keeper_ended = self._host is not None and await self._host.close(by_force=self._root.private)
        await self._store.close()
        for entry in self._books:
            entry.ended.set()
        if self._root.private:
            await asyncio.to_thread(self._root.remove)
        elif keeper_ended and not lives:
            # A container whose keeper was lost lives on without one: the runtime's state is all that names it.
            await asyncio.to_thread(self._root.remove_run)

    async def version(self) -> RuntimeVersion:
        """Which runtime is used by default, and why."""
        return self.host.version

    # ---- what you may ask ----------------------------------------------------------------------------------------

    async def run(
        self,
        image: str | None = None,
        argv: Sequence[str] = (),
        *,
        stdin: bytes | None = None,
        timeout_s: float | None = None,
        max_output: int = limits.MAX_OUTPUT_BYTES,
        name: str | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Run a container to its end, and remove it.

        Args:
            image: `busybox`, or None with `rootfs=DIR`. argv: the command; empty takes the image's own.
            stdin: what the program reads; None is an empty input.
            timeout_s: after that it is killed: `exit.reason == "timeout"`.
            max_output: how many bytes of each stream are kept; the rest is read and dropped.

        Raises: InvalidSpec, NotFound, NotSupported, CommandNotFound, CommandNotExecutable, RuntimeFailed; never for a
            program that fails.
        If cancelled: the container is killed and removed before the cancellation is raised.
        """
        began = self._clock.mono()
        self._must_be_open()
        self.host.poke()
        entry = await self._create(image, argv, name=name, stdin=stdin is not None, lease="scope", options=options)
        try:
            await self.start_container(entry)
            if stdin is not None:
                writer = entry.require_stdin()
                writer.write(stdin)
                writer.write_eof()
            out, err = await self._to_end(entry, timeout_s, max_output)
            known = self._clock.mono()
        except BaseException:
            await self._finish(self.remove_container(entry, force=True), f"undo {entry.record.name}")
            raise
        # It has ended and has told so: its name is free at once, and what is left to remove is in nobody's way.
        if entry in self._books:  # else the engine is being closed, and has begun to remove it
            self._books.strike(entry)
            self._tasks.finish(self._take_away(entry), f"remove {entry.record.name}")
        assert entry.record.exit is not None
        return Result(
            exit=entry.record.exit,
            stdout=out[0],
            stderr=err[0],
            stdout_truncated=out[1],
            stderr_truncated=err[1],
            timings=_timings(entry, began, known),
        )

    @asynccontextmanager
    async def container(
        self,
        image: str | None = None,
        argv: Sequence[str] = (),
        *,
        stdin: bool = False,
        name: str | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[Container]:
        """A container that runs for the time of a block: created and started, at the end killed and removed."""
        entry = await self._create(image, argv, name=name, stdin=stdin, lease="scope", options=options)
        try:
            await self.start_container(entry)
            yield Container(self, entry)
        finally:
            if self._open:
                await self._finish(self.remove_container(entry, force=True), f"remove {entry.record.name}")

    async def create(
        self,
        image: str | None = None,
        argv: Sequence[str] = (),
        *,
        stdin: bool = False,
        name: str | None = None,
        lease: str | int | None = "process",
        **options: Unpack[Options],
    ) -> Container:
        """Make a container without starting it.

        Args: lease: `"process"`: it is killed and removed when the engine is closed, and killed when this process
            dies; a pid: when that process dies, whatever becomes of this one; None: it lives on. The last two need an
            engine with a `root` of its own, if they are to outlive it.
        Raises: AlreadyExists (the name), InvalidSpec, NotFound, NotSupported, UsageError, StoreError.
        If cancelled: it is not there.
        """
        if lease is None and self._root.private:
            raise UsageError("lease=None needs an engine with a root of its own: Engine(root=DIR)")
        entry = await self._create(image, argv, name=name, stdin=stdin, lease=lease, options=options)
        return Container(self, entry)

    async def get(self, name_or_id: str) -> Container:
        """By name, id, or an unambiguous beginning of an id.

        One that was removed is found by name or id for limits.TOMBSTONE_S more, so that `wait` still answers.
        Raises: NotFound, InvalidSpec if a beginning is ambiguous.
        """
        return Container(self, self._books.find(name_or_id))

    async def containers(self) -> list[Container]:
        """All of them, the oldest first."""
        return [Container(self, entry) for entry in self._books]

    def events(
        self, *, after: int | None = None, kinds: Iterable[str] = (), container: str | None = None, follow: bool = True
    ) -> AsyncIterator[Event]:
        """What happens to the containers of this root, in order; see `Event`.

        Args:
            after: the `seq` that was read last; 0 begins with the oldest kept; None with what comes from now on.
            kinds, container: only events of these kinds, of the container with this id.
            follow: go on with what comes; otherwise stop at the end. A slow reader is never dropped.
        """
        self._must_be_open()
        return self._books.journal.events(after, kinds=kinds, container=container, follow=follow)

    # ---- what the faces of a container ask -----------------------------------------------------------------------

    @property
    def host(self) -> LinuxHost:
        """What it has of this host. Raises: InvalidState before `start`."""
        if self._host is None:
            raise InvalidState("the engine is not running: use `async with Engine() as engine`")
        return self._host

    def client_of(self, entry: Entry) -> Client:
        """The client that runs it. Raises: InvalidState if nothing of it runs."""
        if entry.client is None or not entry.is_registered:
            raise InvalidState(
                f"container {entry.record.name} is {entry.record.status}, not running", container=entry.record.id
            )
        return entry.client

    async def start_container(self, entry: Entry) -> None:
        """See `Container.start`."""
        self._must_be_open()
        record = entry.record
        if entry not in self._books:
            raise NotFound(f"container {record.name} was removed", container=record.id)
        if entry.removing:
            raise _is_being_removed(entry)
        if entry.starting or entry.is_registered:
            raise InvalidState(f"container {record.name} is running already", operation="start", container=record.id)
        entry.starting, entry.start_unwanted = True, False
        entry.start_over.clear()
        entry.ended.clear()
        self.host.poke()
        try:
            await self._start(entry)
        except BaseException as failed:
            if isinstance(failed, LightermanError):
                record.exit = not_started(str(failed), record.generation)
                if record.status is Status.RESTARTING and self._open:
                    record.status = Status.EXITED
            self._leases.ended(entry)
            entry.ended.set()
            raise
        finally:
            record.starting = 0
            entry.starting = False
            entry.start_over.set()
            entry.output_of.let_go_soon()

    async def _start(self, entry: Entry) -> None:
        record = entry.record
        entry.start_asked_mono = self._clock.mono()
        runtime = await self.host.runtime(record.spec.runtime)
        entry.client = self.client(runtime.name)
        entry.reason = None
        entry.told_start.clear()
        record.runtime, record.starting, record.manually_stopped = runtime.name, record.generation + 1, False
        spec = await self.spec_of(entry)
        await self._leases.begin(entry)
        # A store that can't be written refuses the start here, with nothing done.
        await self._books.save(entry)
        if record.spec.ready is not None:
            await self.watches.prepare(entry)
        if entry.removing:
            raise _is_being_removed(entry)
        if entry.start_unwanted:
            raise InvalidState(f"container {record.name} was stopped before it was started", container=record.id)
        before = entry.output_of
        try:
            await entry.client.create(record.id, spec, *self.create_options(entry))
            # What was promised to the caller must be there after a crash.
            await entry.told_start.wait()
        except asyncio.CancelledError:
            if entry.output_of is not before:
                # It ran: its start is told, or about to be, and so its end will be.
                await to_its_end(self._tasks.finish(self._undo_start(entry), f"undo the start of {record.name}"))
            raise

    async def _undo_start(self, entry: Entry) -> None:
        try:
            await self._end(entry, "cancelled", 0)
            async with self._clock.timeout(limits.CANCEL_S):
                await entry.ended.wait()
        except (LightermanError, TimeoutError) as failed:
            log.error("container %s: undoing its start failed: %r", entry.record.name, failed)

    async def stop_container(self, entry: Entry, grace_s: float) -> ExitRecord | None:
        """See `Container.stop`."""
        if not grace_s >= 0:
            raise InvalidSpec(f"grace_s {grace_s!r}: must be 0 seconds or more")
        if await self._end(entry, "stop", grace_s):
            await entry.ended.wait()
        else:
            await entry.start_over.wait()
        return entry.record.exit

    async def signal_container(self, entry: Entry, signal: int) -> None:
        """See `Container.kill`."""
        client, ends = entry.client, signal in (9, entry.record.spec.stop_signal or 15)
        if client is None or not entry.is_registered:
            entry.start_unwanted = entry.start_unwanted or ends
            return
        if signal == 9:
            entry.reason = entry.reason or "kill"
        if ends:
            await self._mark_stopped(entry)
        await client.signal(entry.record.id, signal)

    def timings_of(self, entry: Entry) -> Timings:
        """See `Container.timings`."""
        return _timings(entry, entry.start_asked_mono, entry.end_known_mono) if entry.ended.is_set() else Timings()

    async def update_container(self, entry: Entry, resources: Resources) -> None:
        """See `Container.update`."""
        await asyncio.to_thread(self.host.check_resources, resources)
        client, record = self.client_of(entry), entry.record
        await client.update_resources(record.id, resources)
        # The next run, by its policy or asked for, has the same limits.
        asked = {
            name: value for name in resources.__struct_fields__ if (value := getattr(resources, name)) not in (None, ())
        }
        merged = msgspec.structs.replace(record.spec.resources, **asked)
        record.spec = msgspec.structs.replace(record.spec, resources=merged)
        if entry.is_registered:
            client.set_spec(record.id, await self.spec_of(entry))
        await self._books.save(entry)

    async def wait_exit(self, entry: Entry, timeout_s: float | None) -> ExitRecord:
        """See `Container.wait`."""
        try:
            async with self._clock.timeout(timeout_s):
                return await entry.wait_exit()
        except TimeoutError as late:
            raise OperationTimeout(
                f"container {entry.record.name} had not ended after {timeout_s:g} s",
                operation="wait",
                container=entry.record.id,
            ) from late

    async def set_restart_policy(self, entry: Entry, policy: str | RestartPolicy | RestartRule) -> None:
        """See `Container.set_restart_policy`."""
        if entry not in self._books:
            raise NotFound(f"container {entry.record.name} was removed", container=entry.record.id)
        policy, rule = split_restart(policy)
        record, before = entry.record, (entry.record.spec, entry.restart_rule)
        record.spec, entry.restart_rule = msgspec.structs.replace(record.spec, restart=policy), rule
        try:
            await self._books.save(entry)
        except StoreError:
            record.spec, entry.restart_rule = before
            raise
        if entry.client is not None and entry.is_registered:
            entry.client.set_restart_policy(record.id, rule or policy)

    async def remove_container(self, entry: Entry, *, force: bool = False) -> None:
        """See `Container.remove`."""
        record = entry.record
        if entry not in self._books:
            if entry.removed.is_set():
                return
            raise NotFound(f"container {record.name} was removed", container=record.id)
        if (entry.starting or entry.is_registered) and not force:
            raise InvalidState(
                f"container {record.name} is {record.status}: stop it first, or remove it by force",
                operation="remove",
                container=record.id,
            )
        await self._finish(self._remove(entry), f"remove {record.name}")

    async def _remove(self, entry: Entry) -> None:
        record = entry.record
        # A start that has not come to its runtime yet goes no further, and what it has made is there to be removed.
        entry.removing = True
        try:
            if await self._end(entry, "removed", 0):
                await entry.ended.wait()
            await entry.start_over.wait()
        except BaseException:
            entry.removing = False
            raise
        # Two may have waited for the same end.
        if entry not in self._books:
            return
        before, record.status = record.status, Status.REMOVING
        try:
            # From here on it is removed, whoever dies: the next engine goes on with it.
            await self._books.save(entry)
        except StoreError:
            record.status, entry.removing = before, False
            raise
        # Nor may both of them get past this.
        if entry not in self._books:
            return
        self._books.strike(entry)
        await self._take_away(entry)

    async def _take_away(self, entry: Entry) -> None:
        """All that one whose name is free again has left: its files, then its row."""
        entry.output_of.close()
        entry.log.end()
        await entry.end_feeds(limits.SINK_DRAIN_S)
        self._leases.removed(entry)
        if self._watches is not None:
            self._watches.forget(entry)
        for life in entry.execs.values():
            life.output_of.close()
            life.ended.set()
        await asyncio.to_thread(_remove_tree, self._root.container(entry.record.id))
        try:
            await self._books.bury(entry)
        except StoreError as failed:
            log.error("container %s: its removal is not written down yet: %s", entry.record.name, failed)
            self._tasks.watch(self._bury_later(entry), f"bury {entry.record.name}")

    async def _bury_later(self, entry: Entry) -> None:
        """Nothing is left of it but its row; an engine that comes before this is done takes that away."""
        while True:
            await asyncio.sleep(limits.STORE_RETRY_S)
            try:
                await self._books.bury(entry)
            except StoreError as failed:
                log.debug("container %s: its removal is not written down yet: %s", entry.record.name, failed)
            else:
                return

    @property
    def watches(self) -> Watches:
        """Health and readiness; imported by who uses it."""
        if self._watches is None:
            from lighterman.watches import Watches

            self._watches = Watches(
                clock=self._clock,
                tasks=self._tasks,
                books=self._books,
                execs=self._execs,
                host=lambda: self.host,
                client_of=self.client_of,
                stop=lambda entry, reason: self._end(entry, reason, limits.STOP_GRACE_S),
                face=lambda entry: Container(self, entry),
            )
        return self._watches

    @property
    def leases(self) -> Leases:
        """The verbs of leases."""
        return self._leases

    @property
    def execs(self) -> Execs:
        """The verbs of exec processes."""
        return self._execs

    # ---- what the supervisor tells (Backend) ---------------------------------------------------------------------

    async def attach_streams(self, container_id: str, process_id: str, streams: Streams) -> None:
        """Take a new process's streams: output into segments, stdin behind a writer."""
        entry = self._books.by_id(container_id)
        if entry is None or self._pump is None:
            raise NotFound(f"container {container_id} was removed", container=container_id)
        if process_id == "init":
            sink = await entry.log.open_run(streams.generation, takeover=entry.restoring)
            entry.output_of.close()
            entry.output_of = output = Output()
            entry.start_times = self.host.start_times(entry.record.runtime, container_id)
        else:
            life = entry.execs.get(process_id) or entry.new_exec(process_id)
            life.pid = life.pid or streams.pid
            sink = await life.log.open_run(1, takeover=entry.restoring)
            output = life.output_of
        output.sink, output.terminal = sink, streams.terminal
        if entry.starting and process_id == "init":
            output.hold()
        take_output(streams, sink)
        if streams.stdin is not None:
            output.stdin = StdinWriter(streams.stdin, self._tasks.watch)

    async def state_changed(self, info: StateInfo) -> None:
        """One change of one container: record and event in one transaction, then who waits."""
        entry = self._books.by_id(info.container_id)
        if entry is None:
            return
        if info.state in (State.START_PROCESS, State.EXIT_PROCESS):
            await self._exec_changed(entry, info)
            return
        record = entry.record
        record.status = next_status(record.status, info.state)
        record.generation, record.pid = info.generation, info.pid
        if info.state in (State.START, State.RESTORE):
            record.started_at, record.exit, record.starting = info.started_at, None, 0
            if info.state is State.START:
                record.health, record.ready = None, False
        elif info.state in (State.EXIT, State.RESTART):
            record.pid = 0
            if info.state is State.EXIT:
                self._leases.ended(entry)
            record.exit = await self._with_last_words(entry, exit_record(info, entry.reason))
            entry.last_end = info
            entry.reason = None
        event = Event(
            kind=info.state,
            container=record.id,
            name=record.name,
            generation=info.generation,
            pid=info.pid,
            exit=record.exit,
            reason=info.reason,
        )

        def tell_who_waits() -> None:
            if info.state in (State.START, State.RESTORE):
                entry.restoring = False
                entry.told_start.set()
            elif info.state is State.EXIT and not entry.ended.is_set():
                entry.log.end()
                entry.end_known_mono = self._clock.mono()
                entry.told_start.set()
                entry.ended.set()

        # Who waits for it must not wait for a full disk: then they hear of it before it is written down.
        await self._books.tell_fact(entry, event, late=tell_who_waits)
        tell_who_waits()
        if entry.check is not None or record.spec.health is not None or record.spec.ready is not None:
            self.watches.changed(entry, info)

    async def _with_last_words(self, entry: Entry, exit: ExitRecord) -> ExitRecord:
        output = entry.output_of
        if exit.ok or output.sink is None or output.sink.progress == 0:
            return exit
        said = await asyncio.to_thread(last_words, output.sink, output.terminal)
        return msgspec.structs.replace(exit, last_words=said)

    async def _exec_changed(self, entry: Entry, info: StateInfo) -> None:
        life = entry.execs.get(info.process_id)
        exit = None
        if info.state is State.EXIT_PROCESS:
            exit = exit_record(info, life.reason if life else None)
        event = Event(
            kind=info.state,
            container=entry.record.id,
            name=entry.record.name,
            generation=info.generation,
            process=info.process_id,
            pid=info.pid,
            exit=exit,
        )

        def tell_who_waits() -> None:
            if life is not None and exit is not None and not life.ended.is_set():
                life.exit = exit
                life.log.end()
                life.ended.set()

        if life is None or not life.is_probe:
            await self._books.tell_fact(entry, event, late=tell_who_waits)
        tell_who_waits()

    # ---- what coming back needs (recovery) -----------------------------------------------------------------------

    def new_entry(self, record: Record) -> Entry:
        """What is held in memory of a container."""
        assert self._pump is not None
        return Entry(record, self._pump, Path(self._root.container(record.id)))

    def client(self, runtime: str) -> Client:
        """The client over one runtime, which must have been asked for before."""
        client = self._clients.get(runtime)
        if client is None:
            client = self._clients[runtime] = Client(
                self.host.opened(runtime), self, clock=self._clock, restart_rate=self._restart_rate
            )
        return client

    async def spec_of(self, entry: Entry) -> Spec:
        """What its runtime is given. Raises: as `create`, and for what has changed on the host since."""
        record = entry.record
        image = await self.host.image(record.spec.image, record.spec.rootfs)
        directory = self._root.container(record.id)
        rootfs = _rootfs(record.spec, image, directory, volatile=self._root.private)
        spec = await self.host.spec(record.id, record.spec, image, rootfs, directory)
        entry.process = spec.process
        return spec

    def create_options(self, entry: Entry) -> list[CreateOption]:
        """For its next run."""
        record = entry.record
        options: list[CreateOption] = [
            OutputSegments(
                self._root.container(record.id),
                limits.SEGMENT_BYTES,
                limits.SEGMENT_FILES,
                policy=record.spec.log_policy,
            ),
            FirstRun(record.generation + 1, record.manually_stopped),
        ]
        lease = self._leases.job_lease(record)
        if lease is not None:
            options.append(WithLease(lease))
        if entry.restart_rule is not None:
            options.append(WithRestartPolicy(entry.restart_rule))
        elif record.spec.restart != RestartPolicy():
            # Also a policy that restarts nothing: what it says of delays and the start limit holds for other causes.
            options.append(WithRestartPolicy(record.spec.restart))
        return options

    def go_on(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something in the background that the closing engine waits for."""
        self._tasks.finish(work, name)

    def start_later(self, entry: Entry) -> None:
        """Start it in the background; a failure is its exit record."""
        self._tasks.watch(self._start_quietly(entry), f"start {entry.record.name}")

    async def _start_quietly(self, entry: Entry) -> None:
        record, before, was_due = entry.record, entry.record.exit, entry.record.status is Status.RESTARTING
        try:
            await self.start_container(entry)
        except LightermanError as failed:
            if entry.start_unwanted or record.manually_stopped:
                # Nobody had asked for this run: that it was stopped does not hide how the one before it ended.
                record.exit = before
            log.error("container %s: starting it failed: %s", record.name, failed)
            if was_due and record.status is Status.EXITED and entry in self._books:
                told = Event(
                    kind="exit",
                    container=record.id,
                    name=record.name,
                    generation=record.generation,
                    exit=record.exit,
                    reason=str(failed),
                )
                await self._books.tell_fact(entry, told)
            record = entry.record
            if record.status is Status.RESTARTING and self._open:
                record.status = Status.EXITED
                await self._books.tell_fact(
                    entry,
                    Event(
                        kind=State.EXIT,
                        container=record.id,
                        name=record.name,
                        generation=record.generation,
                        exit=record.exit,
                        reason=str(failed),
                    ),
                )

    async def _end_for_lease(self, entry: Entry) -> None:
        if await self._end(entry, "lease", 0):
            await entry.ended.wait()

    async def _remove_for_lease(self, entry: Entry) -> None:
        await self._end_for_lease(entry)
        if entry in self._books:
            await self.remove_container(entry, force=True)

    async def remove_quietly(self, entry: Entry) -> None:
        """End and remove one whose owner is gone."""
        try:
            await self._remove_for_lease(entry)
        except LightermanError as failed:
            log.error("container %s: removing it failed: %s", entry.record.name, failed)

    async def finish_removal(self, entry: Entry) -> None:
        """Go on with a removal that an earlier engine had begun."""
        try:
            await self._take_away(entry)
        except LightermanError as failed:
            log.error("container %s: removing it failed: %s", entry.record.name, failed)

    # ---- inside --------------------------------------------------------------------------------------------------

    async def _create(
        self,
        image: str | None,
        argv: Sequence[str],
        *,
        name: str | None,
        stdin: bool,
        lease: str | int | None,
        options: Options,
    ) -> Entry:
        self._must_be_open()
        policy, rule = split_restart(options.get("restart", "no"))
        spec = container_spec(image, argv, stdin=stdin, options={**options, "restart": policy})
        _, callables = split_sinks(options.get("log_sinks", ()))
        id = os.urandom(16).hex()
        name = check_name(name) if name is not None else f"lm-{id[:12]}"
        if (spec.image is None) == (spec.rootfs is None):
            raise InvalidSpec("a container needs an image or a rootfs, and not both")
        record = Record(id=id, name=name, spec=spec, created_at=self._clock.wall())
        for field, value in asked_lease(lease, options.get("ttl_s")).items():
            setattr(record, field, value)
        entry = self.new_entry(record)
        entry.restart_rule, entry.check = rule, options.get("health")
        self._books.enter(entry)
        try:
            # Everything that can be wrong shows here, before anything is on disk.
            await self.spec_of(entry)
            self._must_be_open()
            await self._books.tell(entry, Event(kind="create", container=id, name=name))
            entry.feed_sinks(callables)
            self._leases.made(entry)
        except BaseException as failed:
            if isinstance(failed, asyncio.CancelledError):
                # The commit may happen all the same: what it has written is taken away again.
                self._books.strike(entry)
                self._tasks.finish(self._take_away(entry), f"undo {name}")
            else:
                self._books.unenter(entry)
            raise
        return entry

    async def _mark_stopped(self, entry: Entry) -> None:
        """Written down before it acts, so that no policy starts it again after a crash in between."""
        if not entry.record.spec.restart.can_restart:
            return
        entry.record.manually_stopped = True
        try:
            await self._books.save(entry)
        except StoreError as failed:
            # A full disk is no reason not to stop something.
            log.error("container %s: that it was stopped is not written down: %s", entry.record.name, failed)

    async def _end(self, entry: Entry, reason: str, grace_s: float) -> bool:
        """Stop it if anything of it runs; False if nothing does."""
        client = entry.client
        if client is None or not entry.is_registered:
            # A start that is under way ends before it comes to its runtime; who has to know waits for `start_over`.
            entry.start_unwanted = True
            # Its end may be known and not written down yet, on a full disk for long.
            return entry.record.status in (Status.RUNNING, Status.PAUSED, Status.RESTARTING)
        entry.reason = entry.reason or reason
        await self._mark_stopped(entry)
        try:
            if grace_s:
                await client.stop(entry.record.id, grace_s=grace_s)
            else:
                await client.terminate(entry.record.id)
        except NotFound:
            log.debug("container %s ended in the same moment", entry.record.name)
        return True

    async def _to_end(self, entry: Entry, timeout_s: float | None, max_output: int) -> tuple[Captured, Captured]:
        out = capture(self._tasks, entry.output(1), max_output)
        err = None if entry.output_of.terminal else capture(self._tasks, entry.output(2), max_output)
        try:
            async with self._clock.timeout(timeout_s):
                await entry.ended.wait()
        except TimeoutError:
            await self._end(entry, "timeout", 0)
            await entry.ended.wait()
        return await out, await err if err is not None else (b"", False)

    async def _finish(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do it to its end even if who asked is cancelled meanwhile."""
        await self._tasks.finish_and_wait(work, name)

    def _must_be_open(self) -> None:
        if not self._open:
            raise InvalidState("the engine is not running: use `async with Engine() as engine`")


def _is_being_removed(entry: Entry) -> InvalidState:
    name, id = entry.record.name, entry.record.id
    return InvalidState(f"container {name} is being removed", operation="start", container=id)


def _rootfs(spec: ContainerSpec, image: Image, directory: str, *, volatile: bool) -> Rootfs:
    if spec.rootfs is not None and spec.rootfs_rw:
        return PlainRoot(path=image.layers[0])
    # What is removed with its engine anyway needs no sync when it is unmounted.
    return Overlay(lowers=image.layers, upper=f"{directory}/upper", work=f"{directory}/work", volatile=volatile)


def _timings(entry: Entry, began: float, known: float) -> Timings:
    end = entry.last_end
    times = entry.start_times
    finished = end.finished_mono if end else None
    if times is None or finished is None:
        return Timings(total=known - began)
    asked, returned = times
    return Timings(
        prepare=max(0.0, asked - began),
        runtime=max(0.0, returned - asked),
        program=max(0.0, finished - returned),
        drain=max(0.0, known - max(finished, returned)),
        total=known - began,
    )


def _remove_tree(path: str) -> None:
    try:
        remove_tree(path)
    except FileNotFoundError:
        return
    except OSError as failed:
        raise StoreError(f"{path} can't be removed: {failed}") from failed
