"""Checkpoints of an engine's containers: each belongs to its container, lies beside its files, and goes with it."""

from __future__ import annotations

from collections.abc import Sequence

from lighterman.engine.inside import Inside
from lighterman.engine.runs import CHECKPOINTS, Runs
from lighterman.entry import Entry
from lighterman.errors import InvalidSpec, LightermanError, NotFound
from lighterman.journal import Event
from lighterman.runtimes.options import WithCheckpoint
from lighterman.supervisor import checkpoints
from lighterman.threads import in_thread

__all__ = ["Checkpoints"]


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
        record, client = entry.record, self._inside.client_of(entry)
        reason, marked = entry.reason, record.manually_stopped
        if not leave_running:
            entry.reason = reason or "checkpoint"
            await self._runs.mark_stopped(entry)
        generation, pid, ended = record.generation, record.pid, entry.ended
        try:
            await client.create_checkpoint(record.id, name, self._directory(entry), leave_running=leave_running)
        except LightermanError:
            if not leave_running and entry.is_registered and record.generation == generation:
                entry.reason, record.manually_stopped = reason, marked
                await self._inside.books.save(entry)
            raise
        told = Event(
            kind="checkpoint", container=record.id, name=record.name, generation=generation, pid=pid, reason=name
        )
        await self._inside.books.tell_fact(entry, told)
        if not leave_running:
            await ended.wait()

    async def names(self, entry: Entry) -> Sequence[str]:
        """See `Container.checkpoints`."""
        return await in_thread(checkpoints.names, self._directory(entry))

    async def delete(self, entry: Entry, name: str) -> None:
        """See `Container.delete_checkpoint`."""
        checkpoints.check_name(name)
        await in_thread(checkpoints.delete, self._directory(entry), name)

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
        host, id = self._inside.host, source.record.id
        await host.copy_checkpoint(id, name, self._directory(source), self._directory(entry))

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
        await self._runs.start(entry, WithCheckpoint(name, self._directory(entry)))

    def _directory(self, entry: Entry) -> str:
        return f"{self._inside.root.container(entry.record.id)}/{CHECKPOINTS}"
