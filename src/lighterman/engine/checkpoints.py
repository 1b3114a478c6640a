"""Checkpoints of an engine's containers: each belongs to its container, lies beside its files, and goes with it."""

from __future__ import annotations

from collections.abc import Sequence

from lighterman.engine.inside import Inside
from lighterman.engine.runs import Runs
from lighterman.entry import Entry
from lighterman.errors import LightermanError, NotFound
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

    async def start_from(self, entry: Entry, name: str) -> None:
        """Start it from a checkpoint. Raises: as `Container.start`."""
        checkpoints.check_name(name)
        if name not in await self.names(entry):
            raise NotFound(
                f"container {entry.record.name} has no checkpoint {name!r}",
                operation="start",
                container=entry.record.id,
            )
        await self._runs.start(entry, WithCheckpoint(name, self._directory(entry)))

    def _directory(self, entry: Entry) -> str:
        return f"{self._inside.root.container(entry.record.id)}/checkpoints"
