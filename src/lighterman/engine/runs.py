"""The runs of an engine's containers: begun, stopped, changed while they last, and how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from lighterman import limits
from lighterman.arguments import check_seconds
from lighterman.asking import split_restart
from lighterman.ends import to_its_end
from lighterman.engine.inside import Inside
from lighterman.engine.platform import HostLeases
from lighterman.entry import Entry, not_started
from lighterman.errors import (
    InvalidSpec,
    InvalidState,
    LightermanError,
    NotFound,
    OperationTimeout,
    StoreError,
)
from lighterman.flag import Flag
from lighterman.journal import Event
from lighterman.lifecycle.events import State
from lighterman.lifecycle.restart import RestartRule
from lighterman.lifecycle.status import Status
from lighterman.runtimes.base import CreateOption, KnownExec
from lighterman.runtimes.options import FirstRun, WithCheckpoint, WithRestartPolicy
from lighterman.spec import (
    ExitRecord,
    Resources,
    RestartPolicy,
    Spec,
    Timings,
)
from lighterman.supervisor.backend import Backend
from lighterman.supervisor.client import Client
from lighterman.threads import in_thread

if TYPE_CHECKING:
    from lighterman.watches import Watches

__all__ = ["CHECKPOINTS", "Runs", "timings"]

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # below the directory of its container


class Runs:
    """The verbs of one engine that need a run, or make one.

    Args: backend: of every client. watches: made at the first use.
    """

    def __init__(self, inside: Inside, leases: HostLeases, backend: Backend, watches: Callable[[], Watches]) -> None:
        self._inside = inside
        self._leases = leases
        self._backend = backend
        self._watches = watches

    # ---- what a run is given -------------------------------------------------------------------------------------

    def client(self, runtime: str) -> Client:
        """The client over one runtime, which must have been asked for before."""
        inside = self._inside
        client = inside.clients.get(runtime)
        if client is None:
            client = inside.clients[runtime] = Client(
                inside.host.opened(runtime), self._backend, clock=inside.clock, restart_rate=inside.restart_rate
            )
        return client

    async def spec_of(self, entry: Entry) -> Spec:
        """What its runtime is given. Raises: as `create`, and for what has changed on the host since."""
        record, host = entry.record, self._inside.host
        entry.image = image = await host.image(record.spec.image, record.spec.rootfs)
        spec = await host.spec(record.id, record.spec, image)
        entry.process = spec.process
        return spec

    def create_options(
        self, entry: Entry, *more: CreateOption, execs: tuple[KnownExec, ...] = ()
    ) -> list[CreateOption]:
        """For its next run, or for the one that is taken up with these of its execs."""
        record = entry.record
        options: list[CreateOption] = [
            FirstRun(record.generation + 1, record.manually_stopped, record.oom_kills, entry.restarts, execs=execs),
            *more,
        ]
        lease = self._leases.job_lease(record)
        options += self._inside.host.create_options(record.id, record.spec, entry.image, lease)
        if entry.restart_rule is not None:
            options.append(WithRestartPolicy(entry.restart_rule))
        elif record.spec.restart != RestartPolicy():
            # Also a policy that restarts nothing: what it says of delays and the start limit holds for other causes.
            options.append(WithRestartPolicy(record.spec.restart))
        return options

    # ---- begun ---------------------------------------------------------------------------------------------------

    async def start(self, entry: Entry, *options: CreateOption, due_s: float = 0.0) -> None:
        """See `Container.start`. `options`: of this run alone. due_s: how long it waits before it begins."""
        self._inside.must_be_open()
        record = entry.record
        if entry not in self._inside.books:
            raise NotFound(f"container {record.name} was removed", container=record.id)
        if entry.removing:
            raise _is_being_removed(entry)
        if entry.starting or entry.is_registered or entry.end_is_untold:
            raise InvalidState(f"container {record.name} is running already", operation="start", container=record.id)
        entry.starting, entry.start_unwanted = True, Flag()
        entry.start_over.clear()
        if entry.ended.is_set():
            # Who waits for the end before this one must not come to wait for the next.
            entry.ended = Flag()
        self._inside.host.poke()
        try:
            await self._wait_until_due(entry, due_s)
            await self._start(entry, options)
        except BaseException as failed:
            if isinstance(failed, LightermanError):
                record.exit = not_started(str(failed), record.generation)
                if record.status is Status.RESTARTING and self._inside.is_open:
                    record.status = Status.EXITED
            self._leases.ended(entry)
            entry.ended.set()
            raise
        finally:
            record.starting = 0
            entry.starting = False
            entry.start_over.set()
            entry.output_of.let_go_soon()

    async def _wait_until_due(self, entry: Entry, due_s: float) -> None:
        """Raises: InvalidState if meanwhile nobody wants it any more."""
        if due_s <= 0:
            return
        with contextlib.suppress(TimeoutError):
            async with self._inside.clock.timeout(due_s):
                await entry.start_unwanted.wait()
        _check_wanted(entry)

    async def _start(self, entry: Entry, options: Sequence[CreateOption]) -> None:
        record = entry.record
        if record.checkpoint is not None and not record.generation and not options:
            options = (WithCheckpoint(record.checkpoint, f"{entry.directory}/{CHECKPOINTS}"),)
        entry.start_asked_mono = self._inside.clock.mono()
        runtime = await self._inside.host.runtime(record.spec.runtime)
        entry.client = self.client(runtime.name)
        entry.reason = None
        entry.told_start.clear()
        record.runtime, record.starting, record.manually_stopped = runtime.name, record.generation + 1, False
        if record.status is not Status.RESTARTING:
            entry.restarts = b""
        spec = await self.spec_of(entry)
        await self._leases.begin(entry)
        # A store that can't be written refuses the start here, with nothing done.
        await self._inside.books.save(entry)
        if record.spec.ready is not None:
            await self._watches().prepare(entry)
        _check_wanted(entry)
        before = entry.output_of
        try:
            await entry.client.create(record.id, spec, *self.create_options(entry, *options))
            # What was promised to the caller must be there after a crash.
            await entry.told_start.wait()
        except asyncio.CancelledError:
            if entry.output_of is not before:
                # It ran: its start is told, or about to be, and so its end will be.
                undoing = self._inside.tasks.finish(self._undo_start(entry), f"undo the start of {record.name}")
                await to_its_end(undoing)
            raise

    async def _undo_start(self, entry: Entry) -> None:
        ended = entry.ended
        try:
            await self.end(entry, "cancelled", 0)
            async with self._inside.clock.timeout(limits.CANCEL_S):
                await ended.wait()
        except (LightermanError, TimeoutError) as failed:
            log.error("container %s: undoing its start failed: %r", entry.record.name, failed)

    def start_later(self, entry: Entry) -> None:
        """Start it in the background, after what is left of its back-off; a failure is its exit record."""
        at = entry.record.restart_at if entry.record.status is Status.RESTARTING else None
        due_s = at - self._inside.clock.mono() if at is not None else 0.0
        self._inside.tasks.watch(self._start_quietly(entry, due_s), f"start {entry.record.name}")

    async def _start_quietly(self, entry: Entry, due_s: float) -> None:
        if entry.starting or entry.is_registered or entry.removing or entry not in self._inside.books:
            return  # somebody was faster
        record, before, was_due = entry.record, entry.record.exit, entry.record.status is Status.RESTARTING
        try:
            await self.start(entry, due_s=due_s)
        except LightermanError as failed:
            if entry.start_unwanted.is_set() or record.manually_stopped:
                # Nobody had asked for this run: that it was stopped does not hide how the one before it ended.
                record.exit = before
                log.info("container %s: %s", record.name, failed)
            else:
                log.error("container %s: starting it failed: %s", record.name, failed)
            if was_due and record.status is Status.EXITED and entry in self._inside.books:
                await self._inside.books.tell_fact(entry, _not_begun(entry, failed))
            record = entry.record
            if record.status is Status.RESTARTING and self._inside.is_open:
                record.status = Status.EXITED
                await self._inside.books.tell_fact(entry, _not_begun(entry, failed))

    # ---- while it lasts ------------------------------------------------------------------------------------------

    async def signal(self, entry: Entry, signal: int) -> None:
        """See `Container.kill`."""
        client, ends = entry.client, signal in (9, entry.record.spec.stop_signal or 15)
        if client is None or not entry.is_registered:
            if ends:
                await self._no_further_run(entry)
            return
        if signal == 9:
            entry.reason = entry.reason or "kill"
        if ends:
            await self.mark_stopped(entry)
        await client.signal(entry.record.id, signal)

    async def update(self, entry: Entry, resources: Resources) -> None:
        """See `Container.update`."""
        if not isinstance(resources, Resources):
            raise InvalidSpec(f"resources {resources!r:.140}: must be a lighterman.Resources")
        await in_thread(self._inside.host.check_resources, resources)
        client, record = self._inside.client_of(entry), entry.record
        await client.update_resources(record.id, resources)
        # The next run, by its policy or asked for, has the same limits.
        asked = {
            name: value for name in resources.__struct_fields__ if (value := getattr(resources, name)) not in (None, ())
        }
        merged = msgspec.structs.replace(record.spec.resources, **asked)
        record.spec = msgspec.structs.replace(record.spec, resources=merged)
        if entry.is_registered:
            client.set_spec(record.id, await self.spec_of(entry))
        await self._inside.books.save(entry)

    async def set_restart_policy(self, entry: Entry, policy: str | RestartPolicy | RestartRule) -> None:
        """See `Container.set_restart_policy`."""
        if entry not in self._inside.books:
            raise NotFound(f"container {entry.record.name} was removed", container=entry.record.id)
        policy, rule = split_restart(policy)
        self._inside.host.check_restart(policy)
        record, before = entry.record, (entry.record.spec, entry.restart_rule)
        record.spec, entry.restart_rule = msgspec.structs.replace(record.spec, restart=policy), rule
        try:
            await self._inside.books.save(entry)
        except StoreError:
            record.spec, entry.restart_rule = before
            raise
        if entry.client is not None and entry.is_registered:
            entry.client.set_restart_policy(record.id, rule or policy)

    # ---- ended ---------------------------------------------------------------------------------------------------

    async def stop(self, entry: Entry, grace_s: float) -> ExitRecord | None:
        """See `Container.stop`."""
        check_seconds("grace_s", grace_s)
        ended = entry.ended
        if await self.end(entry, "stop", grace_s):
            await ended.wait()
        else:
            await entry.start_over.wait()
        return entry.record.exit

    async def end(self, entry: Entry, reason: str, grace_s: float) -> bool:
        """Stop it if anything of it runs; False if nothing does. Its end is told later."""
        client = entry.client
        if client is None or not entry.is_registered:
            # A start that is under way ends before it comes to its runtime; who has to know waits for `start_over`.
            await self._no_further_run(entry)
            # Its end may be known and not written down yet, on a full disk for long.
            return entry.record.status in (Status.RUNNING, Status.PAUSED, Status.RESTARTING)
        entry.reason = entry.reason or reason
        await self.mark_stopped(entry)
        try:
            if grace_s:
                await client.stop(entry.record.id, grace_s=grace_s)
            else:
                await client.terminate(entry.record.id)
        except NotFound:
            log.debug("container %s ended in the same moment", entry.record.name)
        return True

    async def _no_further_run(self, entry: Entry) -> None:
        entry.start_unwanted.set()
        if entry.record.status is Status.RESTARTING:
            await self._save_stopped(entry)

    async def mark_stopped(self, entry: Entry) -> None:
        """Written down before it acts, so that no policy starts it again after a crash in between."""
        if entry.record.spec.restart.can_restart:
            await self._save_stopped(entry)

    async def _save_stopped(self, entry: Entry) -> None:
        entry.record.manually_stopped = True
        try:
            await self._inside.books.save(entry)
        except StoreError as failed:
            # A full disk is no reason not to stop something.
            log.error("container %s: that it was stopped is not written down: %s", entry.record.name, failed)

    async def end_for_lease(self, entry: Entry) -> None:
        """Its lease is over. Returns when its end is told."""
        ended = entry.ended
        if await self.end(entry, "lease", 0):
            await ended.wait()

    async def wait_exit(self, entry: Entry, timeout_s: float | None) -> ExitRecord:
        """See `Container.wait`."""
        check_seconds("timeout_s", timeout_s, none=True)
        try:
            async with self._inside.clock.timeout(timeout_s):
                return await entry.wait_exit()
        except TimeoutError as late:
            raise OperationTimeout(
                f"container {entry.record.name} had not ended after {timeout_s:g} s",
                operation="wait",
                container=entry.record.id,
            ) from late

    @staticmethod
    def timings(entry: Entry) -> Timings:
        """See `Container.timings`."""
        return timings(entry, entry.start_asked_mono, entry.end_known_mono) if entry.ended.is_set() else Timings()


def timings(entry: Entry, began: float, known: float) -> Timings:
    """Of its last run, from one instant of the clock to another."""
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


def _not_begun(entry: Entry, failed: LightermanError) -> Event:
    record = entry.record
    return Event(
        kind=State.EXIT,
        container=record.id,
        name=record.name,
        generation=record.generation,
        exit=record.exit,
        reason=str(failed),
    )


def _check_wanted(entry: Entry) -> None:
    if entry.removing:
        raise _is_being_removed(entry)
    if entry.start_unwanted.is_set():
        name, id = entry.record.name, entry.record.id
        raise InvalidState(f"container {name} was stopped before it was started", container=id)


def _is_being_removed(entry: Entry) -> InvalidState:
    name, id = entry.record.name, entry.record.id
    return InvalidState(f"container {name} is being removed", operation="start", container=id)
