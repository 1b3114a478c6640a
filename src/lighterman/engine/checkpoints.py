"""Checkpoints of an engine's containers: each belongs to its container, lies beside its files, and goes with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lighterman import limits
from lighterman.engine.inside import Inside
from lighterman.engine.runs import CHECKPOINTS, Runs
from lighterman.entry import Entry
from lighterman.errors import AlreadyExists, InvalidSpec, InvalidState, NotFound, StoreError
from lighterman.journal import Event
from lighterman.record import Saving
from lighterman.runtimes.options import WithCheckpoint
from lighterman.supervisor import checkpoints
from lighterman.supervisor.client import Client
from lighterman.threads import in_thread

__all__ = ["Checkpoints"]

log = logging.getLogger(__name__)

_TRIES = 3
_LOOK_S = 0.01  # for the end of a health check's command


class Checkpoints:
    """The verbs."""

    def __init__(self, inside: Inside, runs: Runs) -> None:
        self._inside = inside
        self._runs = runs

    async def make(self, entry: Entry, name: str, *, leave_running: bool) -> None:
        """See `Container.checkpoint`."""
        checkpoints.check_name(name)
        self._inside.client_of(entry)
        # What was asked for goes on when who asked is cancelled.
        await self._inside.tasks.finish_and_wait(
            self._make(entry, name, leave_running=leave_running), f"checkpoint {name} of {entry.record.name}"
        )

    async def _make(self, entry: Entry, name: str, *, leave_running: bool) -> None:
        async with entry.saving:
            if name in await self.names(entry):
                # Before it is written down: after a crash the next engine would take the earlier one for this one.
                raise AlreadyExists(
                    f"container {entry.record.name} has a checkpoint {name!r} already",
                    operation="checkpoint",
                    container=entry.record.id,
                )
            ended = entry.ended
            await self._save(entry, name, leave_running=leave_running)
        if not leave_running:
            await ended.wait()

    async def _save(self, entry: Entry, name: str, *, leave_running: bool) -> None:
        record, books = entry.record, self._inside.books
        client = self._inside.client_of(entry)
        reason, generation, pid = entry.reason, record.generation, record.pid
        marked = record.manually_stopped
        # Before it is frozen: whoever dies from here on, the next engine lets it go on.
        record.saving = Saving(name=name, leave_running=leave_running, manually_stopped=marked)
        if not leave_running:
            entry.reason = reason or "checkpoint"
            # Nor may any policy start it again once it has ended by this.
            record.manually_stopped = marked or record.spec.restart.can_restart
        try:
            await books.save(entry)
            await self._create(client, entry, name, leave_running=leave_running)
        except Exception:
            # Who has stopped it meanwhile has marked it there.
            marked, record.saving = record.saving.manually_stopped, None
            if entry.is_registered and record.generation == generation:
                entry.reason = reason if entry.reason == "checkpoint" else entry.reason
                record.manually_stopped = marked
            await self._forget_saving(entry)
            raise
        record.saving = None
        told = Event(
            kind="checkpoint", container=record.id, name=record.name, generation=generation, pid=pid, reason=name
        )
        await books.tell_fact(entry, told)

    async def _create(self, client: Client, entry: Entry, name: str, *, leave_running: bool) -> None:
        for tries_left in reversed(range(_TRIES)):
            await self._wait_for_probes(entry)
            try:
                await client.create_checkpoint(
                    entry.record.id, name, self.directory(entry), leave_running=leave_running
                )
            except InvalidState:
                # One that was about to begin came in between.
                if not tries_left or not _has_probes(entry):
                    raise
            else:
                return

    async def _wait_for_probes(self, entry: Entry) -> None:
        """No further one begins as long as a checkpoint is being made; each has a time of its own."""
        deadline = self._inside.clock.mono() + limits.RUNTIME_CALL_S
        while _has_probes(entry) and self._inside.clock.mono() < deadline:
            await self._inside.clock.sleep(_LOOK_S)

    async def _forget_saving(self, entry: Entry) -> None:
        try:
            await self._inside.books.save(entry)
        except StoreError as failed:
            # The next engine finds nothing to undo.
            log.error("container %s: that its checkpoint failed is not written down: %s", entry.record.name, failed)

    async def names(self, entry: Entry) -> Sequence[str]:
        """See `Container.checkpoints`."""
        return await in_thread(checkpoints.names, self.directory(entry))

    async def delete(self, entry: Entry, name: str) -> None:
        """See `Container.delete_checkpoint`."""
        checkpoints.check_name(name)
        await in_thread(checkpoints.delete, self.directory(entry), name)

    async def find(self, place: str) -> tuple[Entry, str]:
        """The container and the name of `CONTAINER/CHECKPOINT`. Raises: InvalidSpec, NotFound."""
        whose, slash, name = place.partition("/") if isinstance(place, str) else ("", "", "")
        if not slash:
            raise InvalidSpec(f"checkpoint {place!r:.140}: must be CONTAINER/CHECKPOINT, the container by name or id")
        entry = self._inside.books.find(whose)
        await self._must_have(entry, name, "create")
        return entry, name

    async def copy(self, source: Entry, name: str, entry: Entry) -> None:
        """Give another container the same checkpoint. Raises: NotFound, NotSupported, StoreError."""
        host, record = self._inside.host, source.record
        runtime = record.spec.runtime
        await host.copy_checkpoint(record.id, name, self.directory(source), self.directory(entry), runtime)

    async def _must_have(self, entry: Entry, name: str, operation: str) -> None:
        checkpoints.check_name(name)
        if name not in await self.names(entry):
            raise NotFound(
                f"container {entry.record.name} has no checkpoint {name!r}",
                operation=operation,
                container=entry.record.id,
            )

    async def start_from(self, entry: Entry, name: str) -> None:
        """Start it from a checkpoint. Raises: as `Container.start`."""
        await self._must_have(entry, name, "start")
        await self._runs.start(entry, WithCheckpoint(name, self.directory(entry)))

    def directory(self, entry: Entry) -> str:
        """Where those of a container lie."""
        return f"{self._inside.root.container(entry.record.id)}/{CHECKPOINTS}"


def _has_probes(entry: Entry) -> bool:
    return any(life.is_probe and not life.ended.is_set() for life in entry.execs.values())
