"""The public engine: its own life, and what you may ask of it; the rest of its work is in its parts."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Unpack

from lighterman import limits
from lighterman.arguments import check_at_most, check_bytes, check_seconds
from lighterman.asking import Options, check_name, container_spec, split_restart, split_sinks
from lighterman.books import Books
from lighterman.capture import Captured, capture
from lighterman.clock import Clock, SystemClock
from lighterman.container import Container
from lighterman.ends import to_its_end
from lighterman.engine.checkpoints import Checkpoints
from lighterman.engine.hearing import Hearing
from lighterman.engine.inside import Inside
from lighterman.engine.platform import HostLeases, Platform, this_platform
from lighterman.engine.removal import Removal
from lighterman.engine.runs import Runs, timings
from lighterman.entry import Entry
from lighterman.errors import InvalidSpec, NotFound, UsageError
from lighterman.execs import Execs
from lighterman.host import Host
from lighterman.journal import Event
from lighterman.lease import ConnectionLease, asked_lease
from lighterman.lifecycle.restart import RestartRate
from lighterman.record import Record
from lighterman.results import Result
from lighterman.roots import StateRoot
from lighterman.runtimes.base import RuntimeVersion
from lighterman.scarcity import telling_what_ran_out
from lighterman.spec import CallableSink, ContainerSpec
from lighterman.supervisor.client import Client
from lighterman.threads import in_thread, let_go

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
        runtime: `crun`, `runc` or `youki`; None takes the first that works on this host. On Windows `hcs`, which is
            None, or `computecore`: the same service by its newer DLL.
        restarts_per_s: how many restarts by policy there may be in a second, all containers together; None: any.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        runtime: str | None = None,
        restarts_per_s: float | None = None,
        clock: Clock | None = None,
        _platform: Platform | None = None,
    ) -> None:
        if restarts_per_s is not None and not restarts_per_s > 0:
            raise InvalidSpec(f"restarts_per_s {restarts_per_s!r}: must be more than 0, or None for no limit")
        rate = RestartRate(restarts_per_s) if restarts_per_s is not None else None
        self._platform = platform = _platform or this_platform()
        self._root = StateRoot.of(root)
        self._wanted_runtime = runtime
        self._clock: Clock = clock or SystemClock()
        self.inside = inside = Inside(self._root, self._clock, rate)
        self._tasks = inside.tasks
        self._closing: asyncio.Task[None] | None = None
        # Its parts: the faces of a container ask them, and coming back does.
        self.leases: HostLeases = platform.leases(
            inside.tasks,
            lambda: inside.books,
            lambda entry: self.runs.end_for_lease(entry),
            lambda entry: self.removal.remove_for_lease(entry),
        )
        self.execs = Execs(
            self._clock, inside.tasks, lambda: inside.host, inside.client_of, lambda entry: inside.books.save(entry)
        )
        hearing = Hearing(inside, platform, self.leases, lambda: self.watches)
        self.runs = Runs(inside, self.leases, hearing, lambda: self.watches)
        self.removal = Removal(inside, self.runs, self.leases)
        self.checkpoints = Checkpoints(inside, self.runs)

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

        Raises: NotSupported (not root), RootLocked, RuntimeUnavailable, KeeperLost, StoreError.
        If cancelled: what was begun is undone.
        """
        self._platform.check()
        opening = asyncio.ensure_future(self._open_all())
        try:
            # Half a lock or half a keeper has no undo: only what is whole can be given back.
            await to_its_end(opening)
        except asyncio.CancelledError:
            if opening.exception() is None:
                await to_its_end(self._give_back())
            raise

    async def _open_all(self) -> None:
        await in_thread(self._root.acquire)
        with telling_what_ran_out("start this engine"):
            await self._open_what_is_ours()

    async def _open_what_is_ours(self) -> None:
        inside = self.inside
        try:
            inside.host_if_any = await self._platform.open(self._root, self._wanted_runtime)
            await self._platform.begin(self._tasks)
            inside.pump = self._platform.pump(asyncio.get_running_loop())
            if not self._root.private:
                await self._open_store()
            inside.is_open = True
            await self._platform.take_up(self, inside.books, inside.store)
            inside.is_true = True
            self._tasks.watch(inside.books.journal.keep_within_bounds(), "let old events go")
        except BaseException:
            await self._give_back()
            raise

    async def _open_store(self) -> None:
        # Only who needs it pays for the import of sqlite3.
        from lighterman.store.sqlite import SqliteStore

        store = SqliteStore(f"{self._root.state}/state.db")
        await store.open()
        self.inside.store = store
        self.inside.books = Books(store, self._clock, self._tasks.watch)

    async def close(self) -> None:
        """End and remove the containers that do not live on; stop watching the others; give everything back.

        If cancelled: all the same, before the cancellation is raised.
        """
        if self.inside.is_open:
            self.inside.is_open = False
            self._closing = asyncio.ensure_future(self._close())
        if self._closing is not None:
            await to_its_end(self._closing)

    async def _close(self) -> None:
        ours = ("scope", "process", "owner", "connection") if self._root.private else ("scope", "process")
        leased = [entry for entry in self.inside.books if entry.record.lease in ours]
        await self._tasks.finish(self._end_all(leased), "end the containers of this engine")
        await self._give_back()

    async def _end_all(self, entries: Sequence[Entry]) -> None:
        ends = await asyncio.gather(
            *(self.removal.remove(entry, force=True) for entry in entries), return_exceptions=True
        )
        for entry, failed in zip(entries, ends, strict=True):
            if isinstance(failed, BaseException) and not isinstance(failed, NotFound):
                log.error("container %s: removing it failed: %s", entry.record.name, failed)

    async def _give_back(self) -> None:
        self.inside.is_open = False
        try:
            await self._give_back_all()
        finally:
            await in_thread(self._root.release)
            let_go()

    async def _give_back_all(self) -> None:
        inside = self.inside
        self.leases.close()
        lives = any(entry.is_registered or entry.record.pid for entry in inside.books)
        # An end that is under way hears of it only as long as somebody watches.
        await self._tasks.settle(limits.CANCEL_S)
        for client in inside.clients.values():
            await client.close()
        await self._tasks.close(limits.CANCEL_S)
        if inside.watches is not None:
            inside.watches.close()
            inside.watches = None
        await asyncio.gather(*(entry.end_feeds() for entry in inside.books))
        if inside.pump is not None:
            await inside.pump.close()
        await inside.books.journal.close()
        host = inside.host_if_any
        keeper_ended = host is not None and await host.close(by_force=self._root.private, lives=lives)
        await inside.store.close()
        for entry in inside.books:
            entry.let_go()
        if host is not None and host.is_left:
            self._root.leave()
        elif self._root.private:
            await in_thread(self._root.remove)
        elif keeper_ended and inside.is_true and not lives:
            # A container whose keeper was lost lives on without one: the runtime's state is all that names it.
            await in_thread(self._root.remove_run)

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
        check_bytes("stdin", stdin)
        check_seconds("timeout_s", timeout_s, none=True)
        check_at_most("max_output", max_output)
        began = self._clock.mono()
        self.inside.must_be_open()
        self.host.poke()
        entry = await self._create(image, argv, name=name, stdin=stdin is not None, lease="scope", options=options)
        try:
            await self.runs.start(entry)
            if stdin is not None:
                writer = entry.require_stdin()
                writer.write(stdin)
                writer.write_eof()
            out, err = await self._to_end(entry, timeout_s, max_output)
            known = self._clock.mono()
        except BaseException:
            await self._tasks.finish_and_wait(self.removal.remove(entry, force=True), f"undo {entry.record.name}")
            raise
        # It has ended and has told so: its name is free at once, and what is left to remove is in nobody's way.
        if entry in self.inside.books:  # else the engine is being closed, and has begun to remove it
            self.inside.books.strike(entry)
            self._tasks.finish(self.removal.take_away(entry), f"remove {entry.record.name}")
        assert entry.record.exit is not None
        return Result(
            exit=entry.record.exit,
            stdout=out[0],
            stderr=err[0],
            stdout_truncated=out[1],
            stderr_truncated=err[1],
            timings=timings(entry, began, known),
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
            await self.runs.start(entry)
            yield Container(self, entry)
        finally:
            if self.inside.is_open:
                removing = self.removal.remove(entry, force=True)
                await self._tasks.finish_and_wait(removing, f"remove {entry.record.name}")

    async def create(
        self,
        image: str | None = None,
        argv: Sequence[str] = (),
        *,
        stdin: bool = False,
        name: str | None = None,
        lease: str | int | ConnectionLease | None = "process",
        checkpoint: str | None = None,
        **options: Unpack[Options],
    ) -> Container:
        """Make a container without starting it.

        Args:
            lease: `"process"`: it is killed and removed when the engine is closed, and killed when this process dies; a
                pid: when that process dies, whatever becomes of this one; a ConnectionLease: when its client has hung
                up for long enough; None: it lives on. The last three need an engine with a `root` of its own, if they
                are to outlive it.
            checkpoint: `CONTAINER/CHECKPOINT`: one like that container, with a copy of that checkpoint, from which its
                first start goes on. Then there is no image, no command, and no option beside `ttl_s`.
        Raises: AlreadyExists (the name), InvalidSpec, NotFound, NotSupported, UsageError, StoreError.
        If cancelled: it is not there.
        """
        if lease is None and self._root.private:
            raise UsageError("lease=None needs an engine with a root of its own: Engine(root=DIR)")
        if checkpoint is not None:
            if image is not None or argv or stdin or options.keys() - {"ttl_s"}:
                raise InvalidSpec(
                    f"checkpoint {checkpoint!r:.140}: it will be as the one that was saved: ask for no more"
                )
            entry = await self._create_from(checkpoint, name=name, lease=lease, ttl_s=options.get("ttl_s"))
        else:
            entry = await self._create(image, argv, name=name, stdin=stdin, lease=lease, options=options)
        return Container(self, entry)

    async def get(self, name_or_id: str) -> Container:
        """By name, id, or an unambiguous beginning of an id.

        One that was removed is found by name or id for limits.TOMBSTONE_S more, so that `wait` still answers.
        Raises: NotFound, InvalidSpec if a beginning is ambiguous.
        """
        return Container(self, self.inside.books.find(name_or_id))

    async def containers(self) -> list[Container]:
        """All of them, the oldest first."""
        return [Container(self, entry) for entry in self.inside.books]

    def events(
        self, *, after: int | None = None, kinds: Iterable[str] = (), container: str | None = None, follow: bool = True
    ) -> AsyncIterator[Event]:
        """What happens to the containers of this root, in order; see `Event`.

        Args:
            after: the `seq` that was read last; 0 begins with the oldest kept; None with what comes from this call on.
            kinds, container: only events of these kinds, of containers of this name or id; a `gap` is always told.
            follow: go on with what comes, until the engine is closed: then the iteration ends after the last stored
                event. Otherwise stop at the end. A slow reader is never dropped.
        Raises: InvalidSpec: a kind that there is not; an `after` beyond the newest event: the journal was made anew
            since that was read. At the reading InvalidState, if the engine was closed before all was read.
        """
        self.inside.must_be_open()
        return self.inside.books.journal.events(after, kinds=kinds, container=container, follow=follow)

    # ---- what the faces of a container ask, beside its parts ------------------------------------------------------

    @property
    def host(self) -> Host:
        """What it has of this host. Raises: InvalidState before `start`."""
        return self.inside.host

    def client_of(self, entry: Entry) -> Client:
        """The client that runs it. Raises: InvalidState if nothing of it runs."""
        return self.inside.client_of(entry)

    @property
    def watches(self) -> Watches:
        """Health and readiness; imported by who uses it."""
        if self.inside.watches is None:
            from lighterman.watches import Watches

            self.inside.watches = Watches(
                clock=self._clock,
                tasks=self._tasks,
                books=self.inside.books,
                execs=self.execs,
                host=lambda: self.host,
                client_of=self.client_of,
                stop=lambda entry, reason: self.runs.end(entry, reason, limits.STOP_GRACE_S),
                face=lambda entry: Container(self, entry),
            )
        return self.inside.watches

    # ---- inside --------------------------------------------------------------------------------------------------

    async def _create(
        self,
        image: str | None,
        argv: Sequence[str],
        *,
        name: str | None,
        stdin: bool,
        lease: str | int | ConnectionLease | None,
        options: Options,
    ) -> Entry:
        self.inside.must_be_open()
        policy, rule = split_restart(options.get("restart", "no"))
        spec = container_spec(image, argv, stdin=stdin, options={**options, "restart": policy})
        _, callables = split_sinks(options.get("log_sinks", ()))
        if (spec.image is None) == (spec.rootfs is None):
            raise InvalidSpec("a container needs an image or a rootfs, and not both")
        entry = self._new_entry(spec, name, lease, options.get("ttl_s"))
        entry.restart_rule, entry.check = rule, options.get("health")
        await self._enter(entry, lease, callables)
        return entry

    async def _create_from(
        self, checkpoint: str, *, name: str | None, lease: str | int | ConnectionLease | None, ttl_s: float | None
    ) -> Entry:
        self.inside.must_be_open()
        source, saved = await self.checkpoints.find(checkpoint)
        entry = self._new_entry(source.record.spec, name, lease, ttl_s)
        entry.restart_rule, entry.check = source.restart_rule, source.check
        entry.record.checkpoint = saved
        await self._enter(entry, lease, (), copy=lambda: self.checkpoints.copy(source, saved, entry))
        return entry

    def _new_entry(
        self, spec: ContainerSpec, name: str | None, lease: str | int | ConnectionLease | None, ttl_s: float | None
    ) -> Entry:
        id = os.urandom(16).hex()
        name = check_name(name) if name is not None else f"lm-{id[:12]}"
        record = Record(id=id, name=name, spec=spec, created_at=self._clock.wall())
        for field, value in asked_lease(lease, ttl_s).items():
            setattr(record, field, value)
        return self.inside.new_entry(record)

    async def _enter(
        self,
        entry: Entry,
        lease: str | int | ConnectionLease | None,
        callables: Sequence[CallableSink],
        copy: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Write it down. Args: copy: makes files of it first. If it fails nothing is left."""
        id, name = entry.record.id, entry.record.name
        self.inside.books.enter(entry)
        try:
            self.leases.take(entry, lease)
            # Everything that can be wrong shows here, before anything is on disk.
            await self.runs.spec_of(entry)
            if copy is not None:
                await copy()
            self.inside.must_be_open()
            await self.inside.books.tell(entry, Event(kind="create", container=id, name=name))
            entry.feed_sinks(callables)
            await self.leases.made(entry)
        except BaseException:
            if entry.stored:
                # Who is cancelled meanwhile has waited for the commit: what it has written is taken away again.
                self.inside.books.strike(entry)
                self._tasks.finish(self.removal.undo(entry), f"undo {name}")
            else:
                self.leases.removed(entry)
                self.inside.books.unenter(entry)
                if copy is not None:
                    await self._tasks.finish_and_wait(self.removal.remove_files(entry), f"undo {name}")
            raise

    async def _to_end(self, entry: Entry, timeout_s: float | None, max_output: int) -> tuple[Captured, Captured]:
        out = capture(self._tasks, entry.output(1), max_output)
        err = None if entry.output_of.terminal else capture(self._tasks, entry.output(2), max_output)
        ended = entry.ended
        try:
            async with self._clock.timeout(timeout_s):
                await ended.wait()
        except TimeoutError:
            await self.runs.end(entry, "timeout", 0)
            await ended.wait()
        return await out, await err if err is not None else (b"", False)
