"""computecore.dll, schema 2: every call is tracked by an operation, ends are told by events. Process isolation only.

Prototypes as Microsoft documents them ("Host Compute System API reference"). A handle of one DLL means nothing to the
other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import OperationTimeout
from lighterman.runtimes.hcs import callbacks
from lighterman.runtimes.hcs.choices import TERMINATED_IS_CLEAN
from lighterman.runtimes.hcs.codes import Meaning, is_failure, meaning_of
from lighterman.runtimes.hcs.failures import UnexpectedExit, code_behind, failure
from lighterman.runtimes.hcs.gate import Gate, undoable
from lighterman.runtimes.hcs.native import Answer, Function, Library, ProcessInfo
from lighterman.runtimes.hcs.notifications import Happening, Record
from lighterman.runtimes.hcs.threads import CallThreads

__all__ = ["FUNCTIONS", "ComputecoreBinding"]

T = TypeVar("T")

GENERIC_ALL = 0x10000000
FOR_EVER = 0xFFFFFFFF
NO_EVENT_OPTIONS = 0
WAIT = "HcsWaitForOperationResult"
WAIT_FOR_INFO = "HcsWaitForOperationResultAndProcessInfo"

_ON_SYSTEM = Function(("handle", "handle", "text"))
FUNCTIONS = {
    "HcsCreateOperation": Function(("pointer", "pointer"), "handle"),
    "HcsCloseOperation": Function(("handle",), "void"),
    WAIT: Function(("handle", "u32", "out_text")),
    WAIT_FOR_INFO: Function(("handle", "u32", "out_info", "out_text")),
    "HcsEnumerateComputeSystems": Function(("text", "handle")),
    "HcsCreateComputeSystem": Function(("text", "text", "handle", "pointer", "out_handle")),
    "HcsOpenComputeSystem": Function(("text", "u32", "out_handle")),
    "HcsCloseComputeSystem": Function(("handle",), "void"),
    "HcsStartComputeSystem": _ON_SYSTEM,
    "HcsShutDownComputeSystem": _ON_SYSTEM,
    "HcsTerminateComputeSystem": _ON_SYSTEM,
    "HcsPauseComputeSystem": _ON_SYSTEM,
    "HcsResumeComputeSystem": _ON_SYSTEM,
    "HcsGetComputeSystemProperties": _ON_SYSTEM,
    "HcsModifyComputeSystem": Function(("handle", "handle", "text", "pointer")),
    "HcsSetComputeSystemCallback": Function(("handle", "i32", "handle", "pointer")),
    "HcsCreateProcess": Function(("handle", "text", "handle", "pointer", "out_handle")),
    "HcsOpenProcess": Function(("handle", "u32", "u32", "out_handle")),
    "HcsCloseProcess": Function(("handle",), "void"),
    "HcsTerminateProcess": _ON_SYSTEM,
    "HcsGetProcessInfo": Function(("handle", "handle")),
    "HcsGetProcessProperties": _ON_SYSTEM,
    "HcsModifyProcess": _ON_SYSTEM,
    "HcsSetProcessCallback": Function(("handle", "i32", "handle", "pointer")),
    "HcsGetServiceProperties": Function(("text", "out_text")),
}


@dataclass(frozen=True, slots=True)
class _Opened:
    handle: int
    info: ProcessInfo | None = None


class ComputecoreBinding:
    """See `binding.Binding`.

    Args: close_std: closes one of our ends of a process's streams.
    """

    name = "computecore"
    schema = 2

    def __init__(
        self, library: Library, threads: CallThreads, clock: Clock, close_std: Callable[[int], object]
    ) -> None:
        self.library = library
        self.threads = threads
        self.clock = clock
        self.close_std = close_std

    async def create(self, id: str, configuration: str) -> ComputecoreSystem:
        def make(number: int) -> int:
            return self._created(id, configuration, number)

        return await within(self.clock, limits.HCS_CREATE_S, "create", id, lambda: self._system(id, make))

    async def open(self, id: str) -> ComputecoreSystem:
        def open_(number: int) -> int:
            handle = self.plain("open", id, "HcsOpenComputeSystem", id, GENERIC_ALL).handles[0]
            return self._with_callback(id, handle, number)

        return await self._system(id, open_)

    async def enumerate(self, query: str) -> str:
        def call(tracked: int) -> Answer:
            return self.library.call("HcsEnumerateComputeSystems", query, tracked)

        answer = await self.threads.run(lambda: self.operate("enumerate", None, call))
        return answer.texts[0] or ""

    async def service_properties(self, query: str) -> str:
        answer = await self.threads.run(
            lambda: self.plain("service properties", None, "HcsGetServiceProperties", query)
        )
        return answer.texts[0] or ""

    async def _system(self, id: str, make: Callable[[int], int]) -> ComputecoreSystem:
        record = Record(id, callbacks.SYSTEM_SLOTS, self.clock)
        number = callbacks.enter(record)

        def undo(handle: int) -> None:
            self.submit("terminate", id, "HcsTerminateComputeSystem", handle)
            callbacks.unregister(number)

        try:
            handle = await undoable(self.threads, self.threads.run(lambda: make(number)), undo)
        except BaseException:
            callbacks.leave(number)
            raise
        return ComputecoreSystem(self, id, handle, number, record)

    # ---- on a thread ----

    def plain(self, operation: str, container: str | None, function: str, *given: object) -> Answer:
        """A call that no operation tracks."""
        answer = self.library.call(function, *given)
        if is_failure(answer.value):
            raise failure(answer.value, operation, container, result=answer.result)
        return answer

    def operate(
        self,
        operation: str,
        container: str | None,
        call: Callable[[int], Answer],
        *,
        pid: int | None = None,
        waiter: str = WAIT,
    ) -> Answer:
        """Make a call, wait as long as it takes, give the operation's result. Raises by the code.

        Nothing is torn down under a call that hangs: the DLL crashes then. Who can't wait leaves the thread behind.
        """
        tracked = self.library.call("HcsCreateOperation", None, None).value
        try:
            asked = call(tracked)
            if is_failure(asked.value):
                raise failure(asked.value, operation, container, pid=pid)
            done = self.library.call(waiter, tracked, FOR_EVER)
            if is_failure(done.value):
                raise failure(done.value, operation, container, pid=pid, result=done.result)
            return done
        finally:
            self.library.call("HcsCloseOperation", tracked)

    def submit(self, operation: str, container: str, function: str, handle: int) -> None:
        """Ask only: the operation is closed at once, and the event of the exit is the answer."""
        tracked = self.library.call("HcsCreateOperation", None, None).value
        try:
            asked = self.library.call(function, handle, tracked, None)
        finally:
            self.library.call("HcsCloseOperation", tracked)
        if is_failure(asked.value):
            raise failure(asked.value, operation, container)

    def _created(self, id: str, configuration: str, number: int) -> int:
        made: list[int] = []

        def call(tracked: int) -> Answer:
            answer = self.library.call("HcsCreateComputeSystem", id, configuration, tracked, None)
            made.extend(handle for handle in answer.handles if handle)
            return answer

        try:
            self.operate("create", id, call)
        except BaseException:
            for handle in made:
                self.library.call("HcsCloseComputeSystem", handle)
            raise
        return self._with_callback(id, made[0], number)

    def _with_callback(self, id: str, handle: int, number: int) -> int:
        try:
            self.plain(
                "register",
                id,
                "HcsSetComputeSystemCallback",
                handle,
                NO_EVENT_OPTIONS,
                number,
                callbacks.event_address(),
            )
        except BaseException:
            self.submit("terminate", id, "HcsTerminateComputeSystem", handle)
            self.library.call("HcsCloseComputeSystem", handle)
            raise
        # Closing takes the callback away, and waits for one that runs.
        callbacks.registered(number, lambda: self.library.call("HcsCloseComputeSystem", handle))
        return handle


class ComputecoreSystem:
    """See `binding.SystemHandle`."""

    def __init__(self, binding: ComputecoreBinding, id: str, handle: int, number: int, record: Record) -> None:
        self.id = id
        self.record = record
        self._handle = handle
        self._binding = binding
        self._number = number
        self._gate = Gate(binding.threads, f"container {id}")

    async def start(self) -> None:
        await self._bounded("start", "HcsStartComputeSystem", limits.HCS_START_S)

    async def pause(self) -> None:
        await self._bounded("pause", "HcsPauseComputeSystem", limits.HCS_PAUSE_S)

    async def resume(self) -> None:
        await self._bounded("resume", "HcsResumeComputeSystem", limits.HCS_PAUSE_S)

    async def shutdown(self) -> None:
        await self._submit("shutdown", "HcsShutDownComputeSystem")

    async def terminate(self) -> None:
        await self._submit("terminate", "HcsTerminateComputeSystem")

    async def wait_exit(self) -> None:
        try:
            await self.record.wait(Happening.SYSTEM_EXITED, "wait")
        except UnexpectedExit as failed:
            if not TERMINATED_IS_CLEAN or meaning_of(code_behind(failed) or 0) is not Meaning.TERMINATED:
                raise

    async def properties(self, query: str) -> str:
        answer = await self._gate.call(lambda: self._operate("properties", "HcsGetComputeSystemProperties", query))
        return answer.texts[0] or "{}"

    async def modify(self, request: str) -> None:
        await self._gate.call(lambda: self._operate("modify", "HcsModifyComputeSystem", request, None))

    async def create_process(self, document: str) -> ComputecoreProcess:
        return await self._process(lambda number: self._created_process(document, number))

    async def open_process(self, pid: int) -> ComputecoreProcess:
        def open_(number: int) -> _Opened:
            answer = self._binding.plain("open_process", self.id, "HcsOpenProcess", self._handle, pid, GENERIC_ALL)
            opened = _Opened(answer.handles[0], ProcessInfo(pid, 0, 0, 0))
            self._set_callback(opened, number)
            return opened

        return await self._process(open_)

    async def close(self) -> None:
        await self._gate.close(self.record.close, self._close)

    def _close(self) -> None:
        callbacks.unregister(self._number)

    async def _bounded(self, operation: str, function: str, limit_s: float) -> None:
        async def call() -> Answer:
            return await self._gate.call(lambda: self._operate(operation, function, None))

        await within(self._binding.clock, limit_s, operation, self.id, call)

    async def _submit(self, operation: str, function: str) -> None:
        await self._gate.call(lambda: self._binding.submit(operation, self.id, function, self._handle))

    async def _process(self, make: Callable[[int], _Opened]) -> ComputecoreProcess:
        record = Record(self.id, callbacks.PROCESS_SLOTS, self._binding.clock)
        number = callbacks.enter(record)

        def undo(opened: _Opened) -> None:
            self._discard(opened, number, kill=True)

        try:
            opened = await self._gate.call(lambda: make(number), undo)
        except BaseException:
            callbacks.leave(number)
            raise
        return ComputecoreProcess(self._binding, self.id, opened, number, record)

    # ---- on a thread ----

    def _operate(self, operation: str, function: str, *given: object) -> Answer:
        library = self._binding.library
        return self._binding.operate(operation, self.id, lambda op: library.call(function, self._handle, op, *given))

    def _created_process(self, document: str, number: int) -> _Opened:
        made: list[int] = []

        def call(tracked: int) -> Answer:
            answer = self._binding.library.call("HcsCreateProcess", self._handle, document, tracked, None)
            made.extend(handle for handle in answer.handles if handle)
            return answer

        try:
            done = self._binding.operate("create_process", self.id, call, waiter=WAIT_FOR_INFO)
        except BaseException:
            for handle in made:
                self._binding.library.call("HcsCloseProcess", handle)
            raise
        opened = _Opened(made[0], done.info)
        self._set_callback(opened, number)
        return opened

    def _set_callback(self, opened: _Opened, number: int) -> None:
        try:
            self._binding.plain(
                "register",
                self.id,
                "HcsSetProcessCallback",
                opened.handle,
                NO_EVENT_OPTIONS,
                number,
                callbacks.event_address(),
            )
        except BaseException:
            self._discard(opened, number, kill=bool(opened.info and opened.info.handles))
            raise
        callbacks.registered(number, lambda: self._binding.library.call("HcsCloseProcess", opened.handle))

    def _discard(self, opened: _Opened, number: int, *, kill: bool) -> None:
        if kill:
            self._binding.submit("kill", self.id, "HcsTerminateProcess", opened.handle)
        if not callbacks.unregister(number):
            self._binding.library.call("HcsCloseProcess", opened.handle)
        for handle in opened.info.handles if opened.info is not None else ():
            self._binding.close_std(handle)


class ComputecoreProcess:
    """See `binding.ProcessHandle`."""

    def __init__(
        self, binding: ComputecoreBinding, container: str, opened: _Opened, number: int, record: Record
    ) -> None:
        assert opened.info is not None
        self.record = record
        self._binding = binding
        self._container = container
        self._handle = opened.handle
        self._number = number
        self._pid = opened.info.pid
        self._std: ProcessInfo | None = opened.info if opened.info.handles else None
        self._gate = Gate(binding.threads, f"process {self._pid} in container {container}")

    @property
    def pid(self) -> int:
        return self._pid

    async def std_handles(self) -> ProcessInfo:
        if self._std is not None:
            std, self._std = self._std, None
            return std

        def ask() -> Answer:
            return self._operate("stdio", "HcsGetProcessInfo", waiter=WAIT_FOR_INFO)

        answer = await self._gate.call(ask, lambda answer: self._close_all(answer.info))
        assert answer.info is not None
        return answer.info

    async def status(self) -> str:
        answer = await self._gate.call(lambda: self._operate("process properties", "HcsGetProcessProperties", None))
        return answer.texts[0] or ""

    async def modify(self, settings: str) -> None:
        await self._gate.call(lambda: self._operate("modify process", "HcsModifyProcess", settings))

    async def kill(self) -> None:
        await self._gate.call(lambda: self._operate("kill", "HcsTerminateProcess", None))

    async def close(self) -> None:
        def close() -> None:
            callbacks.unregister(self._number)
            self._close_all(self._std)
            self._std = None

        await self._gate.close(self.record.close, close)

    # ---- on a thread ----

    def _operate(self, operation: str, function: str, *given: object, waiter: str = WAIT) -> Answer:
        library = self._binding.library
        return self._binding.operate(
            operation,
            self._container,
            lambda op: library.call(function, self._handle, op, *given),
            pid=self._pid,
            waiter=waiter,
        )

    def _close_all(self, std: ProcessInfo | None) -> None:
        for handle in std.handles if std is not None else ():
            self._binding.close_std(handle)


async def within(clock: Clock, limit_s: float, operation: str, container: str, call: Callable[[], Awaitable[T]]) -> T:
    """Bound a call that goes on on its thread. Raises: OperationTimeout."""
    try:
        async with clock.timeout(limit_s):
            return await call()
    except TimeoutError as late:
        raise OperationTimeout(
            f"container {container} encountered an error during {operation}: no answer in {limit_s:g} s",
            operation=operation,
            container=container,
        ) from late
