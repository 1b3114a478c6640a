"""The set of containers and what may be asked of them. Containers never wait for each other; there is no lock."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

from lighterman import limits
from lighterman.clock import Clock, SystemClock
from lighterman.errors import AlreadyExists, InvalidState, NotFound
from lighterman.lifecycle.events import StateInfo
from lighterman.lifecycle.restart import RestartRate, RestartRule
from lighterman.runtimes.base import CreateOption, Runtime, console_size
from lighterman.runtimes.options import FirstRun, WithCheckpoint
from lighterman.spec import ProcessConfig, ProcessSummary, Resources, RestartPolicy, Spec, Statistics
from lighterman.supervisor import checkpoints
from lighterman.supervisor.backend import Backend
from lighterman.supervisor.container import Container
from lighterman.supervisor.delivery import Delivery
from lighterman.supervisor.run import Run
from lighterman.supervisor.surroundings import Surroundings
from lighterman.supervisor.tasks import OwnedTasks
from lighterman.threads import in_thread

__all__ = ["Client"]

log = logging.getLogger(__name__)


def _jitter() -> float:
    return int.from_bytes(os.urandom(4), "little") / (1 << 31) - 1


class Client:
    """Containers by id, over one runtime, told to one backend. Usable on its own, without the engine around it.

    ```python
    async with Client(runtime, backend) as client:
        await client.create("box", Spec.from_oci(config, rootfs=PlainRoot(path="/srv/root")))
        end = await client.wait("box")
    ```
    Leaving it means "stop watching": it ends no container. Cancelling a verb, `create` apart, ends only the waiting.

    Args:
        restart_rate: a limit on restarts a second, perhaps shared with other clients. jitter: draws from -1 to 1.
    """

    def __init__(
        self,
        runtime: Runtime,
        backend: Backend,
        *,
        clock: Clock | None = None,
        restart_rate: RestartRate | None = None,
        jitter: Callable[[], float] = _jitter,
    ) -> None:
        self._runtime = runtime
        self._backend = backend
        self._clock: Clock = clock or SystemClock()
        self._restart_rate = restart_rate
        self._jitter = jitter
        self._containers: dict[str, Container] = {}
        self._cleaning: dict[str, asyncio.Task[None]] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._tasks = OwnedTasks()
        self._closed = False

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop watching; wait for clean-ups under way and for the backend to hear of what has happened."""
        self._closed = True
        await self._tasks.close(limits.CANCEL_S)

    # ---- containers ----

    def containers(self) -> tuple[str, ...]:
        """The ids that are registered: from `create` until EXIT is told."""
        return tuple(self._containers)

    def is_running(self, id: str) -> bool:
        """Whether a run of it is under way, whose end is not known yet; it is before anything is told of that."""
        container = self._containers.get(id)
        return container is not None and container.is_running

    async def ends_within(self, id: str, limit_s: float) -> bool:
        """Whether nothing of it runs, or the end of what does becomes known within `limit_s` seconds."""
        container = self._containers.get(id)
        return container is None or await container.ends_within(limit_s)

    async def create(self, id: str, spec: Spec, *options: CreateOption) -> None:
        """Create the compute system and start it; on any failure nothing is left registered or running.

        Raises: AlreadyExists [L02], and what the runtime or the backend's `attach_streams` raised first.
        If cancelled: it is undone, and the cancellation is raised when it is gone or limits.CANCEL_S has passed.
        """
        container = self._register(id, spec, options)
        self._begin(container)
        try:
            await asyncio.shield(container.started)
        except asyncio.CancelledError:
            await self._undo(container)
            raise

    async def restore(self, id: str, *options: CreateOption, spec: Spec | None = None) -> None:
        """Re-attach to a compute system that outlived the engine, and tell RESTORE [L06].

        Where that can't be done what is left is terminated, and EXIT told with the true exit code if it is known.

        Args: spec: what it was created with; without one it can't be started again by a policy.
        """
        if spec is None:
            spec = Spec(process=ProcessConfig())
            options = tuple(option for option in options if isinstance(option, FirstRun))
        container = self._register(id, spec, options, restores=True)
        self._begin(container)
        await asyncio.shield(container.started)

    async def wait(self, id: str) -> StateInfo:
        """The container's EXIT; a restart is not the end. Raises: NotFound."""
        return await self._container(id).wait()

    async def signal(self, id: str, signal: int) -> None:
        """Deliver a signal to the init process; SIGKILL terminates the container [L04]."""
        await self._container(id).signal(signal)

    async def stop(self, id: str, *, grace_s: float = limits.STOP_GRACE_S) -> None:
        """Ask it to end with its stop signal, terminate it after `grace_s` seconds; returns when it has ended."""
        await self._container(id).stop(grace_s)

    async def terminate(self, id: str) -> None:
        """End all of it; returns when it has ended."""
        await self._container(id).terminate()

    async def pause(self, id: str) -> None:
        """Freeze it. Raises: InvalidState if it is paused, NotSupported."""
        await self._container(id).pause()

    async def resume(self, id: str) -> None:
        """Thaw it. Raises: InvalidState if it is not paused, NotSupported."""
        await self._container(id).resume()

    async def update_resources(self, id: str, resources: Resources) -> None:
        """Change the limits of a running container. Raises: NotSupported."""
        await self._container(id).update_resources(resources)

    async def end_run(self, id: str, *, grace_s: float, restart: str | None = None) -> None:
        """End the run that is under way without that counting as a stop by request: the restart policy decides.

        Args: restart: why another run is to follow whatever the policy; None leaves it to the policy.
        Raises: NotFound, InvalidState if nothing runs, Unkillable.
        """
        await self._container(id).end_run(grace_s, restart)

    def set_restart_policy(self, id: str, policy: RestartPolicy | RestartRule) -> None:
        """Takes effect at the next decision [L35]."""
        self._container(id).set_restart_policy(policy)

    def set_spec(self, id: str, spec: Spec) -> None:
        """What the next run is made from; the one under way stays as it is."""
        self._container(id).spec = spec

    def cancel_restart(self, id: str) -> bool:
        """End the wait for a restart; False if none is being waited for [L34]."""
        return self._container(id).cancel_restart()

    # ---- processes ----

    async def add_process(self, id: str, name: str, process: ProcessConfig) -> int:
        """Start a further process and return its pid. Raises: AlreadyExists while one of that name runs [L03]."""
        return await self._container(id).add_process(name, process)

    async def signal_process(self, id: str, name: str, signal: int) -> None:
        """Deliver a signal to that one process. Raises: NotFound, AlreadyStopped."""
        await self._container(id).ask("signal", lambda run: run.process(name).port.kill(signal))

    async def resize(self, id: str, name: str, *, height: int, width: int) -> None:
        """Set the size of a process's terminal, in cells. Raises: InvalidState without one [L05]."""
        size = console_size(height, width)

        def resize(run: Run) -> Awaitable[None]:
            process = run.process(name)
            if not process.config.terminal:
                raise InvalidState(f"process {name!r} of container {id} has no terminal")
            return process.port.resize_console(size.height, size.width)

        await self._container(id).ask("resize", resize)

    async def stats(self, id: str) -> Statistics:
        """Counters of its cgroup, or of what the platform has."""
        return await self._container(id).ask("stats", lambda run: run.system.statistics())

    async def pids(self, id: str) -> Sequence[int]:
        """Of all its processes, exec'd ones included; the host's numbers."""
        return await self._container(id).ask("pids", lambda run: run.system.pids())

    async def summary(self, id: str) -> Sequence[ProcessSummary]:
        """What runs in it."""
        return await self._container(id).ask("summary", lambda run: run.system.process_list())

    # ---- checkpoints ----

    async def create_checkpoint(self, id: str, name: str, directory: str, *, leave_running: bool = False) -> None:
        """Write the container's state to `directory/name`. Raises: NotSupported, AlreadyExists, NotFound.

        If cancelled: it is written all the same.
        """
        work = self._create_checkpoint(self._container(id), name, directory, leave_running=leave_running)
        await self._tasks.finish_and_wait(work, f"checkpoint {name} of {id}")

    @staticmethod
    async def _create_checkpoint(container: Container, name: str, directory: str, *, leave_running: bool) -> None:
        await in_thread(checkpoints.reserve, directory, name)
        try:
            await container.checkpoint(name, directory, leave_running=leave_running)
            await in_thread(checkpoints.complete, directory, name)
        except BaseException:
            await in_thread(checkpoints.abandon, directory, name)
            raise

    async def list_checkpoints(self, directory: str) -> tuple[str, ...]:
        """The names in `directory`."""
        return await in_thread(checkpoints.names, directory)

    async def delete_checkpoint(self, name: str, directory: str) -> None:
        """Raises: NotFound."""
        await in_thread(checkpoints.delete, directory, name)

    # ---- inside ----

    def _container(self, id: str) -> Container:
        container = self._containers.get(id)
        if container is None:
            raise NotFound(f"no container {id!r} is running here", container=id)
        return container

    def _register(self, id: str, spec: Spec, options: Sequence[CreateOption], *, restores: bool = False) -> Container:
        if self._closed:
            raise InvalidState("the client is closed")
        if id in self._containers:
            raise AlreadyExists(f"a container {id!r} exists already", container=id)
        checkpoints.check_options([option for option in options if isinstance(option, WithCheckpoint)])
        around = Surroundings(
            runtime=self._runtime,
            backend=self._backend,
            clock=self._clock,
            watch=self._tasks.watch,
            finish=self._tasks.finish,
            tell=self._tell,
            unregister=self._unregister,
            jitter=self._jitter,
            restart_rate=self._restart_rate,
        )
        container = Container(id, spec, options, around, restores=restores)
        self._containers[id] = container
        return container

    def _begin(self, container: Container) -> None:
        owner = self._tasks.watch(self._live(container), f"owner of {container.id}")
        # One that is cancelled before it owns the container can't answer who waits.
        owner.add_done_callback(lambda _: container.leave())

    async def _live(self, container: Container) -> None:
        # The id was free when EXIT was told, but the old run's remains may still be on their way out [L24].
        cleaning = self._cleaning.get(container.id)
        if cleaning is not None:
            await asyncio.wait((cleaning,))
        await container.live()

    async def _undo(self, container: Container) -> None:
        try:
            async with self._clock.timeout(limits.CANCEL_S):
                await container.undo()
        except TimeoutError:
            log.error("container %s: undoing its create takes longer than %g s", container.id, limits.CANCEL_S)

    def _tell(self, info: StateInfo, then: Callable[[], Awaitable[None]] | None) -> None:
        delivery = self._deliveries.get(info.container_id)
        if delivery is None:

            def forget() -> None:
                self._deliveries.pop(info.container_id, None)

            delivery = Delivery(self._backend, self._tasks.finish, self._tasks.watch, forget)
            self._deliveries[info.container_id] = delivery
        delivery.tell(info, then)

    def _unregister(self, container: Container) -> None:
        if self._containers.get(container.id) is not container:
            return
        del self._containers[container.id]
        cleaning = container.cleanup
        if cleaning is not None and not cleaning.done():
            self._cleaning[container.id] = cleaning
            cleaning.add_done_callback(lambda _: self._cleaning.pop(container.id, None))
