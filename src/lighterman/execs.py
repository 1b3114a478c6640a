"""Exec processes of an engine's containers: started, run to their end, signalled, found again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal as signals
from collections.abc import Awaitable, Callable, Sequence

from lighterman import limits
from lighterman.arguments import check_at_most, check_bytes, check_seconds, exec_arguments
from lighterman.capture import capture
from lighterman.clock import Clock
from lighterman.entry import PROBE, Entry, ExecEntry
from lighterman.errors import AlreadyStopped, InvalidState, LightermanError, NotFound, NotSupported, Unkillable
from lighterman.host import Host
from lighterman.results import Result
from lighterman.runtimes.base import SIGKILL
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
        is_probe: bool = False,
    ) -> ExecEntry:
        """See `Container.start_exec`. Args: is_watched: whether this has to see to `timeout_s`."""
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
        life = entry.new_exec(f"{PROBE if is_probe else ''}{os.urandom(6).hex()}")
        if timeout_s is not None:
            await self._bound(entry, life, timeout_s)
        try:
            life.pid = await client.add_process(entry.record.id, life.name, config)
        except BaseException as failed:
            if isinstance(failed, asyncio.CancelledError):
                # The start goes on in the client; what comes of it is killed, since nobody wants it.
                self._tasks.finish(self._kill_when_started(entry, life), f"undo exec {life.name}")
            else:
                entry.execs.pop(life.name, None)
                entry.execs_due.pop(life.name, None)
            raise
        if timeout_s is not None and is_watched:
            self._tasks.watch(self._watch_time(entry, life, timeout_s), f"watch the time of exec {life.name}")
        return life

    async def _bound(self, entry: Entry, life: ExecEntry, timeout_s: float) -> None:
        life.due = self._clock.mono() + timeout_s
        if not life.is_probe:
            # Before it runs: whoever dies from here on, the next engine knows when its time is over.
            entry.execs_due[life.name] = life.due
            try:
                await self._save(entry)
            except BaseException:
                entry.execs.pop(life.name, None)
                entry.execs_due.pop(life.name, None)
                raise

    def take_up(self, entry: Entry) -> None:
        """See to the time of those that an earlier engine has started; who waits for a probe of its is gone."""
        for life in entry.execs.values():
            if life.is_probe and not life.ended.is_set():
                self._tasks.finish(self._kill(entry, life), f"kill exec {life.name}")
            elif life.due is not None and not life.ended.is_set():
                left_s = max(0.0, life.due - self._clock.mono())
                self._tasks.watch(self._watch_time(entry, life, left_s), f"watch the time of exec {life.name}")

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
            (stdout, more_out), (stderr, more_err) = await out, await err
        except BaseException:
            await asyncio.shield(self._tasks.finish(self._kill(entry, life), f"kill exec {life.name}"))
            raise
        known = self._clock.mono()
        entry.execs.pop(life.name, None)
        self._tasks.finish(life.forget(), f"forget exec {life.name}")
        assert life.exit is not None
        return Result(
            exit=life.exit,
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
        entry.execs.pop(life.name, None)
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
        entry.execs.pop(life.name, None)
        await life.forget()
