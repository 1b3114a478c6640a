"""A backend that writes down what it is told, reads what the processes write, and misbehaves to order."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from lighterman.errors import AlreadyClosed, BrokenPipe, InternalError
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.order import OrderChecker
from lighterman.supervisor.streams import ReadStream, Streams

__all__ = ["RecordingBackend"]


class RecordingBackend:
    """Records events and output, and holds every event to the legal order.

    Attributes (set them before or during a test):
        events: every event, in the order told. output: bytes by (container id, process id, stream name), all runs.
        streams: the streams handed over, the latest by (container id, process id). attached: how often, in order.
        reads: whether it reads what it is handed; False is a consumer that makes no progress.
        attach_error, state_error: raised from the one, the other method. attach_hangs: never returns.
        on_attach, on_state: called inside; may call back into the client.
        violations: events out of order, and calls that overlapped for one container; empty when all is well.
    """

    def __init__(self) -> None:
        self.events: list[StateInfo] = []
        self.output: dict[tuple[str, str, str], bytes] = {}
        self.streams: dict[tuple[str, str], Streams] = {}
        self.attached: list[tuple[str, str]] = []
        self.reads = True
        self.attach_error: BaseException | None = None
        self.attach_hangs = False
        self.state_error: BaseException | None = None
        self.on_attach: Callable[[str, str, Streams], Awaitable[None] | None] | None = None
        self.on_state: Callable[[StateInfo], Awaitable[None] | None] | None = None
        self.violations: list[str] = []
        self._checkers: dict[str, OrderChecker] = {}
        self._telling: set[str] = set()
        self._changed = asyncio.Event()
        self._readers: set[asyncio.Task[None]] = set()

    # ---- what the lifecycle calls ----

    async def attach_streams(self, container_id: str, process_id: str, streams: Streams) -> None:
        """Take the streams and begin to read them, in tasks of its own."""
        self.attached.append((container_id, process_id))
        self.streams[container_id, process_id] = streams
        if self.on_attach is not None:
            waiting = self.on_attach(container_id, process_id, streams)
            if inspect.isawaitable(waiting):
                await waiting
        if self.attach_hangs:
            await asyncio.get_running_loop().create_future()
        if self.attach_error is not None:
            raise self.attach_error.with_traceback(None)
        if self.reads:
            self.read(container_id, process_id, streams)

    async def state_changed(self, info: StateInfo) -> None:
        """Write it down."""
        if info.container_id in self._telling:
            self.violations.append(f"{info.state} of {info.container_id!r} was told during another event of it")
        self._telling.add(info.container_id)
        try:
            self._check(info)
            self.events.append(info)
            self._changed.set()
            self._changed = asyncio.Event()
            if self.on_state is not None:
                waiting = self.on_state(info)
                if inspect.isawaitable(waiting):
                    await waiting
            if self.state_error is not None:
                raise self.state_error.with_traceback(None)
        finally:
            self._telling.discard(info.container_id)

    def _check(self, info: StateInfo) -> None:
        checker = self._checkers.get(info.container_id)
        if checker is None or checker.is_ended:
            checker = self._checkers[info.container_id] = OrderChecker(info.container_id)
        try:
            checker.accept(info)
        except InternalError as illegal:
            self.violations.append(str(illegal))

    # ---- what a test calls ----

    def read(self, container_id: str, process_id: str, streams: Streams) -> None:
        """Begin to read streams into `output`."""
        for name, stream in (("stdout", streams.stdout), ("stderr", streams.stderr)):
            if stream is not None:
                reading = asyncio.create_task(self._read((container_id, process_id, name), stream), name=f"read {name}")
                self._readers.add(reading)
                reading.add_done_callback(self._readers.discard)

    async def _read(self, key: tuple[str, str, str], stream: ReadStream) -> None:
        self.output.setdefault(key, b"")
        while data := await stream.read():
            self.output[key] += data

    def stdout(self, container_id: str, process_id: str = "init") -> bytes:
        """What was read of its stdout, in all runs."""
        return self.output.get((container_id, process_id, "stdout"), b"")

    def stderr(self, container_id: str, process_id: str = "init") -> bytes:
        """What was read of its stderr, in all runs."""
        return self.output.get((container_id, process_id, "stderr"), b"")

    async def write_stdin(self, container_id: str, data: bytes, process_id: str = "init") -> None:
        """Write to a process's stdin and close it. Raises: InternalError if it has none."""
        stdin = self.streams[container_id, process_id].stdin
        if stdin is None:
            raise InternalError(f"{container_id}/{process_id} has no stdin")
        try:
            await stdin.write(data)
        except (BrokenPipe, AlreadyClosed):
            return
        await stdin.close()

    def of(self, container_id: str, *states: State) -> list[StateInfo]:
        """The events of one container, of these states or all."""
        return [
            info for info in self.events if info.container_id == container_id and (not states or info.state in states)
        ]

    def states(self, container_id: str) -> list[str]:
        """The names of its events, in order."""
        return [str(info.state) for info in self.of(container_id)]

    async def wait_for(self, container_id: str, state: State, count: int = 1) -> StateInfo:
        """Return the `count`-th event of that state, when it is there."""
        while len(found := self.of(container_id, state)) < count:
            await self._changed.wait()
        return found[count - 1]

    async def discard(self) -> None:
        """Stop reading; the test is over."""
        for reading in self._readers:
            reading.cancel()
        if self._readers:
            await asyncio.wait(set(self._readers))
