"""The runs of an engine's containers: begun, stopped, changed while they last, and how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from lighterman import limits
from lighterman.arguments import check_seconds
from lighterman.asking import as_stored, split_restart
from lighterman.ends import to_its_end
from lighterman.engine import updating
from lighterman.engine.inside import Inside
from lighterman.engine.platform import HostLeases
from lighterman.entry import UNHEALTHY, Entry, not_started
from lighterman.errors import (
    InvalidSpec,
    InvalidState,
    LightermanError,
    NotFound,
    OperationTimeout,
    StoreError,
    Unkillable,
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


class _Due(NamedTuple):
    """When a start that a policy asks for begins: after so many seconds, and not before its turn."""

    after_s: float = 0.0
    turn: Flag | None = None


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
            FirstRun(
                record.generation + 1,
                manually_stopped=record.manually_stopped or record.remedy == "stop",
                oom_kills=record.oom_kills,
                restarts=entry.restarts,
                restart_reason=UNHEALTHY if record.remedy == "restart" else None,
                execs=execs,
            ),
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

    async def start(self, entry: Entry, *options: CreateOption, due: _Due | None = None) -> None:
        """See `Container.start`. `options`: of this run alone. due: of one that a policy asks for."""
        record = entry.record
        if entry.client is not None and record.status is Status.EXITED and not entry.starting:
            # Seen to have ended by who looks at it, while that is still being written down.
            await entry.ended.wait()
        self._inside.must_be_open()
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
        attempt = _Attempt(entry, by_policy=due is not None)
        try:
            if due is not None:
                await self._wait_until_due(entry, due)
            await self._start(entry, options, attempt)
        except BaseException as failed:
            self._leases.ended(entry)
            try:
                if isinstance(failed, LightermanError):
                    await self._tell_failed(entry, failed, attempt)
                elif record.starting:
                    attempt.put_back(entry)
                    # In a task of its own: who is cancelled does not wait for it.
                    self._inside.tasks.finish(self._save_if_open(entry), f"write {record.name} down")
            finally:
                entry.ended.set()
            raise
        finally:
            record.starting = 0
            entry.starting = False
            entry.start_over.set()
            entry.output_of.let_go_soon()
            if self._inside.watches is not None:
                self._inside.watches.start_is_over(entry)

    async def _tell_failed(self, entry: Entry, failed: LightermanError, attempt: _Attempt) -> None:
        """It came to nothing: that is a run's end, unless nobody had asked for it, or the disk has refused it."""
        record, was_due = entry.record, entry.record.status is Status.RESTARTING
        attempt.put_back(entry)
        if was_due and not self._inside.is_open:
            return  # the next engine goes on with it
        is_unwanted = attempt.by_policy and (entry.start_unwanted.is_set() or record.manually_stopped)
        tells = was_due and not record.at_boot  # else its end was told, as one that nothing follows
        if not attempt.is_refused and not is_unwanted:
            record.exit = not_started(str(failed), record.generation + 1)
            tells = self._inside.is_open
            if tells:
                record.generation += 1
        if was_due:
            record.status, record.at_boot = Status.EXITED, False
            record.end_reason = record.kill_at = None
        if tells:
            await self._inside.books.tell_fact(entry, _not_begun(entry, failed))
        elif was_due:
            await self._inside.books.save_fact(entry)

    async def _save_if_open(self, entry: Entry) -> None:
        if self._inside.is_open:
            try:
                await self._inside.books.save(entry)
            except StoreError as failed:
                # The next engine finds a start that was promised to nobody, and takes it so.
                log.warning("container %s: that it was not started is not written down: %s", entry.record.name, failed)

    async def _wait_until_due(self, entry: Entry, due: _Due) -> None:
        """Raises: InvalidState if meanwhile nobody wants it any more."""
        await self._wait_wanted(entry, due.after_s)
        if due.turn is not None:
            waits = [asyncio.ensure_future(flag.wait()) for flag in (due.turn, entry.start_unwanted)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        rate, clock = self._inside.restart_rate, self._inside.clock
        await self._wait_wanted(entry, rate.take(clock.mono()) if rate is not None else 0.0)
        _check_wanted(entry)

    async def _wait_wanted(self, entry: Entry, delay_s: float) -> None:
        if delay_s > 0:
            with contextlib.suppress(TimeoutError):
                async with self._inside.clock.timeout(delay_s):
                    await entry.start_unwanted.wait()
        _check_wanted(entry)

    async def _start(self, entry: Entry, options: Sequence[CreateOption], attempt: _Attempt) -> None:
        record = entry.record
        if record.checkpoint is not None and record.started_at is None and not options:
            options = (WithCheckpoint(record.checkpoint, f"{entry.directory}/{CHECKPOINTS}"),)
        entry.start_asked_mono = self._inside.clock.mono()
        runtime = await self._inside.host.runtime(record.spec.runtime)
        entry.client = self.client(runtime.name)
        entry.forget_reason()
        entry.told_start.clear()
        record.runtime, record.starting, record.manually_stopped = runtime.name, record.generation + 1, False
        record.end_reason = record.kill_at = record.remedy = None
        if record.status is not Status.RESTARTING:
            entry.restarts = b""
        spec = await self.spec_of(entry)
        await self._leases.begin(entry)
        try:
            # A store that can't be written refuses the start here, with nothing done.
            await self._inside.books.save(entry)
        except StoreError:
            attempt.is_refused = True
            raise
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

    def start_due(self, entries: Sequence[Entry], ready: Callable[[], Awaitable[None]]) -> None:
        """Start in the background what a policy had decided on; a failure is the container's exit record.

        One that was in a back-off begins after what is left of it; the others, of a host that has restarted, once it is
        `ready`, each when the one before it has started. One that fails, is stopped, or takes longer than
        limits.START_SLOW_S, holds up no other.
        """
        turns: list[tuple[Entry, Flag]] = []
        for entry in entries:
            at = entry.record.restart_at
            if at is not None:
                due = _Due(at - self._inside.clock.mono())
            else:
                turns.append((entry, turn := Flag()))
                due = _Due(turn=turn)
            self._inside.tasks.watch(self._start_quietly(entry, due), f"start {entry.record.name}")
        if turns:
            self._inside.tasks.watch(self._give_turns(turns, ready), "start what is due")

    async def _give_turns(self, turns: Sequence[tuple[Entry, Flag]], ready: Callable[[], Awaitable[None]]) -> None:
        await ready()
        for entry, turn in turns:
            turn.set()
            try:
                async with self._inside.clock.timeout(limits.START_SLOW_S):
                    await entry.start_over.wait()
            except TimeoutError:
                log.warning("container %s starts slowly: the next one does not wait for it", entry.record.name)

    async def _start_quietly(self, entry: Entry, due: _Due) -> None:
        if entry.starting or entry.is_registered or entry.removing or entry not in self._inside.books:
            return  # somebody was faster
        record = entry.record
        try:
            await self.start(entry, due=due)
        except LightermanError as failed:
            if entry.start_unwanted.is_set() or record.manually_stopped:
                log.info("container %s: %s", record.name, failed)
            else:
                log.error("container %s: starting it failed: %s", record.name, failed)
            if record.status is Status.RESTARTING and self._inside.is_open:
                record.status = Status.EXITED
                await self._tell_not_begun(entry, failed)

    async def _tell_not_begun(self, entry: Entry, failed: LightermanError) -> None:
        at_boot, entry.record.at_boot = entry.record.at_boot, False
        if at_boot:
            # Its end was told, as one that nothing follows.
            await self._inside.books.save_fact(entry)
        else:
            await self._inside.books.tell_fact(entry, _not_begun(entry, failed))

    # ---- while it lasts ------------------------------------------------------------------------------------------

    async def signal(self, entry: Entry, signal: int) -> None:
        """See `Container.kill`."""
        client, ends = entry.client, signal in (9, entry.record.spec.stop_signal or 15)
        if client is None or not entry.is_registered:
            if ends:
                await self._no_further_run(entry)
            return
        asked_before = entry.reason
        if ends:
            entry.ask_for_end("kill", self._inside.clock.mono())
            if signal == 9:
                self._note_end(entry, 0)
            await self.mark_stopped(entry)
        try:
            if signal == 9:
                await self._carry_out(entry, client.signal(entry.record.id, signal))
            else:
                await client.signal(entry.record.id, signal)
        except LightermanError as failed:
            # What SIGKILL does not end now ends by it once it can.
            if not isinstance(failed, Unkillable) and asked_before is None:
                entry.forget_reason()
            raise

    async def update(self, entry: Entry, resources: Resources) -> None:
        """See `Container.update`. If cancelled: it goes on."""
        if not isinstance(resources, Resources):
            raise InvalidSpec(f"resources {resources!r:.140}: must be a lighterman.Resources")
        resources = as_stored("resources", resources)
        self._inside.client_of(entry)
        await self._inside.tasks.finish_and_wait(self._update(entry, resources), f"update {entry.record.name}")

    async def _update(self, entry: Entry, asked: Resources) -> None:
        async with entry.updating:
            client, before = self._inside.client_of(entry), entry.record.spec.resources
            after, sent = updating.merged(before, asked), updating.to_send(asked, before)
            await in_thread(self._inside.host.check_resources, after)
            if sent == Resources():
                return
            # The next run, by its policy or asked for, has the same limits. Written down first: what is in force and
            # lost with the engine would be another limit for the next run.
            await self._set_resources(entry, client, after)
            try:
                await client.update_resources(entry.record.id, sent)
            except LightermanError as failed:
                await self._undo_update(entry, client, failed, before, asked)
                raise

    async def _set_resources(self, entry: Entry, client: Client, resources: Resources) -> None:
        """Raises: StoreError, and as `spec_of`; then nothing has changed."""
        record, before = entry.record, entry.record.spec.resources
        record.spec = msgspec.structs.replace(record.spec, resources=resources)
        try:
            spec = await self.spec_of(entry)
            await self._inside.books.save(entry)
        except LightermanError:
            record.spec = msgspec.structs.replace(record.spec, resources=before)
            raise
        if entry.is_registered:
            client.set_spec(record.id, spec)

    async def _undo_update(
        self, entry: Entry, client: Client, failed: LightermanError, before: Resources, asked: Resources
    ) -> None:
        name = entry.record.name
        try:
            await self._set_resources(entry, client, before)
        except LightermanError as refused:
            log.error("container %s: that its limits are the old ones is not written down: %s", name, refused)
            entry.record.spec = msgspec.structs.replace(entry.record.spec, resources=before)
        if isinstance(failed, InvalidState | NotFound):
            return  # it came to nothing that runs
        try:
            # A runtime sets one after the other: some of them may be in force.
            await client.update_resources(entry.record.id, updating.to_undo(asked, before))
        except LightermanError as refused:
            log.error("container %s: a part of its new limits may be in force until it ends: %s", name, refused)

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
            await self._no_further_run(entry, reason)
            # Its end may be known and not written down yet, on a full disk for long.
            return entry.record.status in (Status.RUNNING, Status.PAUSED, Status.RESTARTING)
        # A lease ends the container and not only a run of it: it is the reason in a back-off too, and at the next boot.
        ends_all = reason == "lease" and entry.record.status is Status.RESTARTING
        entry.ask_for_end(reason, 0.0 if ends_all else self._inside.clock.mono())
        self._note_end(entry, grace_s)
        if grace_s and not entry.record.spec.restart.can_restart:
            # As long as it waits an engine may die: the next one has to know why it ends, and when it is killed.
            await self._save_stopped(entry)
        else:
            await self.mark_stopped(entry)
        id = entry.record.id
        try:
            await self._carry_out(entry, client.stop(id, grace_s=grace_s) if grace_s else client.terminate(id))
        except NotFound:
            log.debug("container %s ended in the same moment", entry.record.name)
        return True

    async def _carry_out(self, entry: Entry, ending: Awaitable[None]) -> None:
        try:
            await ending
        except (NotFound, Unkillable):
            raise  # it has ended; or it has its SIGKILL, and ends as asked once it can
        except LightermanError:
            # It was not stopped: nor is it to be by the next engine.
            entry.record.end_reason = entry.record.kill_at = None
            await self._save_quietly(entry)
            raise

    async def go_on_ending(self, entry: Entry) -> None:
        """Go on with a stop that an earlier engine had begun: what was asked for then holds now."""
        record = entry.record
        left_s = max(0.0, (record.kill_at or 0.0) - self._inside.clock.mono())
        try:
            await self.end(entry, record.end_reason or "stop", left_s)
        except LightermanError as failed:
            log.error("container %s: it was being stopped, and can't be: %s", record.name, failed)

    def _note_end(self, entry: Entry, grace_s: float) -> None:
        """To be written down with that it was stopped; of several stops the shortest grace counts."""
        record, at = entry.record, self._inside.clock.mono() + grace_s
        record.end_reason = entry.reason
        record.kill_at = at if record.kill_at is None else min(at, record.kill_at)

    async def _no_further_run(self, entry: Entry, reason: str | None = None) -> None:
        entry.start_unwanted.set()
        record = entry.record
        if record.status is Status.RESTARTING:
            if reason == "lease" and record.exit is not None:
                record.exit = msgspec.structs.replace(record.exit, reason=reason)
            await self._save_stopped(entry)

    async def mark_stopped(self, entry: Entry) -> None:
        """Written down before it acts, so that no policy starts it again after a crash in between."""
        spec = entry.record.spec
        if spec.restart.can_restart or (spec.health is not None and spec.health.on_unhealthy == "restart"):
            await self._save_stopped(entry)

    async def _save_stopped(self, entry: Entry) -> None:
        entry.record.manually_stopped = True
        if entry.record.saving is not None:
            entry.record.saving = msgspec.structs.replace(entry.record.saving, manually_stopped=True)
        await self._save_quietly(entry)

    async def _save_quietly(self, entry: Entry) -> None:
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


class _Attempt:
    """A start, and what the record was before it.

    Attributes: is_refused: the store could not be written, and so nothing has happened.
    """

    def __init__(self, entry: Entry, by_policy: bool) -> None:
        self.by_policy = by_policy
        self.is_refused = False
        self._before = entry.record.runtime, entry.record.manually_stopped, entry.restarts

    def put_back(self, entry: Entry) -> None:
        """A stop that was asked for meanwhile counts."""
        record = entry.record
        record.runtime, was_stopped, entry.restarts = self._before
        record.manually_stopped = record.manually_stopped or was_stopped
        record.starting = 0


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
