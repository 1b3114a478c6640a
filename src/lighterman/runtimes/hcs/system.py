"""One compute system of the service."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import (
    AlreadyClosed,
    AlreadyExists,
    AlreadyStopped,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    OperationPending,
)
from lighterman.runtimes.base import KnownExec, OomCounters
from lighterman.runtimes.hcs.answers import SystemProperties, decode_properties
from lighterman.runtimes.hcs.binding import SystemHandle
from lighterman.runtimes.hcs.documents import endpoint_change, process_config, property_query
from lighterman.runtimes.hcs.failures import UnexpectedExit
from lighterman.runtimes.hcs.layers import MountedLayer
from lighterman.runtimes.hcs.notifications import Happening
from lighterman.runtimes.hcs.process import HcsProcess
from lighterman.runtimes.hcs.std import StdPipes
from lighterman.spec import ProcessConfig, ProcessSummary, Resources, Statistics

__all__ = ["HcsSystem", "Isolation"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Isolation:
    """What of a container's configuration matters while it runs."""

    hyper_v: bool = False
    servicing: bool = False
    pending_updates: bool = False


class HcsSystem:
    """Made by `HcsRuntime.create`, or by `open` (then `ours` is False: closing it leaves it as it is)."""

    def __init__(
        self,
        handle: SystemHandle,
        std: StdPipes,
        clock: Clock,
        isolation: Isolation,
        *,
        ours: bool,
        layer: MountedLayer | None = None,
        closed: Callable[[HcsSystem], None] | None = None,
    ) -> None:
        self._handle = handle
        self._std = std
        self._clock = clock
        self._isolation = isolation
        self._ours = ours
        self._layer = layer
        self._tell_closed = closed
        self._init: HcsProcess | None = None
        self._execs: dict[str, HcsProcess] = {}
        self._end_asked = False
        self._closed = False

    @property
    def id(self) -> str:
        return self._handle.id

    # ---- starting ----

    async def start(self) -> None:
        self._must_be_open()
        await self._handle.start()

    async def create_process(self, process: ProcessConfig, *, exec_id: str | None = None) -> HcsProcess:
        self._must_run()
        if exec_id is None:
            if self._init is not None:
                raise InvalidState(f"container {self.id} has an init process already", container=self.id)
            self._init = await self._create_process(process)
            return self._init
        if self._init is None or self._init.has_ended:
            # The system lives on after its init process; the container does not.
            raise AlreadyStopped(f"container {self.id} is not running", container=self.id)
        known = self._execs.get(exec_id)
        if known is not None and not known.has_ended:
            raise AlreadyExists(f"container {self.id} runs a process {exec_id!r} already", container=self.id)
        self._execs[exec_id] = made = await self._create_process(process)
        return made

    async def _create_process(self, process: ProcessConfig) -> HcsProcess:
        piped = not self._isolation.servicing
        handle = await self._handle.create_process(process_config(process, piped=piped))
        return HcsProcess(
            self.id, handle, self._handle.record, self._std, self._clock, terminal=process.terminal, piped=piped
        )

    async def open_process(self, process_id: int | str) -> HcsProcess:
        """A second handle on a process that this object knows, or on any by its pid.

        Raises: NotFound; NotSupported for `"init"` after the engine's death: the data stream of its pipes is gone.
        """
        pid = self._pid_of(process_id)
        try:
            handle = await self._handle.open_process(pid)
        except AlreadyStopped as gone:
            raise NotFound(
                f"container {self.id} has no process {process_id!r}", operation="open_process", container=self.id
            ) from gone
        return HcsProcess(self.id, handle, self._handle.record, self._std, self._clock, terminal=False, piped=True)

    def _pid_of(self, process_id: int | str) -> int:
        if isinstance(process_id, int):
            return process_id
        process = self._init if process_id == "init" else self._execs.get(process_id)
        if process is not None:
            return process.pid
        if process_id == "init" and not self._ours:
            raise NotSupported("engine lost", operation="open_process", container=self.id)
        raise NotFound(
            f"container {self.id} has no process {process_id!r}", operation="open_process", container=self.id
        )

    async def exec_ids(self) -> Sequence[str]:
        return [name for name, process in self._execs.items() if not process.has_ended]

    async def adopt_exec(self, known: KnownExec) -> HcsProcess:
        raise NotSupported("hcs: adopt_exec", operation="adopt_exec", container=self.id)

    # ---- ending ----

    async def shutdown(self) -> None:
        await self._end("shutdown")

    async def terminate(self) -> None:
        await self._end("terminate")

    async def _end(self, operation: str) -> None:
        self._must_be_open()
        self._must_not_be_gone()
        try:
            await (self._handle.terminate() if operation == "terminate" else self._handle.shutdown())
        except AlreadyStopped:
            raise
        except NotFound as gone:
            # The service has forgotten it: that is how it looks after its end.
            raise AlreadyStopped(f"container {self.id} has ended", operation=operation, container=self.id) from gone
        self._end_asked = True
        # Whether the service said "done" or "pending": only the notice of the exit means that it is gone.
        raise OperationPending(f"{operation} of container {self.id} goes on", operation=operation, container=self.id)

    async def wait(self) -> None:
        await self._handle.wait_exit()

    def _must_not_be_gone(self) -> None:
        if self._handle.record.got(Happening.SYSTEM_EXITED) is not None:
            raise AlreadyStopped(f"container {self.id} has ended", container=self.id)

    # ---- while it runs ----

    async def pause(self) -> None:
        self._must_be_hyper_v("pause")
        await self._frozen_or_thawed(self._handle.pause)

    async def is_paused(self) -> bool | None:
        return None

    async def resume(self) -> None:
        self._must_be_hyper_v("resume")
        await self._frozen_or_thawed(self._handle.resume)

    async def _frozen_or_thawed(self, act: Callable[[], Awaitable[None]]) -> None:
        self._must_run()
        try:
            await act()
        except UnexpectedExit as gone:
            if not self._end_asked:
                raise
            raise AlreadyStopped(f"container {self.id} has ended", container=self.id) from gone

    async def statistics(self) -> Statistics:
        statistics = (await self._properties("Statistics")).statistics
        if statistics is None:
            raise NotFound(f"the service has no statistics of container {self.id}", container=self.id)
        return statistics

    async def process_list(self) -> Sequence[ProcessSummary]:
        return (await self._properties("ProcessList")).processes

    async def pids(self) -> Sequence[int]:
        return sorted(process.pid for process in await self.process_list())

    def watch_oom(self, told: int, tell: Callable[[int], None]) -> None:
        """Windows kills nobody for memory: an allocation fails."""

    async def oom_counters(self) -> OomCounters | None:
        """Windows counts nothing of the kind."""
        return None

    async def stuck(self) -> str | None:
        return None

    async def has_pending_updates(self) -> bool:
        """Asked before the shutdown: afterwards there is nobody to ask."""
        if not self._isolation.pending_updates:
            raise NotSupported("hcs: pending updates are not asked for", operation="pending updates", container=self.id)
        return (await self._properties("PendingUpdates")).updates_pending

    async def _properties(self, *types: str) -> SystemProperties:
        self._must_run()
        return decode_properties(await self._handle.properties(property_query(*types)), read_at=self._clock.wall())

    async def update_resources(self, resources: Resources) -> None:
        raise NotSupported(
            "hcs: the limits of a running container can't be changed", operation="update", container=self.id
        )

    async def add_endpoint(self, endpoint: str) -> None:
        """Plug a network endpoint into the running container."""
        await self._handle.modify(endpoint_change(endpoint, add=True))

    async def remove_endpoint(self, endpoint: str) -> None:
        """Unplug it."""
        await self._handle.modify(endpoint_change(endpoint, add=False))

    async def checkpoint(self, name: str, directory: str, *, leave_running: bool) -> None:
        raise NotSupported("hcs: checkpoint", operation="checkpoint", container=self.id)

    async def restore(self, name: str, directory: str) -> HcsProcess:
        raise NotSupported("hcs: restore", operation="restore", container=self.id)

    def begun(self) -> None:
        return None

    # ---- the handle ----

    async def close(self) -> None:
        if self._closed:
            raise AlreadyClosed(f"container {self.id} was closed already", operation="close", container=self.id)
        self._is_closed()
        if self._ours and not self._isolation.servicing and (self._end_asked or self._init is None):
            # Closing a handle ends nothing: what never ran anything would stay for ever. And the id is free only
            # when the service has told of the end.
            await self._end_quietly()
        try:
            await self._handle.close()
        finally:
            if self._layer is not None:
                self._layer.release()

    async def let_go(self) -> None:
        """Close every handle and end nothing, for who stops watching what lives on; its layer stays mounted."""
        self._is_closed()
        for process in (self._init, *self._execs.values()):
            if process is not None:
                with contextlib.suppress(AlreadyClosed):
                    await process.close()
        await self._handle.close()

    def _is_closed(self) -> None:
        self._closed = True
        if self._tell_closed is not None:
            self._tell_closed(self)

    async def _end_quietly(self) -> None:
        try:
            async with self._clock.timeout(limits.KILL_WAIT_S):
                if not self._end_asked:
                    await self._handle.terminate()
                await self._handle.wait_exit()
        except (AlreadyStopped, NotFound):
            return
        except (LightermanError, TimeoutError) as failed:
            log.warning("container %s: ending it before its close failed: %r", self.id, failed)

    def _must_be_open(self) -> None:
        if self._closed:
            raise AlreadyClosed(f"container {self.id} is closed", container=self.id)

    def _must_run(self) -> None:
        self._must_be_open()
        self._must_not_be_gone()

    def _must_be_hyper_v(self, operation: str) -> None:
        if not self._isolation.hyper_v:
            raise NotSupported(
                f"hcs: {operation} of a container under process isolation", operation=operation, container=self.id
            )
