"""The engine: containers with names, images, logs and results, in this process. It alone picks concrete classes."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import msgspec

from lighterman import limits
from lighterman.asking import Options, check_name, container_spec
from lighterman.clock import Clock, SystemClock
from lighterman.container import Container, Process
from lighterman.entry import Entry, ExecEntry, exit_record, not_started, take_output
from lighterman.errors import (
    AlreadyExists,
    AlreadyStopped,
    InvalidSpec,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    StoreError,
    UsageError,
)
from lighterman.images.image import Image
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.status import Status, next_status
from lighterman.linux_host import LinuxHost, open_host
from lighterman.logs.container import ContainerLog
from lighterman.logs.pump import OutputPump
from lighterman.record import Record
from lighterman.results import Result
from lighterman.roots import StateRoot
from lighterman.runtimes.base import CreateOption, RuntimeVersion
from lighterman.runtimes.options import FirstRun, OutputSegments, WithRestartPolicy
from lighterman.spec import (
    ConsoleSize,
    ContainerSpec,
    ExitRecord,
    Overlay,
    PlainRoot,
    Resources,
    Rootfs,
    Spec,
    Timings,
)
from lighterman.stdin import StdinWriter
from lighterman.store.base import Store
from lighterman.store.memory import MemoryStore
from lighterman.supervisor.client import Client
from lighterman.supervisor.streams import Streams
from lighterman.supervisor.tasks import OwnedTasks

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
        runtime: `crun`, `runc` or `youki`; None takes the first that works on this host.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        runtime: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._root = StateRoot.of(root)
        self._wanted_runtime = runtime
        self._clock: Clock = clock or SystemClock()
        self._entries: dict[str, Entry] = {}
        self._names: dict[str, Entry] = {}
        self._clients: dict[str, Client] = {}
        self._tasks = OwnedTasks()
        self._store: Store = MemoryStore()
        self._open = False

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

        Raises: NotSupported (no Linux, not root), RootLocked, RuntimeUnavailable, KeeperLost, StoreError.
        """
        if sys.platform != "linux":
            raise NotSupported(f"no container runtime for {sys.platform} in this version: use Linux")
        if os.geteuid() != 0:
            raise NotSupported("running containers without root is not supported in this version: run it as root")
        await asyncio.to_thread(self._root.acquire)
        try:
            self._host: LinuxHost = await open_host(self._root, self._wanted_runtime)
            self._pump = OutputPump(asyncio.get_running_loop())
            if not self._root.private:
                await self._open_store()
            self._open = True
            await self._take_up()
        except BaseException:
            await self._give_back()
            raise

    async def _open_store(self) -> None:
        # Only who needs it pays for the import of sqlite3.
        from lighterman.store.sqlite import SqliteStore

        store = SqliteStore(f"{self._root.state}/state.db")
        await store.open()
        self._store = store

    async def close(self) -> None:
        """End and remove the containers that do not live on; stop watching the others; give everything back."""
        if not self._open:
            return
        self._open = False
        leased = [entry for entry in self._entries.values() if entry.record.lease is not None or self._root.private]
        work = self._tasks.finish(self._end_all(leased), "end the containers of this engine")
        await asyncio.shield(work)
        await self._give_back()

    async def _end_all(self, entries: Sequence[Entry]) -> None:
        ends = await asyncio.gather(
            *(self.remove_container(entry, force=True) for entry in entries), return_exceptions=True
        )
        for entry, failed in zip(entries, ends, strict=True):
            if isinstance(failed, BaseException) and not isinstance(failed, NotFound):
                log.error("container %s: removing it failed: %s", entry.record.name, failed)

    async def _give_back(self) -> None:
        self._open = False
        for client in self._clients.values():
            await client.close()
        await self._tasks.close(limits.CANCEL_S)
        if hasattr(self, "_pump"):
            await self._pump.close()
        if hasattr(self, "_host"):
            await self._host.close(end_keeper=self._root.private)
        await self._store.close()
        for entry in self._entries.values():
            entry.ended.set()
        if self._root.private:
            await asyncio.to_thread(self._root.remove)
        await asyncio.to_thread(self._root.release)

    async def version(self) -> RuntimeVersion:
        """Which runtime is used by default, and why."""
        return self._host.version

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
        began = self._clock.mono()
        entry = await self._create(image, argv, name=name, stdin=stdin is not None, lease="scope", options=options)
        try:
            await self.start_container(entry)
            if stdin is not None:
                writer = entry.require_stdin()
                writer.write(stdin)
                writer.write_eof()
            out, err = await self._to_end(entry, timeout_s, max_output)
            known = self._clock.mono()
        except BaseException:
            await self._finish(self.remove_container(entry, force=True), f"undo {entry.record.name}")
            raise
        # It has ended and has told so: its name is free at once, and what is left to remove is in nobody's way.
        self._forget(entry)
        self._tasks.finish(self._delete_forgotten(entry), f"remove {entry.record.name}")
        assert entry.record.exit is not None
        return Result(
            exit=entry.record.exit,
            stdout=out[0],
            stderr=err[0],
            stdout_truncated=out[1],
            stderr_truncated=err[1],
            timings=_timings(entry, began, known),
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
            await self.start_container(entry)
            yield Container(self, entry)
        finally:
            if self._open:
                await self._finish(self.remove_container(entry, force=True), f"remove {entry.record.name}")

    async def create(
        self,
        image: str | None = None,
        argv: Sequence[str] = (),
        *,
        stdin: bool = False,
        name: str | None = None,
        lease: str | None = "process",
        **options: Unpack[Options],
    ) -> Container:
        """Make a container without starting it.

        Args: lease: `"process"`: it is killed and removed when the engine is closed; None: it lives on, which needs an
            engine with a `root` of its own.
        Raises: AlreadyExists (the name), InvalidSpec, NotFound, NotSupported, UsageError.
        """
        if lease not in ("process", "scope", None):
            raise InvalidSpec(f"lease {lease!r}: must be 'process', 'scope' or None")
        if lease is None and self._root.private:
            raise UsageError("lease=None needs an engine with a root of its own: Engine(root=DIR)")
        entry = await self._create(image, argv, name=name, stdin=stdin, lease=lease, options=options)
        return Container(self, entry)

    async def get(self, name_or_id: str) -> Container:
        """By name, id, or an unambiguous beginning of an id. Raises: NotFound, InvalidSpec if it is ambiguous."""
        entry = self._names.get(name_or_id) or self._entries.get(name_or_id)
        if entry is None and len(name_or_id) >= 4:
            found = [entry for id, entry in self._entries.items() if id.startswith(name_or_id)]
            if len(found) > 1:
                raise InvalidSpec(f"container id {name_or_id!r}: {len(found)} containers begin so, give more of it")
            entry = found[0] if found else None
        if entry is None:
            raise NotFound(f"no container {name_or_id!r:.140} in this engine")
        return Container(self, entry)

    async def containers(self) -> list[Container]:
        """All of them, the oldest first."""
        return [Container(self, entry) for entry in self._entries.values()]

    # ---- what the faces of a container ask -----------------------------------------------------------------------

    def client_of(self, entry: Entry) -> Client:
        """The client that runs it. Raises: InvalidState if nothing of it runs."""
        if entry.client is None or entry.record.id not in entry.client.containers():
            raise InvalidState(
                f"container {entry.record.name} is {entry.record.status}, not running", container=entry.record.id
            )
        return entry.client

    async def start_container(self, entry: Entry) -> None:
        """See `Container.start`."""
        self._must_be_open()
        record = entry.record
        if entry.removed.is_set():
            raise NotFound(f"container {record.name} was removed", container=record.id)
        if entry.starting or (entry.client is not None and record.id in entry.client.containers()):
            raise InvalidState(f"container {record.name} is running already", operation="start", container=record.id)
        entry.starting = True
        entry.start_asked_mono = self._clock.mono()
        entry.reason = None
        entry.ended.clear()
        try:
            runtime = await self._host.runtime(record.spec.runtime)
            entry.client = self._client(runtime.name)
            record.runtime = runtime.name
            spec = await self._spec(entry)
            await entry.client.create(record.id, spec, *self._create_options(entry))
        except BaseException as failed:
            if isinstance(failed, LightermanError):
                record.exit = not_started(str(failed), record.generation)
            entry.ended.set()
            raise
        finally:
            entry.starting = False

    async def stop_container(self, entry: Entry, grace_s: float) -> ExitRecord | None:
        """See `Container.stop`."""
        if not grace_s >= 0:
            raise InvalidSpec(f"grace_s {grace_s!r}: must be 0 seconds or more")
        if await self._end(entry, "stop", grace_s):
            await entry.ended.wait()
        return entry.record.exit

    async def signal_container(self, entry: Entry, signal: int) -> None:
        """See `Container.kill`."""
        client = entry.client
        if client is None or entry.record.id not in client.containers():
            return
        if signal == 9:
            entry.reason = entry.reason or "kill"
        await client.signal(entry.record.id, signal)

    def timings_of(self, entry: Entry) -> Timings:
        """See `Container.timings`."""
        return _timings(entry, entry.start_asked_mono, entry.end_known_mono) if entry.ended.is_set() else Timings()

    async def update_container(self, entry: Entry, resources: Resources) -> None:
        """See `Container.update`."""
        await asyncio.to_thread(self._host.check_resources, resources)
        await self.client_of(entry).update_resources(entry.record.id, resources)

    async def remove_container(self, entry: Entry, *, force: bool = False) -> None:
        """See `Container.remove`."""
        record = entry.record
        if self._entries.get(record.id) is not entry:
            if entry.removed.is_set():
                return
            raise NotFound(f"container {record.name} was removed", container=record.id)
        if entry.starting or (entry.client is not None and record.id in entry.client.containers()):
            if not force:
                raise InvalidState(
                    f"container {record.name} is {record.status}: stop it first, or remove it by force",
                    operation="remove",
                    container=record.id,
                )
            if await self._end(entry, "removed", 0):
                await entry.ended.wait()
        # Two may have waited for the same end.
        if self._entries.get(record.id) is not entry:
            return
        await self._store.delete(record.id)
        self._forget(entry)
        await self._take_away(entry)

    async def start_exec(
        self,
        entry: Entry,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        env: dict[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        terminal: bool = False,
        console_size: ConsoleSize | None = None,
    ) -> Process:
        """See `Container.start_exec`."""
        client = self.client_of(entry)
        if isinstance(argv, str):
            raise InvalidSpec(f"command {argv!r}: must be a list of arguments, not one text: use ['sh', '-c', ...]")
        if entry.process is None:
            raise InvalidState(f"container {entry.record.name} is {entry.record.status}, not running")
        config = await self._host.exec_process(
            entry.process,
            tuple(argv),
            root=f"/proc/{entry.record.pid}/root",
            env=env,
            workdir=workdir,
            user=user,
            terminal=terminal,
            console_size=console_size,
            stdin=stdin,
        )
        life = ExecEntry(secrets.token_hex(6))
        entry.execs[life.name] = life
        try:
            life.pid = await client.add_process(entry.record.id, life.name, config)
        except BaseException as failed:
            if isinstance(failed, asyncio.CancelledError):
                # The start goes on in the client; what comes of it is killed by whoever finds it unwanted.
                self._tasks.finish(self._kill_exec_when_started(entry, life), f"undo exec {life.name}")
            else:
                entry.execs.pop(life.name, None)
            raise
        return Process(self, entry, life)

    async def exec_to_end(
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
    ) -> Result:
        """See `Container.exec`."""
        began = self._clock.mono()
        process = await self.start_exec(entry, argv, stdin=stdin is not None, env=env, workdir=workdir, user=user)
        life = entry.execs[process.id]
        try:
            if stdin is not None:
                process.stdin.write(stdin)
                process.stdin.write_eof()
            captured = [
                self._capture(life.output(1), max_output),
                self._capture(life.output(2), max_output),
            ]
            try:
                async with self._clock.timeout(timeout_s):
                    await life.ended.wait()
            except TimeoutError:
                life.reason = "timeout"
                await self.signal_exec(entry, life, 9)
                await life.ended.wait()
            out, err = await captured[0], await captured[1]
        except BaseException:
            await self._finish(self._kill_exec(entry, life), f"kill exec {life.name}")
            raise
        known = self._clock.mono()
        entry.execs.pop(life.name, None)
        life.output_of.close()
        if out[0] or err[0]:
            self._tasks.finish(_remove_in_thread(f"{self._root.container(entry.record.id)}/execs/{life.name}"), "exec")
        assert life.exit is not None
        return Result(
            exit=life.exit,
            stdout=out[0],
            stderr=err[0],
            stdout_truncated=out[1],
            stderr_truncated=err[1],
            timings=Timings(total=known - began),
        )

    async def signal_exec(self, entry: Entry, life: ExecEntry, signal: int) -> None:
        """See `Process.kill`."""
        try:
            await self.client_of(entry).signal_process(entry.record.id, life.name, signal)
        except (AlreadyStopped, NotFound, InvalidState):
            return  # it has ended: that is what was wanted, or it makes no difference any more

    # ---- what the supervisor tells (Backend) ---------------------------------------------------------------------

    async def attach_streams(self, container_id: str, process_id: str, streams: Streams) -> None:
        """Take a new process's streams: output into segments, stdin behind a writer."""
        entry = self._entries.get(container_id)
        if entry is None:
            raise NotFound(f"container {container_id} was removed", container=container_id)
        if process_id == "init":
            sink = await entry.log.open_run(streams.generation)
            output = entry.output_of
            output.close()
            entry.output_of = output = type(output)()
            entry.start_times = self._host.start_times(entry.record.runtime, container_id)
        else:
            life = entry.execs.get(process_id)
            if life is None:
                life = entry.execs[process_id] = ExecEntry(process_id)
            sink = self._pump.open(f"{self._root.container(container_id)}/execs/{process_id}")
            output = life.output_of
        output.sink, output.begin, output.terminal = sink, sink.progress, streams.terminal
        take_output(streams, sink)
        if streams.stdin is not None:
            output.stdin = StdinWriter(streams.stdin, self._tasks.watch)

    async def state_changed(self, info: StateInfo) -> None:
        """One change of one container: the record, the store, then who waits."""
        entry = self._entries.get(info.container_id)
        if entry is None:
            return
        record = entry.record
        if info.state is State.START_PROCESS:
            return
        if info.state is State.EXIT_PROCESS:
            self._exec_ended(entry, info)
            return
        record.status = next_status(record.status, info.state)
        if info.state in (State.START, State.RESTORE):
            record.generation, record.pid = info.generation, info.pid
            record.started_at, record.exit = info.started_at, None
        elif info.state in (State.EXIT, State.RESTART):
            record.generation, record.pid = info.generation, 0
            record.exit = exit_record(info, entry.reason)
            entry.last_end = info
            entry.reason = None
        await self._save(entry)
        if info.state is State.EXIT:
            entry.log.end()
            entry.end_known_mono = self._clock.mono()
            entry.ended.set()

    def _exec_ended(self, entry: Entry, info: StateInfo) -> None:
        life = entry.execs.get(info.process_id)
        if life is not None:
            life.exit = exit_record(info, life.reason)
            life.ended.set()

    # ---- inside --------------------------------------------------------------------------------------------------

    async def _create(
        self,
        image: str | None,
        argv: Sequence[str],
        *,
        name: str | None,
        stdin: bool,
        lease: str | None,
        options: Options,
    ) -> Entry:
        self._must_be_open()
        spec = container_spec(image, argv, stdin=stdin, options=options)
        id = secrets.token_hex(16)
        name = check_name(name) if name is not None else f"lm-{id[:12]}"
        if name in self._names:
            raise AlreadyExists(f"a container named {name!r} exists already: remove it, or use another name")
        if (spec.image is None) == (spec.rootfs is None):
            raise InvalidSpec("a container needs an image or a rootfs, and not both")
        record = Record(id=id, name=name, spec=spec, created_at=self._clock.wall(), lease=lease)
        entry = Entry(record, ContainerLog(self._pump, Path(self._root.container(id), "logs")))
        self._entries[id] = self._names[name] = entry
        try:
            # Everything that can be wrong shows here, before anything is on disk.
            await self._spec(entry, only_check=True)
            await self._save(entry, must=True)
        except BaseException:
            self._entries.pop(id, None)
            self._names.pop(name, None)
            raise
        return entry

    async def _spec(self, entry: Entry, *, only_check: bool = False) -> Spec:
        record = entry.record
        image = await self._host.image(record.spec.image, record.spec.rootfs)
        directory = self._root.container(record.id)
        rootfs = _rootfs(record.spec, image, directory, volatile=self._root.private)
        spec = await self._host.spec(record.id, record.spec, image, rootfs, directory, write=not only_check)
        entry.process = spec.process
        return spec

    def _create_options(self, entry: Entry) -> list[CreateOption]:
        record = entry.record
        options: list[CreateOption] = [
            OutputSegments(self._root.container(record.id), limits.SEGMENT_BYTES, limits.SEGMENT_FILES),
            FirstRun(record.generation + 1),
        ]
        if record.spec.restart.name != "no":
            options.append(WithRestartPolicy(record.spec.restart))
        return options

    def _client(self, runtime: str) -> Client:
        client = self._clients.get(runtime)
        if client is None:
            client = self._clients[runtime] = Client(self._host.opened(runtime), self, clock=self._clock)
        return client

    async def _take_up(self) -> None:
        """What lived on when an earlier engine of this root was left, or died."""
        for encoded in await self._store.load():
            record = msgspec.json.decode(encoded, type=Record)
            entry = Entry(record, ContainerLog(self._pump, Path(self._root.container(record.id), "logs")))
            self._entries[record.id] = self._names[record.name] = entry
            if record.status in (Status.CREATED, Status.EXITED):
                entry.ended.set()
                continue
            record.status = Status.EXITED if record.status is Status.RESTARTING else Status.CREATED
            record.exit = None
            runtime = await self._host.runtime(record.runtime or None)
            entry.client = self._client(runtime.name)
            spec = await self._spec(entry, only_check=True)
            record.generation -= 1
            await entry.client.restore(record.id, *self._create_options(entry), spec=spec)

    def _forget(self, entry: Entry) -> None:
        """It is no longer one of ours: id and name are free."""
        self._entries.pop(entry.record.id, None)
        self._names.pop(entry.record.name, None)
        entry.record.status = Status.REMOVED
        entry.removed.set()

    async def _delete_forgotten(self, entry: Entry) -> None:
        await self._store.delete(entry.record.id)
        await self._take_away(entry)

    async def _take_away(self, entry: Entry) -> None:
        """All that a forgotten one has left, its row in the store apart."""
        entry.output_of.close()
        for life in entry.execs.values():
            life.output_of.close()
        await asyncio.to_thread(_remove_tree, self._root.container(entry.record.id))

    async def _end(self, entry: Entry, reason: str, grace_s: float) -> bool:
        """Stop it if anything of it runs; False if nothing does."""
        client = entry.client
        if client is None or entry.record.id not in client.containers():
            return False
        entry.reason = entry.reason or reason
        try:
            if grace_s:
                await client.stop(entry.record.id, grace_s=grace_s)
            else:
                await client.terminate(entry.record.id)
        except NotFound:
            pass  # it ended in the same moment
        return True

    async def _to_end(
        self, entry: Entry, timeout_s: float | None, max_output: int
    ) -> tuple[tuple[bytes, bool], tuple[bytes, bool]]:
        out = self._capture(entry.output(1), max_output)
        err = None if entry.output_of.terminal else self._capture(entry.output(2), max_output)
        try:
            async with self._clock.timeout(timeout_s):
                await entry.ended.wait()
        except TimeoutError:
            await self._end(entry, "timeout", 0)
            await entry.ended.wait()
        return await out, await err if err is not None else (b"", False)

    def _capture(self, stream: Any, max_output: int) -> asyncio.Future[tuple[bytes, bool]]:
        done: asyncio.Future[tuple[bytes, bool]] = asyncio.get_running_loop().create_future()

        async def capture() -> None:
            try:
                captured = await stream.capture(max_output)
            except BaseException as failed:
                if not done.done():
                    done.set_exception(failed if isinstance(failed, Exception) else InvalidState("the engine closed"))
                    done.exception()
                raise
            if not done.done():
                done.set_result(captured)

        self._tasks.watch(capture(), "capture output")
        return done

    async def _kill_exec(self, entry: Entry, life: ExecEntry) -> None:
        await self.signal_exec(entry, life, 9)
        await life.ended.wait()
        entry.execs.pop(life.name, None)

    async def _kill_exec_when_started(self, entry: Entry, life: ExecEntry) -> None:
        while entry.client is not None and entry.record.id in entry.client.containers() and not life.ended.is_set():
            try:
                await entry.client.signal_process(entry.record.id, life.name, 9)
            except InvalidState:
                await self._clock.sleep(0.01)
                continue
            except LightermanError:
                break
            await life.ended.wait()
        entry.execs.pop(life.name, None)

    async def _finish(self, work: Any, name: str) -> None:
        """Do it to its end even if who asked is cancelled meanwhile."""
        await asyncio.shield(self._tasks.finish(work, name))

    async def _save(self, entry: Entry, *, must: bool = False) -> None:
        try:
            await self._store.save(entry.record.id, msgspec.json.encode(entry.record))
        except StoreError as failed:
            if must:
                raise
            # What has happened has happened: the record is right in memory, and saved with the next change.
            log.error("container %s: its record was not saved: %s", entry.record.name, failed)

    def _must_be_open(self) -> None:
        if not self._open:
            raise InvalidState("the engine is not running: use `async with Engine() as engine`")


def _rootfs(spec: ContainerSpec, image: Image, directory: str, *, volatile: bool) -> Rootfs:
    if spec.rootfs is not None and spec.rootfs_rw:
        return PlainRoot(path=image.layers[0])
    # What is removed with its engine anyway needs no sync when it is unmounted.
    return Overlay(lowers=image.layers, upper=f"{directory}/upper", work=f"{directory}/work", volatile=volatile)


def _timings(entry: Entry, began: float, known: float) -> Timings:
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


def _remove_tree(path: str) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as failed:
        raise StoreError(f"{path} can't be removed: {failed}") from failed


async def _remove_in_thread(path: str) -> None:
    await asyncio.to_thread(_remove_tree, path)
