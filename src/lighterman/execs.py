"""Exec processes of an engine's containers: started, run to their end, signalled, found again."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal as signals
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from lighterman import limits
from lighterman.arguments import check_at_most, check_bytes, check_seconds, exec_arguments
from lighterman.capture import capture
from lighterman.clock import Clock
from lighterman.disks import check_writable
from lighterman.entry import PROBE, Entry, ExecEntry
from lighterman.errors import (
    AlreadyStopped,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    StoreError,
    Unkillable,
)
from lighterman.host import Host
from lighterman.record import ExecRecord, decode_exec
from lighterman.results import Result
from lighterman.runtimes.base import SIGKILL, KnownExec
from lighterman.spec import ConsoleSize, Timings
from lighterman.supervisor.client import Client
from lighterman.supervisor.tasks import OwnedTasks
from lighterman.threads import in_thread

__all__ = ["Execs"]

log = logging.getLogger(__name__)


class Execs:
    """The verbs of exec; what is known of each process stands in its container's entry.

    Args:
        host: asked for at each use, since it is there only while the engine runs. client_of: of a container that runs.
    """

    def __init__(
        self,
        clock: Clock,
        tasks: OwnedTasks,
        host: Callable[[], Host],
        client_of: Callable[[Entry], Client],
        save: Callable[[Entry], Awaitable[None]],
    ) -> None:
        self._clock = clock
        self._tasks = tasks
        self._host = host
        self._client_of = client_of
        self._save = save

    async def start(
        self,
        entry: Entry,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        env: dict[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        terminal: bool = False,
        console_size: ConsoleSize | tuple[int, int] | None = None,
        timeout_s: float | None = None,
        is_watched: bool = True,
        is_kept: bool = True,
        is_probe: bool = False,
    ) -> ExecEntry:
        """See `Container.start_exec`.

        Args: is_watched: whether this has to see to `timeout_s`. is_kept: whether it can be asked for after its end.
        """
        client = self._client_of(entry)
        self._host().poke()
        asked = exec_arguments(
            argv,
            env=env,
            workdir=workdir,
            user=user,
            stdin=stdin,
            terminal=terminal,
            console_size=console_size,
        )
        check_seconds("timeout_s", timeout_s, none=True)
        if entry.process is None:
            raise InvalidState(f"container {entry.record.name} is {entry.record.status}, not running")
        if not is_probe:
            # Neither its output nor its end could be written down.
            await in_thread(check_writable, str(entry.directory))
        config = await self._host().exec_process(
            entry.process,
            asked.argv,
            pid=entry.record.pid,
            env=asked.env,
            workdir=asked.workdir,
            user=asked.user,
            terminal=asked.terminal,
            console_size=asked.console_size,
            stdin=asked.stdin,
        )
        for old in entry.surplus_execs():
            self._tasks.finish(old.forget(), f"forget exec {old.name}")
        due = self._clock.mono() + timeout_s if timeout_s is not None else None
        name = f"{PROBE if is_probe else ''}{os.urandom(6).hex()}"
        life = entry.enter_exec(
            ExecRecord(id=name, argv=asked.argv, generation=entry.record.generation, due=due, is_kept=is_kept)
        )
        asked_for = False
        try:
            if due is not None and not is_probe:
                # Before it runs: whoever dies from here on, the next engine knows when its time is over.
                entry.exec_changed(life.record)
                await self._save(entry)
            asked_for = True
            pid = await client.add_process(entry.record.id, life.name, config)
        except BaseException as failed:
            if asked_for and isinstance(failed, asyncio.CancelledError):
                # The start goes on in the client; what comes of it is killed, since nobody wants it.
                life.is_kept = False
                self._tasks.finish(self._kill_when_started(entry, life), f"undo exec {life.name}")
            else:
                entry.drop_exec(life)
            raise
        life.change(pid=pid)
        if timeout_s is not None and is_watched:
            self._tasks.watch(self._watch_time(entry, life, timeout_s), f"watch the time of exec {life.name}")
        return life

    # ---- taking over ----

    @staticmethod
    def load(entry: Entry, rows: Iterable[bytes]) -> None:
        """Enter what an earlier engine has written down. Raises: StoreError."""
        for row in rows:
            try:
                life = entry.enter_exec(decode_exec(row))
            except (msgspec.DecodeError, msgspec.ValidationError) as wrong:
                raise StoreError(f"an exec in the store can't be read: {wrong}: it is of another version") from wrong
            # Who waited for its end is gone, and whoever looks for it later finds it.
            life.is_kept = life.is_kept or not life.ended.is_set()
        entry.surplus_execs()

    @staticmethod
    def known(entry: Entry) -> tuple[KnownExec, ...]:
        """Those that were told to have started, and not to have ended."""
        return tuple(
            KnownExec(life.name, life.pid, life.record.start_time)
            for life in entry.execs.values()
            if life.record.started_at is not None and not life.ended.is_set()
        )

    def take_up(self, entry: Entry) -> None:
        """See to the time of those that an earlier engine has started; who waits for a probe of its is gone."""
        for life in tuple(entry.execs.values()):
            if life.ended.is_set():
                if not life.is_kept and life.output_of.sink is None:
                    entry.drop_exec(life)
            elif life.is_probe:
                self._tasks.finish(self._kill(entry, life), f"kill exec {life.name}")
            elif life.output_of.sink is None and life.record.started_at is None:
                entry.drop_exec(life)  # only its time was written down: it never came to run
            elif life.record.due is not None:
                left_s = max(0.0, life.record.due - self._clock.mono())
                self._tasks.watch(self._watch_time(entry, life, left_s), f"watch the time of exec {life.name}")

    @staticmethod
    def settle(entry: Entry, why: str) -> None:
        """Of a container that does not run: what was not told to have ended has, and nobody can know how."""
        entry.lose_execs(why)
        for life in tuple(entry.execs.values()):
            if not life.ended.is_set() or not life.is_kept:
                entry.drop_exec(life)

    @staticmethod
    async def remove_unknown(entries: Iterable[Entry]) -> None:
        """Take away the output of execs that nobody can ask for any more: who was killed could not."""
        by_directory = {entry.directory / "execs": entry for entry in entries}
        found = await in_thread(lambda: {directory: _listed(directory) for directory in by_directory})
        # Whoever has begun one meanwhile had entered it before.
        unknown = [
            directory / name
            for directory, names in found.items()
            for name in names
            if name not in by_directory[directory].execs
        ]
        if unknown:
            await in_thread(_remove_all, unknown)

    # ---- to its end ----

    async def run(
        self,
        entry: Entry,
        argv: Sequence[str],
        *,
        stdin: bytes | None,
        env: dict[str, str] | None,
        workdir: str | None,
        user: str | None,
        timeout_s: float | None,
        max_output: int,
        is_probe: bool = False,
    ) -> Result:
        """See `Container.exec`."""
        check_bytes("stdin", stdin)
        check_seconds("timeout_s", timeout_s, none=True)
        check_at_most("max_output", max_output)
        began = self._clock.mono()
        life = await self.start(
            entry,
            argv,
            stdin=stdin is not None,
            env=env,
            workdir=workdir,
            user=user,
            timeout_s=timeout_s,
            is_watched=False,
            is_kept=False,
            is_probe=is_probe,
        )
        try:
            if stdin is not None:
                writer = life.require_stdin()
                writer.write(stdin)
                writer.write_eof()
            out = capture(self._tasks, life.output(1), max_output)
            err = capture(self._tasks, life.output(2), max_output)
            try:
                async with self._clock.timeout(timeout_s):
                    await life.ended.wait()
            except TimeoutError:
                await self._end_late(entry, life)
            # Fails if its engine was closed, or its container removed.
            exit = await life.wait_exit()
            (stdout, more_out), (stderr, more_err) = await out, await err
        except BaseException:
            if life.exit is not None or not life.ended.is_set():
                await asyncio.shield(self._tasks.finish(self._kill(entry, life), f"kill exec {life.name}"))
            raise
        known = self._clock.mono()
        entry.execs.pop(life.name, None)
        self._tasks.finish(life.forget(), f"forget exec {life.name}")
        return Result(
            exit=exit,
            stdout=stdout,
            stderr=stderr,
            stdout_truncated=more_out,
            stderr_truncated=more_err,
            timings=Timings(total=known - began),
        )

    async def _watch_time(self, entry: Entry, life: ExecEntry, timeout_s: float) -> None:
        try:
            async with self._clock.timeout(timeout_s):
                await life.ended.wait()
        except TimeoutError:
            # Begun is begun: a closing engine waits for it.
            self._tasks.finish(self._end_late_quietly(entry, life), f"end exec {life.name}")

    async def _end_late_quietly(self, entry: Entry, life: ExecEntry) -> None:
        try:
            await self._end_late(entry, life)
        except LightermanError as failed:
            log.error("%s", failed)

    async def _end_late(self, entry: Entry, life: ExecEntry) -> None:
        """SIGTERM for it, then SIGKILL for all that it has started, also if it obeyed. Returns when it has ended."""
        life.reason = "timeout"
        members = self._host().members(entry.record.runtime, entry.record.id, life.pid)
        if members is not None:
            # Seen now, those are known to be its own also when it has left them behind.
            await in_thread(members.look)
        try:
            await self.signal(entry, life, signals.SIGTERM)
        except NotSupported:
            # A platform without signals: it can only be ended by force.
            await self.signal(entry, life, SIGKILL)
        try:
            async with self._clock.timeout(limits.EXEC_TERM_S):
                await life.ended.wait()
        except TimeoutError:
            await self.signal(entry, life, SIGKILL)
        if members is not None:
            await in_thread(members.kill)
        await self._must_end(entry, life)

    async def _must_end(self, entry: Entry, life: ExecEntry) -> None:
        try:
            async with self._clock.timeout(limits.KILL_WAIT_S):
                await life.ended.wait()
        except TimeoutError as late:
            raise Unkillable(
                f"process {life.name} of container {entry.record.name} is unkillable: pid {life.pid} has not ended "
                f"{limits.KILL_WAIT_S:g} s after SIGKILL; the container is {entry.record.status}",
                pid=life.pid,
                since_s=limits.KILL_WAIT_S,
                operation="exec",
                container=entry.record.id,
            ) from late

    async def signal(self, entry: Entry, life: ExecEntry, signal: int) -> None:
        """See `Process.kill`."""
        try:
            await self._client_of(entry).signal_process(entry.record.id, life.name, signal)
        except (AlreadyStopped, NotFound, InvalidState):
            return  # it has ended: that is what was wanted, or it makes no difference any more

    async def _kill(self, entry: Entry, life: ExecEntry) -> None:
        await self.signal(entry, life, SIGKILL)
        try:
            await self._must_end(entry, life)
        except Unkillable as failed:
            log.error("%s", failed)
            return
        entry.drop_exec(life)
        await life.forget()

    async def _kill_when_started(self, entry: Entry, life: ExecEntry) -> None:
        while entry.client is not None and entry.is_registered and not life.ended.is_set():
            try:
                await entry.client.signal_process(entry.record.id, life.name, SIGKILL)
            except InvalidState:
                await self._clock.sleep(0.01)
                continue
            except LightermanError:
                break
            await life.ended.wait()
        entry.drop_exec(life)
        await life.forget()


def _listed(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _remove_all(directories: Iterable[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
