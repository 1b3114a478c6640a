"""vmcompute.dll, schema 1: a call that answers "pending" is completed by a notification to a registered callback.

Prototypes as hcsshim's `internal/vmcompute` and Microsoft's C# binding have them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from lighterman import limits
from lighterman.clock import Clock
from lighterman.errors import LightermanError
from lighterman.runtimes.hcs import callbacks
from lighterman.runtimes.hcs.abandon import abandoned
from lighterman.runtimes.hcs.choices import KILL_BY_SECOND_HANDLE, OPTIONS, TERMINATED_IS_CLEAN
from lighterman.runtimes.hcs.codes import Meaning, is_failure, is_pending, meaning_of
from lighterman.runtimes.hcs.failures import UnexpectedExit, code_behind, failure
from lighterman.runtimes.hcs.gate import Gate, undoable
from lighterman.runtimes.hcs.native import Answer, Function, Library, ProcessInfo
from lighterman.runtimes.hcs.notifications import Happening, Record
from lighterman.runtimes.hcs.threads import CallThreads

__all__ = ["FUNCTIONS", "VmcomputeBinding"]

log = logging.getLogger(__name__)

_WITH_OPTIONS = Function(("handle", "text", "out_text"))

FUNCTIONS = {
    "HcsEnumerateComputeSystems": Function(("text", "out_text", "out_text")),
    "HcsCreateComputeSystem": Function(("text", "text", "handle", "out_handle", "out_text")),
    "HcsOpenComputeSystem": Function(("text", "out_handle", "out_text")),
    "HcsCloseComputeSystem": Function(("handle",)),
    "HcsStartComputeSystem": _WITH_OPTIONS,
    "HcsShutdownComputeSystem": _WITH_OPTIONS,
    "HcsTerminateComputeSystem": _WITH_OPTIONS,
    "HcsPauseComputeSystem": _WITH_OPTIONS,
    "HcsResumeComputeSystem": _WITH_OPTIONS,
    "HcsGetComputeSystemProperties": Function(("handle", "text", "out_text", "out_text")),
    "HcsModifyComputeSystem": Function(("handle", "text", "out_text")),
    "HcsRegisterComputeSystemCallback": Function(("handle", "pointer", "handle", "out_handle")),
    "HcsUnregisterComputeSystemCallback": Function(("handle",)),
    "HcsCreateProcess": Function(("handle", "text", "out_info", "out_handle", "out_text")),
    "HcsOpenProcess": Function(("handle", "u32", "out_handle", "out_text")),
    "HcsCloseProcess": Function(("handle",)),
    "HcsTerminateProcess": Function(("handle", "out_text")),
    "HcsGetProcessInfo": Function(("handle", "out_info", "out_text")),
    "HcsGetProcessProperties": Function(("handle", "out_text", "out_text")),
    "HcsModifyProcess": Function(("handle", "text", "out_text")),
    "HcsRegisterProcessCallback": Function(("handle", "pointer", "handle", "out_handle")),
    "HcsUnregisterProcessCallback": Function(("handle",)),
    "HcsGetServiceProperties": Function(("text", "out_text", "out_text")),
}


@dataclass(frozen=True, slots=True)
class _Opened:
    """A handle with its registered callback."""

    handle: int
    registration: int
    pending: bool = False
    info: ProcessInfo | None = None


class VmcomputeBinding:
    """See `binding.Binding`.

    Args: close_std: closes one of our ends of a process's streams.
    """

    name = "vmcompute"
    schema = 1

    def __init__(
        self, library: Library, threads: CallThreads, clock: Clock, close_std: Callable[[int], object]
    ) -> None:
        self.library = library
        self.threads = threads
        self.clock = clock
        self.close_std = close_std

    async def create(self, id: str, configuration: str) -> VmcomputeSystem:
        record = self._record(id)
        number = callbacks.enter(record)

        def make() -> _Opened:
            answer = self.call("create", id, "HcsCreateComputeSystem", id, configuration, 0)
            return self._with_callback(id, answer, number)

        system = await self._system(id, make, number, record)
        if system.opened.pending:
            try:
                await record.wait(Happening.CREATED, "create", limits.HCS_CREATE_S)
            except BaseException:
                await abandoned(system, self.clock)
                raise
        return system

    async def open(self, id: str) -> VmcomputeSystem:
        record = self._record(id)
        number = callbacks.enter(record)

        def open_() -> _Opened:
            return self._with_callback(id, self.call("open", id, "HcsOpenComputeSystem", id), number)

        return await self._system(id, open_, number, record)

    async def enumerate(self, query: str) -> str:
        return await self._ask("enumerate", "HcsEnumerateComputeSystems", query)

    async def service_properties(self, query: str) -> str:
        return await self._ask("service properties", "HcsGetServiceProperties", query)

    async def _ask(self, operation: str, function: str, query: str) -> str:
        answer = await self.threads.run(lambda: self.call(operation, None, function, query))
        return answer.texts[0] or ""

    # ---- on a thread ----

    def call(
        self, operation: str, container: str | None, function: str, *given: object, pid: int | None = None
    ) -> Answer:
        """Call; raises by the code, "pending" apart."""
        answer = self.library.call(function, *given)
        if is_failure(answer.value) and not is_pending(answer.value):
            raise failure(answer.value, operation, container, pid=pid, result=answer.result)
        return answer

    def _with_callback(self, id: str, answer: Answer, number: int) -> _Opened:
        """Register before anything is waited for: what has happened already is told then."""
        handle = answer.handles[0]
        try:
            registered = self.call(
                "register", id, "HcsRegisterComputeSystemCallback", handle, callbacks.notification_address(), number
            )
        except BaseException:
            self.library.call("HcsTerminateComputeSystem", handle, OPTIONS)
            self.library.call("HcsCloseComputeSystem", handle)
            raise
        registration = registered.handles[0]
        callbacks.registered(number, lambda: self.library.call("HcsUnregisterComputeSystemCallback", registration))
        return _Opened(handle, registration, is_pending(answer.value))

    def close_system(self, opened: _Opened, number: int) -> None:
        """Unregister, which waits for a callback that runs, and close."""
        callbacks.unregister(number)
        closed = self.library.call("HcsCloseComputeSystem", opened.handle)
        if is_failure(closed.value):
            raise failure(closed.value, "close", None)

    # ---- on the loop ----

    def _record(self, id: str) -> Record:
        return Record(id, callbacks.SYSTEM_SLOTS, self.clock)

    async def _system(self, id: str, make: Callable[[], _Opened], number: int, record: Record) -> VmcomputeSystem:
        def undo(opened: _Opened) -> None:
            self.library.call("HcsTerminateComputeSystem", opened.handle, OPTIONS)
            self.close_system(opened, number)

        try:
            opened = await undoable(self.threads, self.threads.run(make), undo)
        except BaseException:
            callbacks.leave(number)
            raise
        return VmcomputeSystem(self, id, opened, number, record)


class VmcomputeSystem:
    """See `binding.SystemHandle`."""

    def __init__(self, binding: VmcomputeBinding, id: str, opened: _Opened, number: int, record: Record) -> None:
        self.id = id
        self.record = record
        self.opened = opened
        self._binding = binding
        self._number = number
        self.gate = Gate(binding.threads, f"container {id}")

    async def start(self) -> None:
        await self._complete("start", "HcsStartComputeSystem", Happening.STARTED, limits.HCS_START_S)

    async def pause(self) -> None:
        self.record.clear(Happening.PAUSED)
        await self._complete("pause", "HcsPauseComputeSystem", Happening.PAUSED, limits.HCS_PAUSE_S)

    async def resume(self) -> None:
        self.record.clear(Happening.RESUMED)
        await self._complete("resume", "HcsResumeComputeSystem", Happening.RESUMED, limits.HCS_PAUSE_S)

    async def shutdown(self) -> None:
        await self._call("shutdown", "HcsShutdownComputeSystem", OPTIONS)

    async def terminate(self) -> None:
        await self._call("terminate", "HcsTerminateComputeSystem", OPTIONS)

    async def wait_exit(self) -> None:
        try:
            await self.record.wait(Happening.SYSTEM_EXITED, "wait")
        except UnexpectedExit as failed:
            if not TERMINATED_IS_CLEAN or meaning_of(code_behind(failed) or 0) is not Meaning.TERMINATED:
                raise

    async def properties(self, query: str) -> str:
        answer = await self._call("properties", "HcsGetComputeSystemProperties", query)
        return answer.texts[0] or "{}"

    async def modify(self, request: str) -> None:
        await self._call("modify", "HcsModifyComputeSystem", request)

    async def create_process(self, document: str) -> VmcomputeProcess:
        record = Record(self.id, callbacks.PROCESS_SLOTS, self._binding.clock)
        number = callbacks.enter(record)

        def make() -> _Opened:
            answer = self._binding.call("create_process", self.id, "HcsCreateProcess", self.opened.handle, document)
            return self._process_with_callback(answer, number)

        return await self._process(make, number, record)

    async def open_process(self, pid: int) -> VmcomputeProcess:
        record = Record(self.id, callbacks.PROCESS_SLOTS, self._binding.clock)
        number = callbacks.enter(record)

        def open_() -> _Opened:
            handle = self.opened.handle
            answer = self._binding.call("open_process", self.id, "HcsOpenProcess", handle, pid, pid=pid)
            return self._process_with_callback(answer, number, pid)

        return await self._process(open_, number, record)

    async def _process(self, make: Callable[[], _Opened], number: int, record: Record) -> VmcomputeProcess:
        def undo(opened: _Opened) -> None:
            self._binding.library.call("HcsTerminateProcess", opened.handle)
            self.close_process(opened, number)
            self._close_std(opened)

        try:
            opened = await self.gate.call(make, undo)
        except BaseException:
            callbacks.leave(number)
            raise
        return VmcomputeProcess(self._binding, self, opened, number, record)

    async def close(self) -> None:
        await self.gate.close(self.record.close, lambda: self._binding.close_system(self.opened, self._number))

    async def _call(self, operation: str, function: str, *given: object) -> Answer:
        return await self.gate.call(
            lambda: self._binding.call(operation, self.id, function, self.opened.handle, *given)
        )

    async def _complete(self, operation: str, function: str, completion: Happening, limit_s: float) -> None:
        answer = await self._call(operation, function, OPTIONS)
        if is_pending(answer.value):
            await self.record.wait(completion, operation, limit_s)

    # ---- on a thread ----

    def _process_with_callback(self, answer: Answer, number: int, pid: int | None = None) -> _Opened:
        binding = self._binding
        opened = _Opened(answer.handles[0], 0, info=answer.info)
        try:
            registered = binding.call(
                "register",
                self.id,
                "HcsRegisterProcessCallback",
                opened.handle,
                callbacks.notification_address(),
                number,
                pid=pid,
            )
        except BaseException:
            if opened.info is not None:
                binding.library.call("HcsTerminateProcess", opened.handle)
            binding.library.call("HcsCloseProcess", opened.handle)
            self._close_std(opened)
            raise
        registration = registered.handles[0]
        callbacks.registered(number, lambda: binding.library.call("HcsUnregisterProcessCallback", registration))
        info = answer.info or ProcessInfo(pid or 0, 0, 0, 0)
        return _Opened(opened.handle, registration, info=info)

    def _close_std(self, opened: _Opened) -> None:
        for handle in opened.info.handles if opened.info is not None else ():
            self._binding.close_std(handle)

    def close_process(self, opened: _Opened, number: int) -> None:
        """Unregister and close."""
        callbacks.unregister(number)
        closed = self._binding.library.call("HcsCloseProcess", opened.handle)
        if is_failure(closed.value):
            raise failure(closed.value, "close process", self.id)


class VmcomputeProcess:
    """See `binding.ProcessHandle`."""

    def __init__(
        self, binding: VmcomputeBinding, system: VmcomputeSystem, opened: _Opened, number: int, record: Record
    ) -> None:
        assert opened.info is not None
        self.record = record
        self._binding = binding
        self._system = system
        self._opened = opened
        self._number = number
        self._gate = Gate(binding.threads, f"process {opened.info.pid} in container {system.id}")
        self._std: ProcessInfo | None = opened.info if opened.info.handles else None
        self._pid = opened.info.pid

    @property
    def pid(self) -> int:
        return self._pid

    async def std_handles(self) -> ProcessInfo:
        if self._std is not None:
            std, self._std = self._std, None
            return std
        answer = await self._gate.call(
            lambda: self._call("stdio", "HcsGetProcessInfo"), lambda answer: self._close_all(answer.info)
        )
        assert answer.info is not None
        return answer.info

    async def status(self) -> str:
        answer = await self._gate.call(lambda: self._call("process properties", "HcsGetProcessProperties"))
        return answer.texts[0] or ""

    async def modify(self, settings: str) -> None:
        await self._gate.call(lambda: self._call("modify process", "HcsModifyProcess", settings))

    async def kill(self) -> None:
        await self._gate.call(self._kill)

    async def close(self) -> None:
        await self._gate.close(self.record.close, self._close)

    # ---- on a thread ----

    def _call(self, operation: str, function: str, *given: object) -> Answer:
        return self._binding.call(operation, self._system.id, function, self._opened.handle, *given, pid=self._pid)

    def _kill(self) -> None:
        if not KILL_BY_SECOND_HANDLE:
            self._call("kill", "HcsTerminateProcess")
            return
        try:
            self._kill_by_second_handle()
        except LightermanError as failed:
            if not isinstance(failed, _OpenFailed):
                raise
            log.debug("container %s: no second handle for a kill: %s", self._system.id, failed.__cause__)
            self._call("kill", "HcsTerminateProcess")

    def _kill_by_second_handle(self) -> None:
        id, call = self._system.id, self._binding.library.call
        with contextlib.ExitStack() as opened:
            try:
                system = self._binding.call("open", id, "HcsOpenComputeSystem", id).handles[0]
                opened.callback(call, "HcsCloseComputeSystem", system)
                process = self._binding.call("open_process", id, "HcsOpenProcess", system, self._pid).handles[0]
                opened.callback(call, "HcsCloseProcess", process)
            except LightermanError as failed:
                raise _OpenFailed(str(failed)) from failed
            self._binding.call("kill", id, "HcsTerminateProcess", process, pid=self._pid)

    def _close(self) -> None:
        self._system.close_process(self._opened, self._number)
        self._close_all(self._std)
        self._std = None

    def _close_all(self, std: ProcessInfo | None) -> None:
        for handle in std.handles if std is not None else ():
            self._binding.close_std(handle)


class _OpenFailed(LightermanError):
    """No second handle could be had."""
