"""Calls of a DLL of the service: arguments by a table, every string that it lends copied and freed, no HRESULT raised.

A `Library` is safe to call from any thread; a call blocks as long as the service does.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lighterman.errors import NotSupported, RuntimeUnavailable
from lighterman.runtimes.hcs.text import read_wide, wide

__all__ = [
    "Answer",
    "Function",
    "Guid",
    "Library",
    "ProcessInfo",
    "ProcessInformation",
    "in_system_directory",
    "load_dll",
]

LOAD_LIBRARY_SEARCH_SYSTEM32 = 0x800  # so that no DLL beside the program is taken for the system's
INVALID_HANDLE = (1 << 8 * ctypes.sizeof(ctypes.c_void_p)) - 1


class ProcessInformation(ctypes.Structure):
    """HCS_PROCESS_INFORMATION: 32 bytes on 64-bit Windows."""

    _fields_ = (
        ("ProcessId", ctypes.c_uint32),
        ("Reserved", ctypes.c_uint32),
        ("StdInput", ctypes.c_void_p),
        ("StdOutput", ctypes.c_void_p),
        ("StdError", ctypes.c_void_p),
    )


class Guid(ctypes.Structure):
    """GUID: 16 bytes."""

    _fields_ = (
        ("Data1", ctypes.c_uint32),
        ("Data2", ctypes.c_uint16),
        ("Data3", ctypes.c_uint16),
        ("Data4", ctypes.c_uint8 * 8),
    )


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process's number and our ends of its streams; 0 for what was not asked for."""

    pid: int
    stdin: int
    stdout: int
    stderr: int

    @property
    def handles(self) -> tuple[int, ...]:
        """Those that there are."""
        return tuple(handle for handle in (self.stdin, self.stdout, self.stderr) if handle)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call gave: its return value, unsigned, and what its out parameters hold, in their order."""

    value: int
    texts: tuple[str | None, ...] = ()
    handles: tuple[int, ...] = ()
    info: ProcessInfo | None = None

    @property
    def result(self) -> str | None:
        """The error document: the last text."""
        return self.texts[-1] if self.texts else None


@dataclass(frozen=True, slots=True)
class Function:
    """A prototype: kinds of parameters, and of the returned value.

    Kinds: `text` (PCWSTR), `handle`, `u32`, `i32`, `size`, `u64`, `pointer` (an address or None); and, made here, the
    out parameters `out_text`, `out_handle`, `out_info`. Returned: `hresult`, `void`, `handle`, `i32`.
    """

    parameters: tuple[str, ...]
    returns: str = "hresult"


_C_TYPES: Mapping[str, Any] = {
    "text": ctypes.c_void_p,
    "handle": ctypes.c_void_p,
    "pointer": ctypes.c_void_p,
    "u32": ctypes.c_uint32,
    "i32": ctypes.c_int32,
    "u64": ctypes.c_uint64,
    "size": ctypes.c_size_t,
    "out_text": ctypes.c_void_p,
    "out_handle": ctypes.c_void_p,
    "out_info": ctypes.c_void_p,
}
# HRESULT as 32 bits: ctypes' own type raises on "pending", and c_long has 64 bits elsewhere.
_RETURNED: Mapping[str, Any] = {
    "hresult": ctypes.c_int32,
    "i32": ctypes.c_int32,
    "handle": ctypes.c_void_p,
    "void": None,
}


class Library:
    """One loaded DLL, with the function that frees the strings it lends.

    Args: dll: loaded so that calls release the interpreter lock. free: takes the address of a lent string.
    """

    def __init__(self, dll: ctypes.CDLL, free: Callable[[int], object], functions: Mapping[str, Function]) -> None:
        self.name = str(dll._name)
        self._dll = dll
        self._free = free
        self._functions = functions
        self._bound: dict[str, Any] = {}

    def has(self, name: str) -> bool:
        """Whether this DLL exports the function."""
        try:
            self._bind(name)
        except NotSupported:
            return False
        return True

    def call(self, name: str, *given: Any) -> Answer:
        """Call a function with its in parameters. Raises: NotSupported if this DLL lacks it, InvalidSpec for a NUL."""
        function = self._bind(name)
        arguments, outs = _arguments(self._functions[name].parameters, given)
        value = function(*arguments)
        # Whatever the value says: a string that is there is ours to free.
        texts = self._taken([slot for kind, slot in outs if kind == "out_text"])
        return Answer(
            value=(value or 0) & (0xFFFFFFFF if self._functions[name].returns != "handle" else ~0),
            texts=texts,
            handles=tuple(_handle(slot.value) for kind, slot in outs if kind == "out_handle"),
            info=next((_info(slot) for kind, slot in outs if kind == "out_info"), None),
        )

    def _bind(self, name: str) -> Any:
        function = self._bound.get(name)
        if function is None:
            try:
                function = self._dll[name]
            except AttributeError as missing:
                raise NotSupported(f"{self.name} of this build of Windows has no {name}", operation=name) from missing
            prototype = self._functions[name]
            # Without argtypes ctypes cuts integers to 32 bits.
            function.argtypes = [_C_TYPES[kind] for kind in prototype.parameters]
            function.restype = _RETURNED[prototype.returns]
            self._bound[name] = function
        return function

    def _taken(self, slots: Sequence[Any]) -> tuple[str | None, ...]:
        texts: list[str | None] = []
        failed: ValueError | None = None
        for slot in slots:
            if not slot.value:
                texts.append(None)
                continue
            try:
                texts.append(read_wide(slot.value))
            except ValueError as wrong:
                texts.append(None)
                failed = failed or wrong
            finally:
                self._free(slot.value)
        if failed is not None:
            raise failed
        return tuple(texts)


def _arguments(kinds: Sequence[str], given: Sequence[Any]) -> tuple[list[Any], list[tuple[str, Any]]]:
    waiting = iter(given)
    arguments: list[Any] = []
    outs: list[tuple[str, Any]] = []
    for kind in kinds:
        if kind.startswith("out_"):
            slot = ProcessInformation() if kind == "out_info" else ctypes.c_void_p(None)
            outs.append((kind, slot))
            arguments.append(ctypes.addressof(slot))
        elif kind == "text":
            text = next(waiting)
            arguments.append(None if text is None else wide(text))
        else:
            arguments.append(next(waiting))
    return arguments, outs


def _handle(value: int | None) -> int:
    return 0 if value is None or value == INVALID_HANDLE else value


def _info(block: ProcessInformation) -> ProcessInfo:
    return ProcessInfo(
        pid=block.ProcessId,
        stdin=_handle(block.StdInput),
        stdout=_handle(block.StdOutput),
        stderr=_handle(block.StdError),
    )


def load_dll(path: str) -> ctypes.CDLL:
    """Load a library by its path, so that its calls release the interpreter lock. Raises: RuntimeUnavailable."""
    try:
        if sys.platform == "win32":
            return ctypes.WinDLL(path)
        return ctypes.CDLL(path)
    except OSError as missing:
        raise RuntimeUnavailable(f"{path} can't be loaded: {missing}", runtime="hcs", operation="load") from missing


def in_system_directory(name: str) -> ctypes.CDLL:
    """Load a DLL of Windows, from its own directory only. Raises: RuntimeUnavailable where it is missing."""
    if sys.platform != "win32":
        raise RuntimeUnavailable(
            f"{name} is a part of Windows, this is {sys.platform}", runtime="hcs", operation="load"
        )
    try:
        return ctypes.WinDLL(name, winmode=LOAD_LIBRARY_SEARCH_SYSTEM32)
    except OSError as missing:
        raise RuntimeUnavailable(
            f"{name} is not on this Windows: install the Containers feature "
            "(Install-WindowsFeature Containers) and restart",
            runtime="hcs",
            operation="load",
        ) from missing
